"""What a person or a program sees of a model that ran on a simulated chip: terminal, JSON, Perfetto, HTML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trnsim.errors import InputError

if TYPE_CHECKING:
    import os

    from trnsim.frameworks.torch.report import Report

FORMATS = (".html", ".json", ".pftrace")


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write ``report`` in the format that the end of ``path`` names; InputError for an end that is none of these."""
    ending = Path(path).suffix
    if ending == ".html":
        from trnsim.frameworks.torch.reporting.page import write_html as write_it
    elif ending == ".json":
        from trnsim.frameworks.torch.reporting.json_file import write_json as write_it
    elif ending == ".pftrace":
        from trnsim.frameworks.torch.reporting.perfetto import write_perfetto as write_it
    else:
        raise InputError(f"cannot tell the format of {path}", operand="path", value=ending, limit=FORMATS)
    write_it(report, path)
