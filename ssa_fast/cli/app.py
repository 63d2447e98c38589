"""The ``ssa-fast`` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from ssa_fast.cli import convert, demo, evaluate, explain, export, figure, models, run

app = typer.Typer(
    name="ssa-fast",
    help="Complete class activation maps at inference time: CAMs, boxes and masks from images and a classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("run", epilog=run.EPILOG)(run.command)
app.command("convert")(convert.command)
app.command("demo")(demo.command)
app.add_typer(evaluate.app, name="eval")
app.command("explain")(explain.command)
app.command("export")(export.command)
app.command("figure")(figure.command)
app.command("models")(models.command)


def _print_version(requested: bool) -> None:
    if requested:
        from ssa_fast import __version__

        typer.echo(f"ssa-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
