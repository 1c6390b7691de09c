"""The chip that compiled models run on where none is entered: ``TRNSIM_CHIP``, ``TRNSIM_DEPTH``, ``TRNSIM_FORMAT``."""

from __future__ import annotations

import os
from typing import Any

from trnsim.errors import InputError
from trnsim.frameworks.torch.device import Chip, current
from trnsim.frameworks.torch.report import Report

_default: Chip | None = None


def default_chip(**options: Any) -> Chip:
    """The default chip, made when first asked for; ``options`` as for ``device`` make another one.

    Raises:
        InputError: depth ``shape``: compiled graphs have data.
    """
    global _default
    if _default is None or options:
        given = {
            "chip": os.environ.get("TRNSIM_CHIP", "trn2"),
            "depth": os.environ.get("TRNSIM_DEPTH", "fast"),
            "format": os.environ.get("TRNSIM_FORMAT", "bf16"),
            **options,
        }
        if given["depth"] == "shape":
            raise InputError("graphs of torch.compile run with data; use trnsim.torch.device", operand="depth")
        _default = Chip(given.pop("chip"), **given)
    return _default


def running_chip() -> Chip | None:
    """The chip that is entered, else the default one where compiled models have made one: kernels run on it."""
    return current() or _default


def report() -> Report:
    """The report of the chip that is entered, else of the default one."""
    return (current() or default_chip()).report()
