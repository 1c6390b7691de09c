"""Calculon, another analytical model of training, beside ours: run from a local checkout on the points that it ships.

``TRNSIM_CALCULON`` names a checkout of github.com/calculon-ai/calculon; it needs the package ``psutil``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "TRNSIM_CALCULON"
_TITLES = {"*Params & Opt": "states", "*Activations": "activations", "End-to-end": "steps"}
_MODES = {"none": "none", "seqsel": "selective", "full": "full"}


@dataclass(frozen=True)
class Calculon:
    """What it predicts: ``values`` by kind (``steps``: seconds; ``states``, ``activations``: GiB), model and
    recomputation: (measured, predicted). ``why``: it was not run.
    """

    values: Mapping[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    why: str = ""

    def errors(self, kind: str) -> list[float]:
        """Relative errors of a kind."""
        return [told / held - 1 for (of, _, _), (held, told) in self.values.items() if of == kind]


def run_calculon(root: str | None = None) -> Calculon:
    """Run its validation.

    Args:
        root: the checkout; None: as ``TRNSIM_CALCULON`` says.
    """
    root = root or os.environ.get(VARIABLE)
    if not root:
        return Calculon(why=f"{VARIABLE} names no checkout of calculon-ai/calculon")
    program = Path(root) / "bin" / "calculon"
    if not program.exists():
        return Calculon(why=f"{root} has no bin/calculon")
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(  # noqa: S603  (a program that the user names)
        [sys.executable, str(program), "llm-validation", "-b", root],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Calculon(why=f"Calculon stops: {last}")
    found = read(done.stdout)
    return Calculon(found) if found else Calculon(why="Calculon prints no table of this form")


def read(text: str) -> dict[tuple[str, str, str], tuple[float, float]]:
    """The tables that its validation prints: one block of columns a mode, divided by bars."""
    found: dict[tuple[str, str, str], tuple[float, float]] = {}
    kind, modes = "", [""]
    for line in text.splitlines():
        cells = [part.strip(",").split(",") for part in line.split("|")]
        title = cells[0][0]
        if len(cells) == 3 and title in _TITLES:
            kind, modes = _TITLES[title], [part[0] for part in cells[1:]]
        elif title == "Ave":
            kind = ""
        elif kind and len(cells) == 3 and re.match(r"[\d.]+$", cells[1][0]):
            for mode, (held, told, *_) in zip(modes, cells[1:], strict=True):
                found[kind, title, _MODES[mode]] = float(held), float(told)
    return found
