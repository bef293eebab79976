"""The commands, in the order in which ``kftune --help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from kftune._version import __version__
from kftune.cli.commands.library import benchmark, data, describe, listing, profile
from kftune.cli.commands.results import best, compare, dashboard, export, figure, import_, serve, status, transfer
from kftune.cli.commands.studies import confirm, delete, drop, enqueue, init, rename, resume, run, schema, validate

__all__ = ["app"]

app = typer.Typer(
    name="kftune",
    help="Tune and compare neural-network optimizers under a fixed wall-clock budget.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"kftune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("init")(init.init)
app.command("validate")(validate.validate)
app.command("schema")(schema.schema)
app.command("run")(run.run)
app.command("resume")(resume.resume)
app.command("confirm")(confirm.confirm)
app.command("enqueue")(enqueue.enqueue)
app.command("drop")(drop.drop)
app.command("rename")(rename.rename)
app.command("delete")(delete.delete)
app.command("status")(status.status)
app.command("best")(best.best)
app.command("compare")(compare.compare)
app.command("transfer")(transfer.transfer)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("dashboard")(dashboard.dashboard)
app.command("serve")(serve.serve)
app.command("figure")(figure.figure)
app.command("profile")(profile.profile)
app.command("list")(listing.list_)
app.command("describe")(describe.describe)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(data.app, name="data")
