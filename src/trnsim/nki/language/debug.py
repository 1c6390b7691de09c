"""``device_print``: the values of a tile, while the kernel runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM
from trnsim.machine.tensor import NkiTensor


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Print ``print_prefix`` and the values of a tensor in SBUF or HBM to the standard output.

    A time-only run computes these values. If the environment variable ``NEURON_RT_DEBUG_OUTPUT_DIR`` names a folder,
    they are also saved as ``<folder>/<print_prefix>/core_<core>/<iteration>/tensor.npy``; the iteration counts the
    calls with this prefix. Formats that NumPy does not have are saved as float32.

    Raises:
        CompilerError: outside a kernel, a prefix that is no string, or no tensor.
        NeedsDataError: a time-only run without the data that the values depend on.
    """
    core = machine.current()
    if not isinstance(print_prefix, str):
        raise CompilerError(
            "print_prefix must be a string",
            instruction="nl.device_print",
            operand="print_prefix",
            value=type(print_prefix).__name__,
        )
    if not isinstance(tensor, NkiTensor):
        raise CompilerError(
            "tensor must be a tensor of the kernel",
            instruction="nl.device_print",
            operand="tensor",
            value=type(tensor).__name__,
        )
    if tensor.storage.memory == PSUM:
        core.launch.add_finding(
            "hardware-rejects", "device_print takes tensors in SBUF or HBM, not in PSUM", core.caller_line()
        )
    core.force(tensor)
    if tensor.storage.kind == "input":
        core.require_data(tensor.storage, "device_print")
    values = tensor.array()
    print(print_prefix, values, flush=True)
    folder = os.environ.get("NEURON_RT_DEBUG_OUTPUT_DIR")
    if folder:
        counts = core.state.setdefault("device_print", {})
        iteration = counts.get(print_prefix, 0)
        counts[print_prefix] = iteration + 1
        _save(Path(folder) / _file_name(print_prefix) / f"core_{core.index}" / str(iteration), tensor, values)


def _file_name(prefix: str) -> str:
    return prefix.replace("/", "_").replace(os.sep, "_").strip(". ") or "tensor"


def _save(folder: Path, tensor: NkiTensor, values: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    native = values.dtype.kind in "iufb"
    np.save(folder / "tensor.npy", values if native else tensor.as_float32())
