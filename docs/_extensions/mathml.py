"""Formulas as MathML, which browsers draw themselves: no script, no network; a wrong formula is an error."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)


# What TeX knows and docutils does not, in its own words. The last is a matter of reading: TeX takes one digit.
_WORDS = (
    (r"\\dots(?![a-zA-Z])", r"\\ldots"),
    (r"\\texttt(?![a-zA-Z])", r"\\mathtt"),
    (r"\\(big|Big|bigg|Bigg)(?![a-zA-Z])", r"\\\1l"),
    (r"\\textstyle(?![a-zA-Z])\s*", ""),
    (r"\\([td]?frac)(\d)(\d)", r"\\\1{\2}{\3}"),
)


def _mathml(node: nodes.Node, *, block: bool) -> str:
    text = node.astext()
    for pattern, word in _WORDS:
        text = re.sub(pattern, word, text)
    try:
        return str(tex2mathml(text, as_block=block))
    except MathError as error:
        _LOGGER.warning("formula %r: %s", text, error, location=node)
        return f"<code>{text}</code>"


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.add_css_file("formulas.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
