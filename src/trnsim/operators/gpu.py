"""The ``gpu`` implementation: operators as Nvidia's libraries run them, for comparison.

Constants per class of operators, generation and number format are fitted on published tables of measured kernels
(``gpu.toml``, made by ``scripts/fit_gpu.py``); ``gpu_models`` has the forms. A chip whose generation was measured is
predicted by its own peak rates, and a generation that was not by the nearest one's constants.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import chip_names, load_chip
from trnsim.hardware.model import Chip, flops_key
from trnsim.operators import gpu_models as models
from trnsim.operators.cost import OperatorCost, OperatorCosts
from trnsim.operators.work import Operator, arrays, itemsize, many, operator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = Path(__file__).with_name("gpu.toml")
# Costs that are remembered as they are.
_KNOWN = 100_000
# From old to new; a generation without a fit takes that of the nearest, of two the newer.
GENERATIONS = ("ampere", "hopper", "blackwell", "blackwell ultra")
# Formats that a fit of another one stands for, and how far.
_ALIKE = {"float16": "bfloat16", "tfloat32": "bfloat16", "float32": "bfloat16"}
_SUPPORT = ("calibrated", "interpolated", "extrapolated", "assumed")
# The model of a class, and of which class its constants are.
_MODELS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "matmul": (models.matmul, "matmul"),
    "attention": (models.attention, "attention"),
    "attention backward": (models.attention, "attention"),
    "decode": (models.decode, "decode"),
    "latent decode": (models.decode, "latent decode"),
    "grouped matmul": (models.grouped_matmul, "moe"),
    "moe": (models.moe, "moe"),
    "moving": (models.moving, "moving"),
}
BACKWARD = 2.5
# Heads a key head that measured kernels of decoding keep together (``scripts/fit_gpu.py`` leaves larger groups out).
GROUP = 32


@dataclass(frozen=True)
class Fit:
    """Constants of a class on a generation, and how they are known."""

    kind: str
    generation: str
    dtype: str
    chips: tuple[str, ...]
    constants: Mapping[str, float]
    errors: Mapping[str, float]
    carried: Mapping[str, Any]
    low: Mapping[str, float]
    high: Mapping[str, float]
    library: str


@dataclass(frozen=True)
class Known:
    """How a time is known."""

    support: str
    reason: str
    error_percent: float | None = None


def rates(chip: str, dtype: str) -> models.GpuRates:
    """Peak rates of a GPU for one format, as the catalogue has them.

    Raises:
        InputError: not a GPU, or one without that format.
    """
    loaded = _gpu(chip)
    key = gpu_format(dtype)
    flops, flops16 = loaded.flops.get(key), loaded.flops.get("bfloat16")
    if flops is None or flops16 is None:
        has = sorted(set(loaded.flops))
        nearest = {"float4": "float8"}.get(key, "bfloat16")
        hint = f"; the nearest that it has is {nearest}" if nearest in has else ""
        raise InputError(f"{chip} has no {dtype}{hint}", operand="dtype", value=dtype, limit=has)
    sms = loaded.core_count or _file()["sms"].get(loaded.generation)
    if not sms:
        raise UnsupportedError(f"{chip}: how many multiprocessors is not known", operand="core_count")
    return models.GpuRates(flops / 1e6, flops16 / 1e6, loaded.hbm.bytes_per_second / 1e6, sms, itemsize(key))


def has(chip: str, dtype: str) -> bool:
    """Whether a GPU multiplies a format."""
    return gpu_format(dtype) in _gpu(chip).flops


def gpu_format(dtype: str) -> str:
    """The row of a GPU's table of rates: formats with block scales run at the rate of their elements."""
    key = flops_key(dtype)
    return {"mxfp8": "float8", "mxfp4": "float4"}.get(key, key)


class GpuCosts:
    """Costs on one GPU."""

    def __init__(self, chip: str) -> None:
        """Of ``chip``, a name of the catalogue or a TOML file.

        Raises:
            InputError: not a GPU.
            UnsupportedError: of a generation that nothing is known of.
        """
        loaded = _gpu(chip)
        if loaded.generation not in GENERATIONS:
            raise UnsupportedError(
                f"no measurements of GPUs of generation {loaded.generation!r}", operand="chip", limit=GENERATIONS
            )
        self.chip, self._chip = chip, loaded
        self._known: dict[tuple[Any, ...], OperatorCost] = {}
        self._fits: dict[tuple[str, str], tuple[Fit, Known]] = {}
        self._rates: dict[str, models.GpuRates] = {}

    def cost(self, name: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs. ``given``: sizes of the operator.

        Raises:
            InputError: no such operator, size or format.
            UnsupportedError: nothing was measured that it could be carried from.
        """
        use = (name, dtype, *given.items())
        found = self._known.get(use)
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            found = self._known[use] = self._cost(operator(name), dtype, given)
        return found

    def costs(self, name: str, dtype: str, **given: Any) -> OperatorCosts:
        """What many uses cost: as ``cost``, where sizes are arrays of one length, or numbers for all of them."""
        found = operator(name)
        sizes = found.use(arrays(found, given))
        time = self._times(found, dtype, sizes)
        busy = self._busy(found, dtype, sizes)
        return many(found, dtype, sizes, "gpu", time, busy)

    def cast_us(self, dtype: str, m: float, k: float) -> float:
        """Microseconds of a product's time in which its left operand [m, k] is cast from 16 bits; 0 in wide formats."""
        rate = self._rate(dtype)
        if rate.itemsize >= 2:
            return 0.0
        fit, _ = self._fit("matmul", dtype)
        return m * k * (2 + rate.itemsize) / (fit.constants["memory"] * rate.bandwidth)

    def _cost(self, found: Operator, dtype: str, given: Mapping[str, Any]) -> OperatorCost:
        sizes = found.use(given)
        alone = {n: np.array([float(v)]) for n, v in sizes.items()}
        time = float(self._times(found, dtype, alone)[0])
        known = self._how(found, dtype, alone)
        return OperatorCost(
            operator=found.name,
            implementation="gpu",
            time_ps=time * 1e6,
            hbm_bytes=round(float(found.bytes(sizes, dtype))),
            flops=round(float(found.flops(sizes))),
            sbuf_bytes=0,
            support=known.support,
            reason=known.reason,
            how="fit",
            error_percent=known.error_percent,
            busy_ps={n: float(b) for n, b in self._busy(found, dtype, sizes).items()},
        )

    def _busy(self, found: Operator, dtype: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Picoseconds at the peak rates of the tensor cores and of HBM."""
        rate = self._rate(dtype if found.products else "bfloat16")
        busy = {"hbm": found.bytes(sizes, dtype) / rate.bandwidth * 1e6}
        if found.products:
            busy["tensor"] = found.flops(sizes) / rate.flops * 1e6
        return busy

    def _times(self, found: Operator, dtype: str, sizes: Mapping[str, Any]) -> NDArray[np.float64]:
        count = max(np.size(value) for value in sizes.values())
        total = np.zeros(count)
        for kind, shapes in found.parts(sizes, dtype):
            fit, _ = self._fit(kind, dtype)
            full = {n: np.broadcast_to(np.asarray(v, np.float64), (count,)) for n, v in shapes.items()}
            total += self._time(kind, fit, dtype, full)
        return total

    def _time(self, kind: str, fit: Fit, dtype: str, shapes: Mapping[str, Any]) -> Any:
        model, _ = _MODELS[kind]
        rate = self._rate("bfloat16" if kind == "moving" else dtype)
        if kind in ("decode", "latent decode") and flops_key(dtype) == "float8":
            rate = replace(rate, flops=rate.flops16)
        time = model(fit.constants, rate, **shapes)
        if kind == "attention backward":
            fixed = fit.constants["fixed_us"]
            time = fixed + BACKWARD * (time - fixed)
        if kind == "grouped matmul":
            # A product alone has the launch of a matmul; the constant of its class counts those of a whole layer.
            time = time + self._fit("matmul", dtype)[0].constants["fixed_us"]
        return time

    def _rate(self, dtype: str) -> models.GpuRates:
        found = self._rates.get(dtype)
        if found is None:
            found = self._rates[dtype] = rates(self.chip, dtype)
        return found

    def _fit(self, kind: str, dtype: str) -> tuple[Fit, Known]:
        """The constants for a class and format on this chip, and how well they are known for it."""
        key = (kind, dtype)
        if key not in self._fits:
            if kind != "moving":
                self._rate(dtype)
            self._fits[key] = self._find(_MODELS[kind][1], "bfloat16" if kind == "moving" else gpu_format(dtype))
        return self._fits[key]

    def _find(self, kind: str, key: str) -> tuple[Fit, Known]:
        fits = [f for f in _fits() if f.kind == kind and f.dtype == key]
        support, why = "calibrated", ""
        if not fits and key in _ALIKE:
            fits = [f for f in _fits() if f.kind == kind and f.dtype == _ALIKE[key]]
            support, why = ("extrapolated" if key == "float16" else "assumed"), f"{key} as {_ALIKE[key]}; "
        if not fits:
            known = sorted({f.dtype for f in _fits() if f.kind == kind})
            raise UnsupportedError(f"no measurements of {kind} in {key} on GPUs", operand="dtype", limit=known)
        here = GENERATIONS.index(self._chip.generation)
        fit = min(fits, key=lambda f: (abs(GENERATIONS.index(f.generation) - here), -GENERATIONS.index(f.generation)))
        tables = f"{'moving data' if kind == 'moving' else kind} measured with {fit.library}"
        if self._chip.name in fit.chips and load_chip(self._chip.name) == self._chip:
            error = fit.errors[self._chip.name] if support == "calibrated" else None
            return fit, Known(support, f"{why}{tables}", error)
        support = _worse(support, "extrapolated")
        reason = f"{why}{tables} on {' and '.join(fit.chips)}, carried by peak rates"
        for other in _fits():
            same = (other.kind, other.dtype, other.carried.get("from")) == (fit.kind, fit.dtype, fit.generation)
            if same and fit.generation != self._chip.generation:
                reason += f" (±{other.carried['error_percent']:.0f} % where {other.generation} was predicted so)"
        return fit, Known(support, reason)

    def _how(self, found: Operator, dtype: str, sizes: Mapping[str, Any]) -> Known:
        """How the sum of an operator's parts is known: as its worst."""
        support, reasons, errors = "calibrated", [], []
        for kind, shapes in found.parts(sizes, dtype):
            fit, known = self._fit(kind, dtype)
            support = _worse(support, known.support)
            reasons.append(known.reason)
            errors.append(known.error_percent)
            if kind in ("grouped matmul", "attention backward"):
                support = _worse(support, "extrapolated")
                continue
            beyond = [
                n for n, v in shapes.items() if n in fit.low and not fit.low[n] <= float(np.ravel(v)[0]) <= fit.high[n]
            ]
            if kind == "decode" and float(np.ravel(shapes["heads"] / shapes["key_heads"])[0]) > GROUP:
                beyond.append("heads a key head")
            if beyond:
                support = _worse(support, "extrapolated")
                reasons.append(f"{', '.join(beyond)} beyond what was measured")
        if found.assumed:
            support = _worse(support, "extrapolated")
            reasons.append(found.assumed)
        if self._chip.changes:
            return Known("what-if", "; ".join(dict.fromkeys([f"set by the user: {self._chip.changed}", *reasons])))
        error = errors[0] if len(errors) == 1 and support == "calibrated" else None
        return Known(support, "; ".join(dict.fromkeys(reasons)), error)


def _worse(one: str, other: str) -> str:
    return max(one, other, key=_SUPPORT.index)


def _gpu(chip: str) -> Chip:
    loaded = load_chip(chip)
    if loaded.family != "nvidia":
        gpus = [name for name in chip_names() if load_chip(name).family == "nvidia"]
        raise InputError(f"{chip} is no GPU", operand="chip", value=chip, limit=gpus)
    return loaded


@cache
def _file() -> dict[str, Any]:
    with _FILE.open("rb") as file:
        return tomllib.load(file)


@cache
def _fits() -> tuple[Fit, ...]:
    return tuple(
        Fit(
            kind=f["class"],
            generation=f["generation"],
            dtype=f["dtype"],
            chips=tuple(f["chips"]),
            constants=f["constants"],
            errors=f["error_percent"],
            carried=f["carried"],
            low=f["low"],
            high=f["high"],
            library=f["library"],
        )
        for f in _file()["fits"]
    )
