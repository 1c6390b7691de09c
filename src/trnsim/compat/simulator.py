"""``nki_cpu_simulator.nki.cpu_simulate``: the entry point by which nki-library's suite runs its kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError
from trnsim.nki.kernel import Kernel
from trnsim.releases import DEFAULT, Release
from trnsim.session import SimulationOptions

_CHIPS = {"gen2": "trn1", "gen3": "trn2", "gen4": "trn3", "trn1": "trn1", "trn2": "trn2", "trn3": "trn3"}
default_chip: str | None = None  # the pytest plugin's --trnsim-chip


def chosen_chip() -> str | None:
    """The chip that ``NKI_NC_VERSION`` names (gen2, gen3, gen4), else the plugin's ``--trnsim-chip``.

    Raises:
        InputError: ``NKI_NC_VERSION`` names no generation.
    """
    version = os.environ.get("NKI_NC_VERSION")
    if not version:
        return default_chip
    name = version.lower()
    if name not in _CHIPS:
        raise InputError(f"NKI_NC_VERSION={version!r} is no generation", value=version, limit=sorted(_CHIPS))
    return _CHIPS[name]


class _Simulated:
    """``cpu_simulate(kernel)``: called directly it runs on one core, ``[lnc]`` chooses."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, lnc: Any) -> _Simulated:
        return _Simulated(self.kernel[lnc])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        options = SimulationOptions(chip=chosen_chip(), timed=False, zero_unwritten=True)
        return _outputs(self.kernel.launch(args, kwargs, options))


class PackedOutput:
    """An output in a packed format: ``np.asarray(output, dtype)`` reads its bytes as a type of the same size.

    A suite that reads outputs of hardware from files takes the type from what it expects, and so it does here.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        seen = self.array if dtype is None else self.array.view(dtype)
        return seen.copy() if copy else seen


def _outputs(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_outputs(v) for v in value)
    return PackedOutput(value) if isinstance(value, np.ndarray) and value.dtype.kind == "V" else value


def cpu_simulate(kernel: Kernel | Callable[..., Any], release: Release = DEFAULT) -> _Simulated:
    """A callable that runs ``kernel`` with numbers and returns None, an array, or a list or tuple of arrays.

    Memory that nothing wrote is 0: the references of suites that call this expect it.

    Args:
        kernel: a kernel, or a plain function.
        release: of NKI, that a plain function is written for.
    """
    return _Simulated(kernel if isinstance(kernel, Kernel) else Kernel(kernel, release=release))
