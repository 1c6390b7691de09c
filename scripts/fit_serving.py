"""Fit the constants of serving stacks to published TPOT and write ``src/trnsim/planner/serving_stacks.toml``.

Usage: python scripts/fit_serving.py PATH_TO_INFERENCE_CSV
"""

from __future__ import annotations

import sys

import numpy as np

from trnsim.planner.serving_stack import FILE
from trnsim.validation.serving.fit import group_names
from trnsim.validation.serving.report import validate
from trnsim.validation.serving.rows import read_rows

HEADER = """\
# Constants of serving stacks, fitted on published TPOT of aggregated serving (aiconfigurator-core 0.12.0,
# silicon_sample) by scripts/fit_serving.py. A step takes work * (operators' own) + fixed * (what an operator takes
# however small it is) + exchanges * (exchanges) + host_ms. error_percent: mean absolute error of TPOT with the chip's
# runs of the same tensor parallelism left out of the fit; cases: configurations.
"""


def main() -> None:
    """Fit and write."""
    found = validate(read_rows(sys.argv[1]))
    lines = [HEADER]
    for name, factors in sorted(found.fits.items()):
        if name.startswith("any"):
            continue
        mine = [c for c in found.cases if name in group_names(c.point)]
        stack, kind, *form = name.split(" ", 2)
        error = 100 * float(np.mean([abs(c.error) for c in mine]))
        work, fixed, exchanges, host = (round(float(f), 4) for f in factors)
        lines += [
            "[[fits]]",
            f'stack = "{stack}"',
            f'kind = "{kind}"',
            f'format = "{form[0] if form else ""}"',
            f"work = {work}",
            f"fixed = {fixed}",
            f"exchanges = {exchanges}",
            f"host_ms = {host}",
            f"cases = {len(mine)}",
            f"error_percent = {error:.1f}",
            "",
        ]
    FILE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
