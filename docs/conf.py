"""How Sphinx builds this documentation; `make docs` runs it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE / "examples" / "modules")]
# The examples' studies run in processes of their own, one core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["KFTUNE_LEASE_DIR"] = str(HERE / "_build" / "leases")
(HERE / "_build" / "leases").mkdir(parents=True, exist_ok=True)

# Of sphinx-autodoc-typehints, which still calls what a later Sphinx will not have.
warnings.filterwarnings("ignore", message=".*_RstSnippetParser.set_application.*")

from kftune import __version__  # noqa: E402 - after the environment is set

logging.getLogger("alembic").setLevel(logging.WARNING)

project = "kftune"
author = "the authors of kftune"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "generated_reference",
]
exclude_patterns = ["_build", "_generated", "examples/*.py", "examples/GALLERY_HEADER.rst", "examples/modules"]
language = "en"

html_theme = "furo"
html_static_path = ["_static"]
html_title = f"kftune {__version__}"
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "description"
always_use_bars_union = True
typehints_defaults = "comma"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": ["examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "reset_modules": (),
    "only_warn_on_example_error": False,
    "abort_on_example_error": False,
}
