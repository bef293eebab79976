"""``kftune serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._results import StoredStudies, named_files
from kftune.progress.output import print_json, say

__all__ = ["serve"]


def serve(
    studies: StoredStudies = None,
    *,
    storage: Storage = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; by default only this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8017,
    as_json: AsJson = False,
) -> None:
    """Show the page live, read-only, refreshed while a study runs; Ctrl-C ends it."""
    from kftune.dashboard.page import check_names
    from kftune.dashboard.server import Address, bind, is_local
    from kftune.dashboard.server import serve as serve_page

    sources = named_files(studies, storage)
    names = [name for of_database in sources.values() for name in of_database]
    check_names(names)
    listening = bind(host, port)
    url = Address(host, listening.getsockname()[1]).url
    if as_json:
        print_json({"url": url, "studies": names})
    else:
        say(f"{', '.join(names)}: {url} (Ctrl-C ends it)", whole=True)
    if not is_local(host):
        typer.echo(
            f"warning: everyone who reaches {host} can read these results; nothing asks for a password", err=True
        )
    try:
        serve_page(listening, sources, host=host)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
