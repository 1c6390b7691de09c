"""Fit the constants of serving stacks to published TPOT and write ``src/trnsim/planner/serving_stacks.toml``.

Usage: python scripts/fit_serving.py PATH_TO_INFERENCE_CSV
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from trnsim.hardware import load_system
from trnsim.planner.serving_stack import FILE
from trnsim.validation.serving.fit import fitted, group_names
from trnsim.validation.serving.neuron import NeuronCase, graphs_of
from trnsim.validation.serving.report import validate
from trnsim.validation.serving.rows import read_rows
from trnsim.validation.serving.rules import SYSTEMS

HEADER = """\
# Constants of serving stacks, fitted on published TPOT of aggregated serving (aiconfigurator-core 0.12.0,
# silicon_sample) by scripts/fit_serving.py. A step takes work * (operators' own) + fixed * (what an operator takes
# however small it is) + exchanges * (exchanges) + host_ms. error_percent: mean absolute error of TPOT with the chip's
# runs of the same tensor parallelism left out of the fit; cases: configurations. Stacks of Neuron devices: each
# configuration left out; nxdi and vllm-neuron on gen3: graphs of both, each model left out; those without host_ms are
# fitted on times of the device, each model left out.
"""
# The stack whose graphs those are that counters are published of, and the generation of their chip.
DEVICE = ("nxdi", "gen2")
# A stack of Neuron devices that is fitted end to end, on its own rows.
NEURON = ("transformers-neuronx",)
# Stacks whose graphs are fitted together, end to end, on a chip; and the generation of it.
GRAPHS = (("nxdi", "vllm-neuron"), "Trainium2", "gen3")


def _neuron(cases: Sequence[NeuronCase], stack: str) -> list[str]:
    """The table of a stack of Neuron devices."""
    device = stack == DEVICE[0]
    chips = [name for name, system in SYSTEMS.items() if load_system(system).chip.generation == DEVICE[1]]
    mine = [c for c in cases if c.kind == "device" and c.point.chip in chips] if device else [
        c for c in cases if c.kind != "device" and c.point.stack == stack
    ]  # fmt: skip
    factors = [float(f) for f in fitted([c.point for c in mine])]
    work, fixed, exchanges = factors[:3] if len(factors) > 1 else factors * 3
    error = 100 * float(np.mean([abs(c.error) for c in mine]))
    lines = ["[[fits]]", f'stack = "{stack}"', 'kind = ""', 'format = ""']
    lines += [f'generation = "{DEVICE[1]}"'] if device else []
    lines += [f"work = {work:.4f}", f"fixed = {fixed:.4f}", f"exchanges = {exchanges:.4f}"]
    lines += [f"host_ms = {factors[3]:.4f}"] if len(factors) > 1 and not device else []
    return [*lines, f"cases = {len(mine)}", f"error_percent = {error:.1f}", ""]


def _graphs(cases: Sequence[NeuronCase], stack: str) -> list[str]:
    """The table of a stack whose graphs are like those of others on the chip; errors of models that are left out."""
    _, chip, generation = GRAPHS
    pool = graphs_of(cases, {chip})
    work, fixed, exchanges, host = (float(f) for f in fitted(pool))
    mine = [c for c in cases if c.point in pool]
    errors = [abs(c.other_models_ms / c.point.measured_ms - 1) for c in mine if c.other_models_ms is not None]
    lines = ["[[fits]]", f'stack = "{stack}"', 'kind = ""', 'format = ""', f'generation = "{generation}"']
    lines += [f"work = {work:.4f}", f"fixed = {fixed:.4f}", f"exchanges = {exchanges:.4f}", f"host_ms = {host:.4f}"]
    return [*lines, f"cases = {len(pool)}", f"error_percent = {100 * float(np.mean(errors)):.1f}", ""]


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
    for stack in GRAPHS[0]:
        lines += _graphs(found.neuron, stack)
    for stack in (*NEURON, DEVICE[0]):
        lines += _neuron(found.neuron, stack)
    FILE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
