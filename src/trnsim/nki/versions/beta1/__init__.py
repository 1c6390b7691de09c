"""``neuronxcc.nki``: NKI 0.1 ("beta 1"), where instructions return tiles.

A view of the one implementation: the same instructions are recorded, with the same numbers and times. What differs
from today's NKI is in this package: tensors with index expressions and block dimensions, results that take the place
of what they are assigned to, masks, grids of programs. See ``docs/reference/semantics.md``.
"""

from __future__ import annotations

from typing import Any

from trnsim import releases
from trnsim.nki.versions.beta1 import compiler, isa, language, typing
from trnsim.nki.versions.beta1.launch import baremetal, benchmark, jit, profile, simulate_kernel, trace
from trnsim.nki.versions.beta1.tensor import Tensor

__version__ = "0.1.0"
tensor = Tensor

__all__ = [
    "baremetal", "benchmark", "compiler", "isa", "jit", "language", "profile", "simulate_kernel", "tensor", "trace",
    "typing",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    raise releases.no_attribute("nki", name, "0.1")
