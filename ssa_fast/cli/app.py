"""The `ssa-fast` command with its six subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from ssa_fast.cli import bench, convert, demo, explain, models, run

__all__ = ["app"]

app = typer.Typer(
    name="ssa-fast",
    help="Complete class activation maps at inference time: from pictures and a classifier to CAMs, boxes and masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", epilog=run.EPILOG)(run.command)
app.command("convert")(convert.command)
app.command("demo")(demo.command)
app.command("explain")(explain.command)
app.command("models")(models.command)
app.command("bench", add_help_option=False, context_settings=bench.PASSED_ON)(bench.command)


def _version(wanted: bool) -> None:
    if wanted:
        from ssa_fast import __version__

        typer.echo(f"ssa-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
