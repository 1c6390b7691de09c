"""Recordings: the traces of kernel calls in a file, to be timed again on another chip or with other options.

A recording holds of each call the traces of all its cores, and what a report says of it: kernel, argument shapes, chip,
schedule, clock, NKI version, findings, and the file that holds the kernel with the SHA-256 of its content. It holds no
data of tensors. Timing it again gives what the same run would give with those options, as long as the kernel itself
does not ask for the chip: the program is the recorded one.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.errors import CompilerError, Finding, InputError, Location
from trnsim.hardware import load_chip
from trnsim.isa.retarget import retarget
from trnsim.machine.trace import VERSION as TRACE_VERSION
from trnsim.machine.trace import SavedTrace, Trace
from trnsim.nki import isa as _isa  # enters every instruction
from trnsim.releases import Release
from trnsim.report.files import write_bytes_atomic
from trnsim.session import SimulationOptions, time_traces

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from trnsim.hardware import Chip
    from trnsim.report.call import KernelCall

del _isa
KIND = "trnsim recording"
VERSION = 1


class SavedFinding(msgspec.Struct):
    """A finding of the kernel itself; those of its timing come with the timing."""

    kind: str
    message: str
    severity: str
    location: tuple[str, int, str] | None
    count: int
    details: dict[str, Any]


class SavedCall(msgspec.Struct):
    """One kernel call: what it was asked, and its traces."""

    kernel: str
    chip: str
    chip_file: str
    schedule: str
    clock: str
    arguments: list[str]
    numeric: bool
    seed: int | None
    nki_version: str
    nki_version_source: str
    source: str
    source_sha256: str
    findings: list[SavedFinding]
    traces: list[SavedTrace]

    @property
    def source_changed(self) -> bool:
        """Whether the kernel's file is there, but no longer what it was."""
        try:
            return (
                bool(self.source) and hashlib.sha256(Path(self.source).read_bytes()).hexdigest() != self.source_sha256
            )
        except OSError:
            return False


class Recording(msgspec.Struct):
    """A file of kernel calls."""

    kind: str
    version: int
    trace_version: int
    trnsim: str
    calls: list[SavedCall]


class _Header(msgspec.Struct):
    kind: str = ""
    version: int = -1
    trace_version: int = -1
    trnsim: str = "?"


def save_recording(calls: Sequence[KernelCall], path: str | os.PathLike[str], chip: str | None = None) -> None:
    """Write ``calls`` to ``path``, whole or not at all. ``chip`` is what the chip was asked for by: a name or a file.

    Raises:
        InputError: ``path`` cannot be written.
    """
    from trnsim import __version__

    saved = Recording(KIND, VERSION, TRACE_VERSION, __version__, [_saved(call, chip) for call in calls])
    write_bytes_atomic(path, msgspec.msgpack.encode(saved))


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording.

    Raises:
        InputError: the file is none, is damaged, or was written by another version of the format.
    """
    try:
        data = Path(path).read_bytes()
        header = msgspec.msgpack.decode(data, type=_Header)
    except (msgspec.DecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not one"
        raise InputError(f"{path} cannot be read as a recording of trnsim run --trace: {reason}") from error
    if header.kind != KIND:
        raise InputError(f"{path} is not a recording of trnsim run --trace")
    if (header.version, header.trace_version) != (VERSION, TRACE_VERSION):
        raise InputError(
            f"{path} is a recording of format {header.version}.{header.trace_version}, written by trnsim "
            f"{header.trnsim}; this trnsim reads format {VERSION}.{TRACE_VERSION}: record the kernels again"
        )
    try:
        return msgspec.msgpack.decode(data, type=Recording)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is a damaged recording: {error}") from error


def time_again(
    call: SavedCall,
    *,
    chip: Chip | None = None,
    schedule: str | None = None,
    clock: str | None = None,
    strict_capacity: bool = False,
) -> KernelCall:
    """Predict the time of a recorded call, on ``chip`` or where it was recorded, with the options it had or other ones.

    Raises:
        HardwareError, CompilerError: it cannot run on ``chip``: what, why, and where in the kernel.
        InputError: the chip that it was recorded on is not known here.
    """
    if chip is None:
        chip = _recorded_chip(call)
    if chip.core is None:
        raise InputError(f"{chip.name} has no NeuronCore to time {call.kernel} on")
    traces = [Trace.unpacked(t) for t in call.traces]
    if len(traces) > 1 and chip.core.version == "v2":
        raise CompilerError(
            f"{call.kernel} was recorded on a logical core of {len(traces)} cores; NeuronCore-v2 has none",
            operand="lnc", value=len(traces), limit=1,
        )  # fmt: skip
    release = Release(call.nki_version, call.nki_version_source)
    ported = tuple(retarget(t, chip, release) for t in traces)
    options = SimulationOptions(
        numeric=call.numeric,
        schedule=schedule or call.schedule,
        clock=clock or call.clock,
        strict_capacity=strict_capacity,
    )
    timed = time_traces(ported, chip, options, release.version)
    return replace(
        timed,
        kernel=call.kernel,
        arguments=tuple(call.arguments),
        findings=(*(_finding(f) for f in call.findings), *timed.findings),
        numeric=False,
        seed=call.seed,
        nki_version=call.nki_version,
        nki_version_source=call.nki_version_source,
        source=(call.source, call.source_sha256),
    )


def _recorded_chip(call: SavedCall) -> Chip:
    for name in filter(None, (call.chip_file, call.chip)):
        try:
            return load_chip(name)
        except InputError:
            continue
    where = f" from {call.chip_file}" if call.chip_file else ""
    raise InputError(f"{call.kernel} was recorded on {call.chip}{where}, which is not there: choose one with --chip")


def _saved(call: KernelCall, chip: str | None) -> SavedCall:
    own = len(call.findings) - len(getattr(call.timeline, "findings", ()))
    return SavedCall(
        kernel=call.kernel,
        chip=call.chip,
        chip_file=chip if chip is not None and ".toml" in chip else "",
        schedule=call.schedule,
        clock=call.clock,
        arguments=list(call.arguments),
        numeric=call.numeric,
        seed=call.seed,
        nki_version=call.nki_version,
        nki_version_source=call.nki_version_source,
        source=call.source[0],
        source_sha256=call.source[1],
        findings=[_saved_finding(f) for f in call.findings[:own]],
        traces=[_trace(t).packed() for t in call.traces],
    )


def _trace(trace: Any) -> Trace:
    assert isinstance(trace, Trace)
    return trace


def _saved_finding(finding: Finding) -> SavedFinding:
    where = finding.location
    details = {str(k): v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in finding.details.items()}
    location = (where.file, where.line, where.function) if where else None
    return SavedFinding(finding.kind, finding.message, finding.severity, location, finding.count, details)


def _finding(saved: SavedFinding) -> Finding:
    values = {f: getattr(saved, f) for f in saved.__struct_fields__}
    return Finding(**{**values, "location": Location(*saved.location) if saved.location else None})
