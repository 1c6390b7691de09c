"""``trnsim plan``: how a model is laid out over chips, how fast that is, in how much memory, at what cost."""

from __future__ import annotations

import typer

from trnsim.commands import plan_serve, plan_train

plan_app = typer.Typer(
    name="plan", help="Lay a model out over chips: time, memory, cost and energy.", no_args_is_help=True
)
plan_train.register(plan_app)
plan_serve.register(plan_app)


def register(app: typer.Typer) -> None:
    """Add the commands to ``trnsim``."""
    app.add_typer(plan_app)
