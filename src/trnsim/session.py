"""Running kernels under chosen options, and keeping what ran.

A ``Session`` says on which chip, with or without numbers, under which schedule; kernels called while it is active are
recorded as calls with their traces and, when it asks for time, their timelines. Without a session a called kernel
computes its numbers and nothing is kept.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from trnsim.errors import CompilerError, InputError, TrnsimError, UnsupportedError
from trnsim.hardware import load_chip, load_timing
from trnsim.machine import core as machine
from trnsim.machine.launch import Program
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import INSTRUCTIONS
from trnsim.numerics import DType, as_dtype
from trnsim.releases import DEFAULT, Release, given_twice

if TYPE_CHECKING:
    from trnsim.hardware import Chip
    from trnsim.hardware.model import Core as CoreSpec
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.ranks import World
    from trnsim.machine.trace import Trace
    from trnsim.report.call import KernelCall
    from trnsim.timing import Timeline

DEFAULT_CHIP = "trn2"
_TWICE = re.compile(r"(\w+)\(\) got multiple values for argument '(\w+)'")
_TARGETS = {
    "trn1": "trn1",
    "inf2": "inf2",
    "gen2": "trn1",
    "trn2": "trn2",
    "gen3": "trn2",
    "trn3": "trn3",
    "gen4": "trn3",
}


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """What a caller may choose. Each default is documented here once.

    Attributes:
        chip: name, alias or TOML file of the chip; None: ``NEURON_PLATFORM_TARGET_OVERRIDE``, the kernel's own
            ``platform_target``, then trn2 (the vendor's tools fall back to trn3).
        numeric: compute results; False is a time-only run.
        timed: predict the time of each call.
        schedule: ``program``, ``nki`` or ``tensorizer``; see ``trnsim.timing``. None: ``tensorizer`` for NKI 0.1,
            ``nki`` for later releases.
        passes: freedoms of the compiler stage to keep; None: all that the schedule has.
        clock: ``kernel`` counts from the first instruction to the last DMA, ``span`` adds the fixed parts of a
        profiler's     total time.
        strict_capacity: live bytes over capacity are an error instead of a finding.
        seed: of every random generator; printed in reports.
        arguments: data for arguments that a time-only run has no data for, by name.
        assume: values for registers or tensors that a run without data needs, by name.
        lnc: cores per logical core where the kernel was not launched with ``kernel[n]``.
        zero_unwritten: memory that nothing wrote reads as 0, not as the sentinels NaN and 4; findings stay.
    """

    chip: str | None = None
    numeric: bool = True
    timed: bool = True
    schedule: str | None = None
    passes: frozenset[str] | None = None
    clock: str = "kernel"
    strict_capacity: bool = False
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    assume: Mapping[str, int] = field(default_factory=dict)
    lnc: int | None = None
    zero_unwritten: bool = False


class Session:
    """Kernels run while a session is active are kept in ``calls``, in order."""

    def __init__(self, options: SimulationOptions | None = None) -> None:
        self.options = options or SimulationOptions()
        self.calls: list[KernelCall] = []
        self.progress: Callable[[str, str, int], None] | None = None

    @contextmanager
    def active(self) -> Iterator[Session]:
        """Make this the session that called kernels run under."""
        global _session
        before, _session = _session, self
        try:
            yield self
        finally:
            _session = before


_session: Session | None = None


def current_session() -> Session | None:
    """The active session, or None."""
    return _session


@dataclass(frozen=True)
class ShapeOnly:
    """An argument without data: ``f32[2048,2048]``."""

    shape: tuple[int, ...]
    dtype: DType


def choose_chip(options: SimulationOptions, platform_target: str | None = None) -> Chip:
    """The first that is given: the options' chip, the environment, the kernel's ``platform_target``, then trn2."""
    if options.chip is not None:
        return load_chip(options.chip)
    name = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
    if name:
        if name.lower() not in _TARGETS:
            raise InputError(
                f"NEURON_PLATFORM_TARGET_OVERRIDE={name!r} is no target", value=name, limit=sorted(_TARGETS)
            )
        return load_chip(_TARGETS[name.lower()])
    if platform_target:
        return load_chip(_TARGETS.get(platform_target.lower(), platform_target))
    return load_chip(DEFAULT_CHIP)


_P = ParamSpec("_P")
_R = TypeVar("_R")


class Stopwatch:
    """Seconds in which at least one kernel was running, those of ranks that run together counted once."""

    def __init__(self) -> None:
        self.seconds, self._running, self._since = 0.0, 0, 0.0

    def timed(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """``function``, its calls counted."""

        @functools.wraps(function)
        def counted(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not self._running:
                self._since = time.perf_counter()
            self._running += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._running -= 1
                if not self._running:
                    self.seconds += time.perf_counter() - self._since

        return counted


stopwatch = Stopwatch()


@stopwatch.timed
def run_kernel(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str = "",
    grid: int | None = None,
    schedule_edges: Any = (),
    platform_target: str | None = None,
    options: SimulationOptions | None = None,
    rank: int = 0,
    world: World | None = None,
    release: Release = DEFAULT,
    any_lnc: bool = False,
) -> Any:
    """Run a kernel function on simulated cores and return what it returns, as the caller's kind of array.

    ``release``: of NKI, that the kernel is written for. ``rank`` and ``world``: the kernel is one of several that
    communicate; see ``machine/ranks.py``. ``any_lnc``: the kernel may use fewer
    cores than ``NEURON_LOGICAL_NC_CONFIG`` says.

    Raises:
        TrnsimError: what the kernel did wrong, or what trnsim cannot do.
    """
    session = _session
    options = options or (session.options if session else SimulationOptions(timed=False))
    chip = choose_chip(options, platform_target)
    lnc = grid if grid is not None else (options.lnc or 1)
    _check_environment(name, lnc, any_lnc=any_lnc)
    if lnc not in (1, 2):
        raise CompilerError(f"{name}[{lnc}]: a logical core has 1 or 2 cores", operand="lnc", value=lnc, limit=(1, 2))
    if lnc == 2 and chip.core is not None and chip.core.version == "v2":
        raise CompilerError(f"{name}[2]: NeuronCore-v2 has no logical cores", operand="lnc", value=lnc, limit=1)
    started = time.perf_counter()
    program = Program(
        chip, kernel=name, lnc=lnc, numeric=options.numeric, seed=options.seed, assume=options.assume, release=release
    )
    program.grid, program.zero_unwritten = grid, options.zero_unwritten
    program.rank, program.world = rank, world
    if session is not None and session.progress is not None:
        report = session.progress
        program.progress = lambda core, row: report(name, f"core {core}", row)
    binder = Binder(program, options)
    bound_args, bound_kwargs = binder.bind(function, args, kwargs)
    try:
        results = program.run(function, bound_args, bound_kwargs)
    except TypeError as error:
        # Python itself refuses an argument given by position and by name, before the function can say anything.
        found = _TWICE.match(str(error))
        if found is None or f"nki.isa.{found[1]}" not in INSTRUCTIONS:
            raise
        raise given_twice(f"nki.isa.{found[1]}", found[2], release.version) from error
    for core in program.cores:
        core.trace.directives = getattr(function, "directives", ())
        add_schedule(core, schedule_edges)
    outputs = binder.results(results)
    if session is not None and options.timed:
        call = make_call(program, options, name, binder.arguments, time.perf_counter() - started)
        session.calls.append(replace(call, source=source_of(function)))
    return outputs


def _check_environment(name: str, lnc: int, *, any_lnc: bool) -> None:
    """What the documented environment variables ask for, where it differs from what will happen.

    ``NKI_SIMULATOR`` needs nothing: every kernel is simulated.
    """
    wanted = os.environ.get("NEURON_LOGICAL_NC_CONFIG")
    if wanted and wanted != str(lnc) and not any_lnc:
        raise InputError(
            f"NEURON_LOGICAL_NC_CONFIG={wanted}, but {name or 'the kernel'} is launched on {lnc} cores: "
            f"launch it as kernel[{wanted}], or change the variable"
        )
    if os.environ.get("NKI_PRECISE_FP", "1") == "0":
        raise UnsupportedError(
            "NKI_PRECISE_FP=0 (low-precision tensors kept in float32) is not supported; trnsim always rounds"
        )


def add_schedule(core: Any, edges: Any) -> None:
    """Enter ``with_schedule`` edges: pairs of (consumer, producer or producers) by instruction name."""
    names = core.trace.names
    for consumer, producers in edges:
        for producer in [producers] if isinstance(producers, str) else producers:
            for item in (consumer, producer):
                if item not in names:
                    raise CompilerError(f"with_schedule names an instruction {item!r} that the kernel does not have")
            if names[producer] >= names[consumer]:
                raise CompilerError(
                    f"with_schedule: {consumer!r} cannot depend on {producer!r}, which comes after it in the program"
                )
            core.trace.edges.append((names[consumer], names[producer]))


class Binder:
    """Turns the caller's arrays into HBM tensors, and the kernel's results back into the caller's kind of array."""

    def __init__(self, program: Program, options: SimulationOptions) -> None:
        self.program, self.options = program, options
        self.kind = "numpy"
        self.arguments: list[str] = []
        self.inputs: list[tuple[NkiTensor, Any, Any]] = []
        self._seen: dict[int, NkiTensor] = {}

    def bind(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with every array replaced by a tensor in HBM."""
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            names = []
        bound = tuple(self._bind(value, names[i] if i < len(names) else f"arg{i}") for i, value in enumerate(args))
        return bound, {key: self._bind(value, key) for key, value in kwargs.items()}

    def _bind(self, value: Any, name: str) -> Any:
        if isinstance(value, (tuple, list)) and any(_is_array(v) for v in value):
            return type(value)(self._bind(v, f"{name}_{i}") for i, v in enumerate(value))
        if not _is_array(value):
            if value is not None and not callable(value):
                self.arguments.append(f"{name}={value}" if isinstance(value, (int, float, str, bool)) else name)
            return value
        known = self._seen.get(id(value))
        if known is not None:
            return known
        if isinstance(value, ShapeOnly):
            data: Any = self.options.arguments.get(name, value)
            if isinstance(data, np.ndarray) and data.shape != value.shape:
                raise InputError(f"--arg {name}: the file has shape {data.shape}, the argument {value.shape}")
        else:
            module = type(value).__module__.split(".")[0]
            if module == "torch":
                self.kind = "torch"
            elif module in ("jax", "jaxlib"):
                self.kind = "jax"
            data = to_numpy(value)
        core = self.program.cores[0]
        dtype = as_dtype(value.dtype)
        tensor = core.input(data, name)
        if tensor.dtype != dtype and isinstance(data, np.ndarray):
            tensor = tensor.view(dtype) if dtype.itemsize == tensor.dtype.itemsize else tensor
        self._seen[id(value)] = tensor
        self.inputs.append((tensor, value, data))
        self.arguments.append(f"{dtype} {'x'.join(map(str, tensor.shape))}")
        return tensor

    def results(self, per_core: list[Any]) -> Any:
        """What core 0 returned, as arrays; inputs that the kernel wrote are updated in place."""
        for tensor, original, data in self.inputs:
            if tensor.storage.writers > 0:
                self._write_back(tensor, original, data)
        return self._result(per_core[0])

    def _write_back(self, tensor: NkiTensor, original: Any, data: Any) -> None:
        if not self.program.numeric or isinstance(original, ShapeOnly):
            return
        if isinstance(original, np.ndarray):
            if not original.flags.writeable:
                self.program.add_finding(
                    "read-only-input", f"the kernel wrote argument {tensor.name!r}, whose array is read-only", 0
                )
            elif data is not original or not original.flags.c_contiguous:
                np.copyto(original, tensor.array().view(original.dtype).reshape(original.shape))
        elif self.kind == "torch":
            original.copy_(_as_torch(tensor))

    def _result(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._result(v) for v in value)
        if not isinstance(value, NkiTensor):
            return value
        program = self.program
        storage = value.storage
        if storage.memory != "hbm":
            program.add_finding(
                "output-memory", f"the kernel returns {value.name!r} in {storage.memory}; hardware needs shared_hbm", 0
            )
        elif storage.kind == "local":
            storage.kind = "output"
            program.infos[storage.id].kind = "output"
            old = program.release.before("0.3")
            if storage.buffer is not None and storage.buffer.value == "private_hbm" and not old:
                program.add_finding(
                    "output-memory",
                    f"the kernel returns {value.name!r} in private_hbm; since NKI 0.3 outputs must be in shared_hbm",
                    0,
                )
        if not storage.full and storage.coverage.exact:
            missing = storage.coverage.missing(0, storage.rows, np.array([[0, storage.row_bytes]], np.int64))
            if missing:
                size = sum((h - low) * int((iv[:, 1] - iv[:, 0]).sum()) for low, h, iv in missing)
                program.add_finding(
                    "output-not-written",
                    f"{size} bytes of output {value.name!r} ({value.dtype} {value.shape}) were never written",
                    storage.line,
                    bytes=size,
                )
                if program.numeric:
                    program.fill_unwritten(storage, missing)
        if program.numeric:
            return self._convert(value)
        lazy = LazyArray(program, value)
        return lazy if self.kind == "numpy" else self._convert_lazy(lazy)

    def _convert(self, value: NkiTensor) -> Any:
        if self.kind == "torch":
            return _as_torch(value)
        array = value.array()
        if value.dtype == "bool":
            array = array.view(np.bool_)
        elif value.dtype.host is not value.dtype.numpy:
            array = array.view(value.dtype.host)
        if self.kind == "jax":
            import jax.numpy as jnp

            return jnp.asarray(array)
        return array

    def _convert_lazy(self, lazy: LazyArray) -> Any:
        if self.kind == "torch":
            import torch

            return torch.empty(lazy.shape, dtype=getattr(torch, str(lazy.tensor.dtype)), device="meta")
        return lazy


class LazyArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An output of a time-only run: its values are computed when somebody reads them."""

    def __init__(self, program: Program, tensor: NkiTensor) -> None:
        self.program, self.tensor = program, tensor
        self.shape, self.dtype = tensor.shape, tensor.dtype.numpy
        self.ndim, self.size = tensor.ndim, tensor.size
        self._value: Any = None

    def _read(self) -> Any:
        if self._value is None:
            core = self.program.cores[0]
            before = machine.set_current(core)
            try:
                core.force(self.tensor)
            finally:
                machine.set_current(before)
            self._value = self.tensor.array()
        return self._value

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self._read(), dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        values = [x._read() if isinstance(x, LazyArray) else x for x in inputs]
        return getattr(ufunc, method)(*values, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._read(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._read()[key]

    def __len__(self) -> int:
        return int(self.shape[0])

    def __repr__(self) -> str:
        if self._value is None:
            return f"<time-only output {self.tensor.dtype} {self.shape}, not computed>"
        return repr(self._value)


def _is_array(value: Any) -> bool:
    if isinstance(value, (np.ndarray, ShapeOnly, LazyArray)):
        return True
    return type(value).__module__.split(".")[0] in ("torch", "jax", "jaxlib") and hasattr(value, "shape")


def to_numpy(value: Any) -> Any:
    """A NumPy view of the caller's array; 16-bit and 8-bit floats of PyTorch as ml_dtypes."""
    if isinstance(value, LazyArray):
        return value._read()
    if isinstance(value, np.ndarray):
        return value
    if type(value).__module__.split(".")[0] == "torch":
        import torch

        kind = as_dtype(value.dtype)
        tensor = value.detach()
        if tensor.device.type == "meta":
            return ShapeOnly(tuple(tensor.shape), kind)
        tensor = tensor.contiguous().cpu()
        try:
            return tensor.numpy()
        except TypeError:
            same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[kind.itemsize]
            return tensor.view(same_size).numpy().view(kind.numpy)
    return np.asarray(value)


def _as_torch(tensor: NkiTensor) -> Any:
    import torch

    kind = tensor.dtype
    target = getattr(torch, str(kind), None)
    array = np.ascontiguousarray(tensor.array())
    if target is None:
        return torch.from_numpy(array)
    carrier = {1: np.uint8, 2: np.int16, 4: np.int32}[kind.itemsize]
    return torch.from_numpy(array.view(carrier).copy()).view(target)


def make_call(
    program: Program,
    options: SimulationOptions,
    name: str,
    arguments: list[str],
    seconds: float,
) -> KernelCall:
    """The record of a kernel call, with its predicted time."""
    traces = tuple(core.trace for core in program.cores)
    call = time_traces(traces, program.chip, options, program.release.version)
    return replace(
        call,
        kernel=name,
        cores=program.lnc,
        arguments=tuple(arguments),
        findings=(*program.findings.values(), *call.findings),
        numeric=options.numeric,
        wall_seconds=seconds,
        seed=options.seed,
        nki_version=program.release.version,
        nki_version_source=program.release.how,
    )


def default_schedule(release: str) -> str:
    """The schedule of kernels of a release of NKI."""
    return "tensorizer" if release == "0.1" else "nki"


def time_traces(traces: tuple[Trace, ...], chip: Chip, options: SimulationOptions, release: str) -> KernelCall:
    """The record of a kernel call as far as the traces of its cores tell, with the time predicted on ``chip``.

    ``release`` of NKI is that of the kernel.
    """
    from trnsim.report.call import KernelCall
    from trnsim.timing import WAIT_REASONS, TimingOptions, simulate

    assert chip.core is not None
    timing_options = TimingOptions(
        schedule=options.schedule or default_schedule(release),
        passes=options.passes,
        clock=options.clock,
        strict_capacity=options.strict_capacity,
    )
    timeline = simulate(traces, chip, timing_options)
    support, reason, error = _support(timeline, load_timing(chip))
    return KernelCall(
        kernel=traces[0].kernel,
        chip=chip.name,
        generation=chip.core.version,
        cores=len(traces),
        schedule=timing_options.schedule,
        clock=timing_options.clock,
        timeline=timeline,
        wait_reasons=WAIT_REASONS,
        traces=traces,
        findings=tuple(timeline.findings),
        support=support,
        support_reason=reason,
        error_percent=error,
        flops=timeline.totals.flops,
        peak_flops=_peak_flops(traces, chip.core),
        hbm_bytes_per_second=float(chip.hbm.bytes_per_second) * len(traces) / max(1, chip.core_count),
        memory_partitions=chip.core.sbuf.partitions,
    )


@functools.lru_cache(maxsize=256)
def _digest(path: str, changed: float) -> str:
    del changed  # a file that is written again is read again
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def source_of(function: Callable[..., Any]) -> tuple[str, str]:
    """The file that holds ``function``, and the SHA-256 of its content; both empty where there is none."""
    path = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
    try:
        return path, _digest(path, Path(path).stat().st_mtime)
    except OSError:
        return "", ""


def _support(timeline: Timeline, timing: Timing) -> tuple[str, str, float | None]:
    return compared(timeline.support, timeline.support_reason, timeline.schedule, timeline.totals.flops, timing)


def compared(support: str, reason: str, schedule: str, flops: int, timing: Timing) -> tuple[str, str, float | None]:
    """How well a time is known: with an error only where kernels like this one were compared with measurements.

    The published kernels are matrix multiplications, projections, MLPs and attention: all use TensorE.
    """
    old = schedule == "tensorizer"
    error = timing.tensorizer_error_percent if old else timing.error_percent
    if support != "calibrated" or error is None:
        return support, reason, None
    if flops:
        what = "attention and MLPs" if old else "matrix multiplications, MLPs and projections"
        return support, f"{reason}; the error is that of published {what}", error
    return "interpolated", f"{reason}; no kernel like this one has been compared with a measurement", None


def _peak_flops(traces: Sequence[Trace], spec: CoreSpec) -> float:
    """Peak of TensorE in the number format that this kernel multiplies most, all its cores together."""
    counts: dict[str, int] = {}
    for trace in traces:
        klass, rows = np.unique(trace.instructions["klass"], return_counts=True)
        for index, count in zip(klass.tolist(), rows.tolist(), strict=True):
            item = trace.classes[index]
            if item.is_matmul:
                dtype = str(item.operand("moving").dtype)
                counts[dtype] = counts.get(dtype, 0) + count
    dtype = max(counts, key=lambda d: counts[d]) if counts else "bfloat16"
    peak = spec.tensor.flops(dtype) or spec.tensor.flops("bfloat16") or 0.0
    return float(peak) * len(traces)


def load_argument(path: str | Path) -> Any:
    """An ``.npy`` file as an argument."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


__all__ = [
    "LazyArray", "Session", "ShapeOnly", "SimulationOptions", "TrnsimError", "choose_chip", "current_session",
    "run_kernel",
]  # fmt: skip
