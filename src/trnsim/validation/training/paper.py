"""Published points of sequence parallelism and activation recomputation (``paper.toml``): steps that ``training.csv``
lacks, and memory of layers beside predicted memory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.workloads import Layout, load_model
from trnsim.workloads.memory import layer_activations, states
from trnsim.workloads.training import local_parameters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("paper.toml")
PAPER = "2205.05198"
GIB = 2**30
SEQUENCE, TP = 2048, 8


@dataclass(frozen=True)
class MemoryPoint:
    """Memory of the layers of the first stage, GiB; ``kind``: ``states`` or ``activations``."""

    model: str
    calculon: str
    mode: str
    kind: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.measured - 1


@cache
def _file() -> Mapping[str, Any]:
    with FILE.open("rb") as file:
        return tomllib.load(file)


def steps() -> list[dict[str, str]]:
    """Columns of the steps that ``training.csv`` does not have."""
    held = _file()
    return [{**held["common"], "source": held["source"], **step} for step in held["steps"]]


@cache
def memory() -> tuple[MemoryPoint, ...]:
    """Every published point, with what is predicted of it."""
    found = []
    for held in _file()["memory"]:
        model = load_model(held["model"])
        for mode in ("none", "selective"):
            layout = Layout(
                tp=TP,
                pp=held["pp"],
                vpp=held["vpp"],
                micro_batch=held["micro_batch"],
                # Enough micro-batches to fill the pipeline.
                global_batch=held["micro_batch"] * (8 * held["pp"] if held["pp"] > 1 else 1),
                dtype="float16",
                flash=False,
                recompute=mode,
                sequence_parallel=mode == "selective",
            )
            layers = model.layers[: len(model.layers) // held["pp"]]
            weights = tuple(weight for layer in layers for weight in layer.weights)
            kept = float(states(*local_parameters(weights, layout), layout).total) / GIB
            names = held["model"], held["calculon"], mode
            found.append(MemoryPoint(*names, "states", held["states"], kept))
            activations = float(layer_activations(model, layout, SEQUENCE)) / GIB
            found.append(MemoryPoint(*names, "activations", held[mode], activations))
    return tuple(found)
