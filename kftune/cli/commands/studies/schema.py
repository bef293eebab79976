"""``kftune schema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kftune.cli._files import write_text
from kftune.progress.output import say

__all__ = ["schema"]


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there; it is printed else.")
    ] = None,
) -> None:
    """Print the JSON schema (draft-07) of a study file, for editors.

    An editor with a YAML language server completes, explains and checks a study file whose first line is

        # yaml-language-server: $schema=.kftune.schema.json

    where the path is that of the schema, relative to the study file. `kftune init` writes both. The schema names the
    optimizers, problems and samplers that are installed here: after installing another one, or another version of
    kftune, write it anew with `kftune schema --out .kftune.schema.json`. `kftune validate` checks more than a schema
    can, and needs none.
    """
    from kftune.study.config.schema import schema_text

    text = schema_text()
    if out is None:
        print(text, end="")
        return
    write_text(out, text)
    say(f"wrote {out}", whole=True)
