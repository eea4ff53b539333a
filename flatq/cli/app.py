"""The application: every command, by name."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from flatq.cli import study_command
from flatq.version import __version__

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize diffusion models, run them on deployment runtimes, and gate on the FID drift.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_PANELS = {
    "Models": "demo train import convert flatness",
    "Quantize and export": "sensitivity quantize inspect export",
    "Sample and judge": "sample stats eval gate report bench",
    "Setup": "doctor",
}

for _panel, _names in _PANELS.items():
    for _name in _names.split():
        _module = importlib.import_module(f"flatq.cli.{_name}_command")
        app.command(_name, rich_help_panel=_panel)(_module.command)
app.add_typer(study_command.app, name="study", rich_help_panel="Sample and judge")
