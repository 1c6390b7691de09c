"""``trnsim validate``: what its commands share."""

from __future__ import annotations

import typer

validate_app = typer.Typer(name="validate", help="Predicted beside measured.", no_args_is_help=True)
