"""Fits the factors of training stacks (``planner/training_stacks.toml``) and their errors on models left out.

    python scripts/fit_training.py training.csv

Factors that hardly move a framework's steps stay near what is expected of them (``validation/training/fit.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from trnsim.planner.pricing import KINDS
from trnsim.planner.stack import BY_GENERATION, FILE
from trnsim.validation.training.fit import Factors, Predicted
from trnsim.validation.training.report import validate
from trnsim.validation.training.rows import FRAMEWORKS, read_rows

HEAD = """\
# Factors of training stacks; planner/stack.py says what each means. Made by scripts/fit_training.py.
#
# ``factors``: of kinds of computation, how much longer than their kernels alone; of single experts (groups),
# microseconds with each product; of exchanges (tp, cp, ep, ep_far between systems, gather, dp), the share that
# computation cannot hide; of what is left of any when computation ends (late), how much longer than predicted; of
# sending between stages (pp), how often its time counts; of a host, milliseconds a step. ``generations``: those of
# products by architecture. ``error_percent``: mean absolute error on models that the fit did not see, by architecture;
# ``error_experts_percent`` that of models with experts.

[ideal]
title = "Ideal: kernels alone, and all that computation can hide is hidden"
family = ""
support = "assumed"
reason = "an ideal stack: nothing but kernels, and exchanges that computation cannot hide"
gradient_dtype = "float32"
reserve_bytes = 0
"""
# Assumed: contexts, communicators and fragments of a framework's allocator.
RESERVE = {"nvidia": 2 << 30, "trainium": 1 << 30}


def stack(name: str, factors: Factors, cases: Sequence[Predicted], fitted: tuple[int, int]) -> str:
    """The table of one stack; ``fitted``: on how many steps, of how many models."""
    held = FRAMEWORKS[name]
    family = held.get("family", "nvidia")
    rows, models = fitted
    enough = models >= 3
    support = "interpolated" if enough else "assumed"
    reason = f"fitted on {rows} published steps of {models} models"
    if not enough:
        reason += ", too few to say more than that they agree"
    lines = [
        f"[{name}]",
        f'title = "{held["title"]}"',
        f'family = "{family}"',
        f'support = "{support}"',
        f'reason = "{reason}"',
        f'gradient_dtype = "{held.get("gradient_dtype", "float32")}"',
        f"reserve_bytes = {RESERVE[family]}",
        f"factors = {{ {_pairs(factors.values, KINDS)} }}",
    ]
    for dense, title in ((True, "error_percent"), (False, "error_experts_percent")):
        errors = _errors([c for c in cases if c.point.moe != dense])
        if errors:
            lines.append(f"{title} = {{ {errors} }}")
    lines.append(f"[{name}.generations]")
    for generation, kinds in factors.generations.items():
        lines.append(f'"{generation}" = {{ {_pairs(kinds, [k for k in BY_GENERATION if k in kinds])} }}')
    return "\n".join(lines) + "\n"


def _pairs(values: object, kinds: Sequence[str]) -> str:
    return ", ".join(f"{kind} = {values[kind]:.4g}" for kind in kinds)  # type: ignore[index]


def _errors(cases: Sequence[Predicted]) -> str:
    found: dict[str, list[float]] = {}
    for case in cases:
        found.setdefault(case.point.generation, []).append(abs(case.left_out_us / case.point.measured_us - 1))
    return ", ".join(f'"{g}" = {100 * np.mean(e):.1f}' for g, e in found.items())


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    found = validate(read_rows(sys.argv[1]))
    tables = [HEAD + f"factors = {{ {_pairs(IDEAL, KINDS)} }}\n"]
    for name, factors in found.fits.items():
        cases = [c for c in found.cases if c.point.framework == name]
        tables.append(stack(name, factors, cases, found.fitted_on[name]))
        print(name, _errors(cases))
    FILE.write_text("\n".join(tables), encoding="utf-8")
    return 0


HIDDEN = ("tp", "cp", "ep", "ep_far", "gather", "sends", "dp", "groups", "host")
IDEAL = {kind: 0.0 if kind in HIDDEN else 1.0 for kind in KINDS}

if __name__ == "__main__":
    sys.exit(main())
