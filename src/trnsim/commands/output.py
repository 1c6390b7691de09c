"""How the commands on profiles write: JSON to a file or standard output, tables to the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console


def write_json(value: Any, target: str) -> None:
    """``value`` as JSON to ``target``, whole or not at all; ``-`` is standard output."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    from trnsim.report.files import write_text_atomic

    write_text_atomic(Path(target), text)
    said(f"wrote {target}")


def said(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")


def console() -> Console:
    """Standard output; 120 columns wide into pipes and files."""
    from rich.console import Console

    # Names of changed chips have brackets.
    found = Console(markup=False)
    return found if found.is_terminal else Console(width=120, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """A table whose first column is text and whose others are figures."""
    from rich import box
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        found.add_column(
            name, justify="left" if number == 0 else "right", overflow="fold" if number == 0 else "ellipsis"
        )
    for row in rows:
        found.add_row(*row)
    return found


def microseconds(ps: float) -> str:
    return f"{ps / 1e6:,.2f}"


def percent(error: float) -> str:
    return f"{error:+.1%}"
