"""One core while a kernel runs on it: it makes storages, records instructions, and computes their results.

Recording an instruction appends integers to the core's trace. With numbers (the default) the result is computed at
once; in a time-only run nothing is, until control flow, an address or the caller needs a value (``lazy.py``).
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trnsim.errors import (
    CompilerError,
    Finding,
    HardwareError,
    InputError,
    Location,
    NeedsDataError,
    TrnsimError,
    UndefinedBehaviorError,
)
from trnsim.machine.form import HBM, PSUM, SBUF, Form
from trnsim.machine.products import Products, forget, unwritten
from trnsim.machine.regions import MemoryRegion
from trnsim.machine.registers import Cell, VirtualRegister, wrap32
from trnsim.machine.storage import Arena, Storage, box
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import READ, UPDATE, WRITE, LineTable, StorageInfo, Trace
from trnsim.numerics import DType, as_dtype
from trnsim.releases import DEFAULT, LATEST, Release

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trnsim.hardware import Chip
    from trnsim.machine.trace import InstructionClass

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Exchange(Protocol):
    """How the cores of a launch meet; see ``launch.py``."""

    def post(self, core: Core, key: Any, tensor: NkiTensor) -> None:
        """Leave a copy of ``tensor`` for the other cores under ``key``."""

    def received(self, key: Any, rank: int) -> Any:
        """What core ``rank`` posted under ``key``."""

    def rendezvous(self, core: Core, key: Any, what: str) -> None:
        """Wait until every core has come to ``key``."""


class Launch:
    """What the cores of one kernel call share: storages, source lines, findings, options."""

    def __init__(
        self, chip: Chip, *, kernel: str = "", lnc: int = 1, numeric: bool = True, seed: int = 0, assume: Any = None,
        release: Release = DEFAULT,
    ) -> None:  # fmt: skip
        if chip.core is None:
            raise InputError(f"chip {chip.name!r} has no NeuronCore; NKI kernels need a Trainium or Inferentia2 chip")
        self.chip = chip
        self.spec = chip.core
        self.generation: str = chip.core.version
        self.release = release
        self.kernel = kernel
        self.lnc = lnc
        self.numeric = numeric
        self.seed = seed
        self.assume: dict[str, int] = dict(assume or {})
        self.storages: list[Storage | None] = []
        self.infos: list[StorageInfo] = []
        self.shared: list[Storage] = []
        self.lines = LineTable()
        self.findings: dict[tuple[Any, ...], Finding] = {}
        self.cores = [Core(self, index) for index in range(lnc)]
        self.grid: int | None = None
        self.exchange: Exchange | None = None
        self.progress: Any = None
        self.zero_unwritten = False
        self.quiet = False  # whether NumPy's floating-point warnings are off while it runs

    def fill_unwritten(self, storage: Storage, bands: list[tuple[int, int, Any]]) -> None:
        """Give bytes that nothing wrote the values that a read of them finds."""
        if self.zero_unwritten:
            storage.clear(bands)
        else:
            storage.fill_missing(bands)

    def keep_step(self, core: Core) -> None:
        """Called before ``core`` touches HBM, where it may meet other cores."""

    def add_finding(self, kind: str, message: str, line: int, *, severity: str = "warning", **details: Any) -> None:
        """Report ``message`` once a source line; repeats are counted."""
        key = (kind, line, message)
        finding = self.findings.get(key)
        if finding is None:
            location = self.lines.locations[line] if line else None
            self.findings[key] = Finding(kind, message, severity, location, details=details)
        else:
            finding.count += 1

    def add_storage(self, storage: Storage, *, shared: bool = False, row: int = 0, line: int = 0) -> None:
        storage.declared, storage.line = row, line
        # With numbers, a storage's bytes live as long as the kernel holds a view of it.
        self.storages.append(storage if not self.numeric or shared or storage.kind != "local" else None)
        self.infos.append(
            StorageInfo(
                storage.id,
                storage.name,
                storage.memory,
                str(storage.dtype),
                storage.shape,
                storage.rows,
                storage.row_bytes,
                storage.address,
                storage.kind,
                shared,
                row,
                line,
            )
        )


class Core:
    """The state of one NeuronCore during a kernel call."""

    def __init__(self, launch: Launch, index: int) -> None:
        self.launch = launch
        self.index = index
        self.generation = launch.generation
        # What an instruction's rules depend on besides a call's operands; key of the classes that passed them.
        self.rules = (
            self.generation if launch.release.version == LATEST else f"{self.generation} {launch.release.version}"
        )
        self.numeric = launch.numeric
        self.trace = Trace(
            index,
            launch.generation,
            launch.chip.name,
            kernel=launch.kernel,
            lnc=launch.lnc,
            lines=launch.lines.locations,
            storages=launch.infos,
        )
        self.region = 0
        self.regions = 0
        self.loops = 0
        self.immediates: list[tuple[Any, ...]] = [()]
        self.templates: dict[Any, Any] = {}
        self.places: dict[tuple[int, int], int] = {}
        self.codes: list[Any] = []
        spec = launch.spec
        self.arenas = {
            SBUF: Arena(SBUF, spec.sbuf.partitions, spec.sbuf.bytes_per_partition),
            PSUM: Arena(PSUM, spec.psum.partitions, spec.psum.banks * spec.psum.bytes_per_bank),
        }
        self.state: dict[str, Any] = {}
        self.shared_count = 0
        self.executed: Any = None
        self.rows: Any = None  # by what they touch: see ``lazy``
        self.tensor_names: dict[str, int] = {}
        self.pipes: dict[Any, int] = {}
        self.pending_rendezvous: Any = None
        self.clears: dict[int, Any] = {}
        # NKI 0.1 records a call after the line that made it, and its compiler splits accesses that may not start where
        # they do.
        self.pinned_line = 0
        self.legalizes = False
        self.legalized: dict[Any, InstructionClass] = {}

    # -- storages --------------------------------------------------------------------------------------------------

    def ndarray(
        self,
        shape: Sequence[int],
        dtype: Any,
        buffer: Any = MemoryRegion.sbuf,
        name: str = "",
        address: Any = None,
    ) -> NkiTensor:
        """Make a tensor. See ``nki.language.ndarray``.

        Raises:
            HardwareError: more partitions than the memory has, one tensor larger than its memory, or an explicit
                address beyond it.
        """
        key = (shape, dtype, buffer) if type(shape) is tuple else (tuple(shape), dtype, buffer)
        try:
            template = self.templates.get(key)
        except TypeError:
            template = None
        if template is None:
            template = self._template(key[0], dtype, buffer)
        memory, kind, sizes, strides, rows, row_bytes, form, region = template
        launch = self.launch
        if region is MemoryRegion.shared_hbm and launch.lnc > 1:
            return self._shared(sizes, kind, region, name, template)
        number = len(launch.storages)
        line = self.caller_line()
        label = name or launch.lines.variable(line) or f"t{number}"
        storage = Storage(number, label, memory, region, kind, sizes, rows, row_bytes)
        storage.core = self.index
        if address is not None:
            self._place(storage, address)
            form = None
        else:
            storage.whole = form
        if name:
            self._name(name)
        launch.add_storage(storage, row=len(self.trace), line=line)
        return NkiTensor(sizes, kind, storage, strides, 0, form)

    def _template(self, shape: tuple[Any, ...], dtype: Any, buffer: Any) -> tuple[Any, ...]:
        sizes = tuple(int(n) for n in shape)
        kind = as_dtype(dtype)
        region = as_region(buffer)
        memory = region.memory
        # Kernels for NKI 0.2 make tensors before they check the sizes that they were given, 0 among them.
        least = 0 if self.launch.release.version == "0.2" else 1
        if not sizes or min(sizes) < least:
            raise CompilerError(f"every dimension of a tensor must be at least {least}", operand="shape", value=sizes)
        strides = [1] * len(sizes)
        for i in range(len(sizes) - 2, -1, -1):
            strides[i] = strides[i + 1] * (sizes[i + 1] or 1)
        spec = self.launch.spec
        if memory == HBM:
            rows, row_bytes = int(np.prod(sizes[:-1], dtype=np.int64)), (sizes[-1] or 1) * kind.itemsize
        else:
            if len(sizes) < 2:
                sizes, strides = (*sizes, 1), [1, 1]
            rows, row_bytes = sizes[0], strides[0] * kind.itemsize
            if memory == SBUF:
                partitions, capacity, what = spec.sbuf.partitions, spec.sbuf.bytes_per_partition, "SBUF"
            else:
                partitions, what = spec.psum.partitions, "PSUM"
                capacity = spec.psum.banks * spec.psum.bytes_per_bank
            if rows > partitions:
                raise HardwareError(
                    f"partition size {rows} exceeds {partitions}",
                    instruction="nl.ndarray",
                    operand=f"shape {sizes} in {what}",
                    value=rows,
                    limit=partitions,
                    generation=self.generation,
                )
            if row_bytes > capacity:
                raise HardwareError(
                    f"one tensor needs {row_bytes} bytes a partition, more than {what} has",
                    instruction="nl.ndarray",
                    operand=f"{kind} {sizes}",
                    value=f"{row_bytes} bytes",
                    limit=f"{capacity} bytes",
                    generation=self.generation,
                )
        form_strides = tuple(strides) if memory == HBM else (1, *strides[1:])
        form = Form.of(memory, kind, sizes, form_strides, 0, 0)
        template = (memory, kind, sizes, tuple(strides), rows, row_bytes, form, region)
        self.templates[(shape, dtype, buffer)] = template
        return template

    def _place(self, storage: Storage, address: Any) -> None:
        if storage.memory == HBM:
            raise CompilerError("address= is for SBUF and PSUM tensors", instruction="nl.ndarray", value=address)
        start, offset = (int(x) for x in address)
        arena = self.arenas[storage.memory]
        what = storage.memory.upper()
        if start < 0 or start + storage.rows > arena.partitions:
            raise HardwareError(
                f"address {address} with {storage.rows} partitions runs beyond {what}",
                instruction="nl.ndarray",
                operand="address",
                value=f"partitions {start} to {start + storage.rows - 1}",
                limit=f"{arena.partitions} partitions",
                generation=self.generation,
            )
        if offset < 0 or offset + storage.row_bytes > arena.pitch:
            raise HardwareError(
                f"address {address} with {storage.row_bytes} bytes a partition runs beyond {what}",
                instruction="nl.ndarray",
                operand="address",
                value=f"bytes {offset} to {offset + storage.row_bytes - 1}",
                limit=f"{arena.pitch} bytes a partition",
                generation=self.generation,
            )
        check_start_partition(start, storage.rows, "nl.ndarray", "address", self.generation)
        bank = self.launch.spec.psum.bytes_per_bank
        if storage.memory == PSUM and offset % bank and offset % bank + storage.row_bytes > bank:
            raise HardwareError(
                "a PSUM tensor may not straddle banks unless it starts at one",
                instruction="nl.ndarray",
                operand="address",
                value=offset,
                limit=f"banks of {bank} bytes",
                generation=self.generation,
            )
        arena.place(storage, start, offset)

    def _name(self, name: str) -> None:
        count = self.tensor_names.get(name, 0)
        self.tensor_names[name] = count + 1
        if count == 1:
            self.launch.add_finding(
                "duplicate-name", f"tensor name {name!r} is used more than once in the kernel", self.caller_line()
            )

    def _shared(
        self, sizes: tuple[int, ...], kind: DType, region: MemoryRegion, name: str, template: tuple[Any, ...]
    ) -> NkiTensor:
        """shared_hbm under LNC=2: both cores' n-th allocation is one storage."""
        launch = self.launch
        index = self.shared_count
        self.shared_count += 1
        if index == len(launch.shared):
            number = len(launch.storages)
            label = name or launch.lines.variable(self.caller_line()) or f"shared{index}"
            storage = Storage(number, label, HBM, region, kind, sizes, template[4], template[5])
            launch.add_storage(storage, shared=True, row=len(self.trace), line=self.caller_line())
            launch.shared.append(storage)
        storage = launch.shared[index]
        if storage.shape != sizes or storage.dtype != kind:
            raise CompilerError(
                f"core {self.index} allocates {kind} {sizes} as its shared_hbm tensor {index}, "
                f"the other core {storage.dtype} {storage.shape}: all cores must allocate the same",
                instruction="nl.ndarray",
            )
        return NkiTensor(sizes, kind, storage, template[3], 0, template[6])

    def input(self, value: Any, name: str) -> NkiTensor:
        """An HBM tensor over a NumPy array of the caller (or over a shape without data)."""
        kind = as_dtype(value.dtype)
        sizes = tuple(int(n) for n in value.shape) or (1,)
        strides = [1] * len(sizes)
        for i in range(len(sizes) - 2, -1, -1):
            strides[i] = strides[i + 1] * sizes[i + 1]
        launch = self.launch
        storage = Storage(
            len(launch.storages),
            name,
            HBM,
            # Kernels ask: those of the MX guide, on one core, expect nl.hbm; nki-library, on two, shared_hbm. In 0.2
            # they are the same.
            MemoryRegion.shared_hbm if launch.lnc > 1 or launch.release.version == "0.2" else MemoryRegion.private_hbm,
            kind,
            sizes,
            int(np.prod(sizes[:-1], dtype=np.int64)),
            sizes[-1] * kind.itemsize,
        )
        storage.kind = "input"
        storage.full = True
        if isinstance(value, np.ndarray):
            data = value if value.flags.c_contiguous else np.ascontiguousarray(value)
            storage.base = data.reshape(-1).view(np.uint8)
            storage.writable = bool(data.flags.writeable)
            storage.host = value
        else:
            storage.writers = -1  # no data behind it
        launch.add_storage(storage, shared=launch.lnc > 1)
        return NkiTensor(sizes, kind, storage, tuple(strides))

    def constant(self, data: np.ndarray[Any, Any], memory: MemoryRegion, name: str = "") -> NkiTensor:
        """A storage with ``data`` in it from the start."""
        tensor = self.input(np.ascontiguousarray(data), name or f"constant{len(self.launch.storages)}")
        tensor.storage.kind = "constant"
        tensor.storage.buffer = memory
        self.launch.infos[tensor.storage.id].kind = "constant"
        return tensor

    # -- recording -------------------------------------------------------------------------------------------------

    def caller_line(self) -> int:
        """The line of the kernel's source that is being executed."""
        if self.pinned_line:
            return self.pinned_line
        frame = sys._getframe(2)
        known = self.places
        while True:
            code = frame.f_code
            place = known.get((id(code), frame.f_lasti))
            if place is None:
                ours = code.co_filename.startswith((_PACKAGE, "<nki.")) and not (
                    code.co_filename.startswith(_PACKAGE + "kernels")
                )
                self.codes.append(code)  # keeps its id its own
                place = -1 if ours and frame.f_back is not None else self.launch.lines.of(code, frame.f_lineno)
                known[id(code), frame.f_lasti] = place
            if place >= 0:
                return place
            assert frame.f_back is not None
            frame = frame.f_back

    def emit(
        self,
        klass: InstructionClass,
        operands: tuple[NkiTensor, ...],
        immediate: tuple[Any, ...] = (),
        name: str | None = None,
    ) -> int:
        """Record one instruction and, with numbers, execute it. Returns its row in the trace."""
        if klass.in_hbm and self.launch.lnc > 1:
            self.launch.keep_step(self)
        trace = self.trace
        rows = trace.operand_rows
        first = len(rows) // 4
        line = self.caller_line()
        written = []  # settled after all that is read: an instruction may read what it writes
        for tensor, role in zip(operands, klass.roles):  # noqa: B905
            storage = tensor.storage
            form = tensor._form or tensor.form
            start, offset = 0, tensor.offset
            if offset:
                offset *= tensor.dtype.itemsize
                if storage.memory != HBM:
                    start, offset = divmod(offset, storage.row_bytes)
            rows.extend((storage.id, start, offset, form.id))
            if role != WRITE and not storage.full and (start, offset, form.id) not in storage.known:
                self._check_written(tensor, form, start, offset, line, klass.name)
            if role != READ:
                if not storage.full:
                    written.append((storage, form, start, offset))
                if storage.pe_regions is not None and not klass.is_matmul:
                    forget(storage, form, start, offset)
                if storage.pins is not None:
                    storage.pins.flush()  # before the count: what it keeps is of the bytes before this write
                storage.writers += 1
        for storage, form, start, offset in written:
            if klass.partial and self.numeric:
                self._fill_around(storage, form, start, offset)
            if form is storage.whole:
                storage.full = True
            elif storage.arena is not None or (start, offset, form.id) not in storage.known:
                self._mark_written(storage, form, start, offset)
        index = 0
        if immediate and not self.numeric:
            index = len(self.immediates)
            self.immediates.append(immediate)
        rendezvous = -1
        if self.pending_rendezvous is not None:
            rendezvous = len(trace.rendezvous)
            trace.rendezvous.append(self.pending_rendezvous)
            self.pending_rendezvous = None
        row = len(trace.instruction_rows) // 6
        trace.instruction_rows.extend((klass.id, line, index, first, self.region, rendezvous))
        if name is not None:
            if name in trace.names:
                self.launch.add_finding(
                    "duplicate-name", f"instruction name {name!r} is used more than once in the kernel", line
                )
            trace.names[name] = row
        if self.numeric:
            klass.instruction.execute(self, klass, operands, immediate)
        if self.launch.progress is not None and row % 1024 == 0:
            self.launch.progress(self.index, row)
        return row

    def settle(self, tensor: NkiTensor, instruction: str) -> None:
        """Before ``tensor`` is read outside of ``emit``: report what nothing wrote of it, and give that its values."""
        storage, form = tensor.storage, tensor.form
        start, offset = tensor.place()
        if not storage.full and (start, offset, form.id) not in storage.known:
            self._check_written(tensor, form, start, offset, self.caller_line(), instruction)

    def _check_written(
        self, tensor: NkiTensor, form: Form, start: int, offset: int, line: int, instruction: str
    ) -> None:
        storage = tensor.storage
        if form.reach:
            if not self.numeric or not storage.coverage.exact:
                return
            from trnsim.machine.indirection import GROUP, TENSOR_GROUP
            from trnsim.machine.indirection import touched as gathered

            group = TENSOR_GROUP if instruction.startswith("nki.isa.nc_matmul") else GROUP
            touched: Any = (start, start + form.partition_span, gathered(self, tensor, group, line))
        elif form.indirect > 0:
            touched = (0, storage.rows, np.array([[0, storage.row_bytes]], np.int64))
            if storage.coverage.bands or not storage.coverage.exact:
                return
        else:
            touched = box(storage, form, start, offset)
        if touched is None:
            return
        low, high, intervals = touched
        missing = [
            band
            for first, last in _row_ranges(form, low, high)
            for band in storage.coverage.missing(first, last, intervals)
        ]
        if not form.indirect:
            storage.known.add((start, offset, form.id))
        if missing:
            count = sum((high - low) * int((iv[:, 1] - iv[:, 0]).sum()) for low, high, iv in missing)
            self.launch.add_finding(
                "uninitialized-read",
                f"{instruction} reads {storage.name!r} ({storage.dtype} {storage.shape} in {storage.memory}) "
                "where nothing was written",
                line,
                bytes=count,
            )
            if self.numeric:
                self.launch.fill_unwritten(storage, missing)
            for low, high, intervals in missing:
                for begin, end in intervals.tolist():
                    storage.coverage.add(low, high, begin, end)
            storage.full = storage.coverage.full

    def _fill_around(self, storage: Storage, form: Form, start: int, offset: int) -> None:
        """Before an instruction writes part of ``form``, all of which then counts as written: settle the rest of it."""
        touched = None if form.indirect else box(storage, form, start, offset)
        low, high, intervals = touched or (0, storage.rows, np.array([[0, storage.row_bytes]], np.int64))
        rows = [(low, high)] if form.indirect or touched is None else _row_ranges(form, low, high)
        for first, last in rows:
            missing = storage.coverage.missing(first, last, intervals)
            if missing:
                self.launch.fill_unwritten(storage, missing)

    def _mark_written(self, storage: Storage, form: Form, start: int, offset: int) -> None:
        coverage = storage.coverage
        if form.indirect:
            coverage.exact = False
            coverage.bands.clear()
            return
        if form.contiguous and form.memory != HBM and form.strides[0] == 1:
            coverage.add(start, start + form.partition_span, offset, offset + form.span)
        else:
            touched = box(storage, form, start, offset)
            if touched is None:
                coverage.exact = False
                coverage.bands.clear()
                return
            low, high, intervals = touched
            for first, last in _row_ranges(form, low, high):
                if len(intervals) == 1:
                    coverage.add(first, last, int(intervals[0, 0]), int(intervals[0, 1]))
                else:
                    coverage.add_runs(first, last, intervals[:, 0], int(intervals[0, 1] - intervals[0, 0]))
        storage.full = coverage.full
        if storage.full:
            storage.known.clear()
        else:
            storage.known.add((start, offset, form.id))
        if storage.arena is not None:
            self._mark_aliases(storage, form, start, offset)

    @staticmethod
    def _mark_aliases(storage: Storage, form: Form, start: int, offset: int) -> None:
        assert storage.address is not None
        for other in storage.arena.unwritten(storage):
            assert other.address is not None
            row = start + storage.address[0] - other.address[0]
            byte = offset + storage.address[1] - other.address[1]
            begins = form.interval_offsets + byte
            ends = begins + form.levels[-1][1]
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                begin, end = max(0, begin), min(other.row_bytes, end)  # noqa: PLW2901
                for first, last in _row_ranges(form, row, row + form.partition_span):
                    low, high = max(0, first), min(other.rows, last)
                    if low < high and begin < end:
                        other.coverage.add(low, high, begin, end)
            other.full = other.coverage.full

    def accumulates(self, dst: NkiTensor, accumulate: bool | None) -> bool:
        """Whether a matmul into ``dst`` adds to what PSUM holds, by NKI's rule, and remember that it wrote there.

        ``None`` means: overwrite where no matmul has written since the tensor was made or since another engine wrote
        it, add elsewhere. Where both occur in one tile, the first kind is cleared to zero and all of it is added.
        """
        storage = dst.storage
        form = dst.form
        start, offset = dst.place()
        key = (start, offset, form.id)
        if form.reach:
            from trnsim.machine.indirection import region_key

            key = region_key(dst)
        regions = storage.pe_regions
        if regions is None:
            if accumulate and not storage.full and not storage.coverage.bands:
                self.launch.add_finding(
                    "accumulate-uninitialized",
                    "nc_matmul accumulates into PSUM that nothing has written: undefined on hardware",
                    self.caller_line(),
                )
            elif accumulate and self.generation in ("v2", "v3"):
                self.launch.add_finding(
                    "accumulate-after-non-matmul",
                    "nc_matmul accumulates into PSUM that another instruction initialised: undefined on "
                    f"NeuronCore-{self.generation}",
                    self.caller_line(),
                )
            storage.pe_regions = Products({key: form})
            return bool(accumulate)
        if key in regions:
            return accumulate is None or accumulate
        adds = self._overlapping_matmul(storage, form, start, offset) if accumulate is None else bool(accumulate)
        regions[key] = form
        return adds

    def _overlapping_matmul(self, storage: Storage, form: Form, start: int, offset: int) -> bool:
        """True if matmuls wrote part of this region last; the rest of it is then cleared."""
        missing = unwritten(storage, form, start, offset)
        if missing is None:
            return False
        for low, high, intervals in missing:
            for begin, end in intervals.tolist():
                storage.coverage.add(low, high, begin, end)
        storage.full = storage.coverage.full
        if missing and self.numeric:
            storage.clear(missing)
        elif missing:
            self.clears[len(self.trace)] = (storage, missing)
        return True

    # -- values a time-only run needs ------------------------------------------------------------------------------

    def force_row(self, row: int) -> None:
        """Execute row ``row`` of the trace and what it depends on."""
        from trnsim.machine.lazy import execute_slice

        execute_slice(self, rows=[row])

    def force(self, tensor: NkiTensor) -> None:
        """Make the bytes of ``tensor`` valid."""
        if not self.numeric:
            from trnsim.machine.lazy import execute_slice

            execute_slice(self, tensors=[tensor])

    def require_data(self, storage: Storage, why: str) -> None:
        """Raise NeedsDataError if ``storage`` is an input that came without data."""
        if storage.writers == -1 or (storage.kind == "input" and storage.base is None):
            raise NeedsDataError(
                f"{why} depends on the data of argument {storage.name!r}, which this time-only run does not have; "
                f"give it with --arg {storage.name}=file.npy, or the value with --assume NAME=VALUE",
                operand=storage.name,
                location=self.launch.lines.locations[self.caller_line()],
            )

    @contextmanager
    def no_reorder(self) -> Iterator[None]:
        """Instructions recorded inside keep their order."""
        outer = self.region
        self.regions += 1
        self.region = outer or self.regions
        try:
            yield
        finally:
            self.region = outer


# -- the core that is running ------------------------------------------------------------------------------------------

_current: Core | None = None


def current() -> Core:
    """The core whose kernel is running.

    Raises:
        CompilerError: no kernel is running: NKI functions work inside a kernel only.
    """
    if _current is None:
        raise CompilerError("NKI functions work only inside a kernel: call it through nki.jit or nki.simulate")
    return _current


def running() -> bool:
    """True while a kernel runs."""
    return _current is not None


def set_current(core: Core | None) -> Core | None:
    """Make ``core`` the running one; returns the one before."""
    global _current
    before, _current = _current, core
    return before


def _row_ranges(form: Form, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The rows from ``low`` to ``high`` that a form touches, as ranges: each alone if it steps over partitions."""
    if form.memory == HBM or form.strides[0] == 1 or form.indirect:
        yield low, high
    else:
        for row in range(low, high, form.strides[0]):
            yield row, row + 1


def as_region(buffer: Any) -> MemoryRegion:
    """A buffer argument as a MemoryRegion; strings as NKI 0.2 allowed them."""
    if isinstance(buffer, MemoryRegion):
        return buffer
    if buffer is None:
        return MemoryRegion.sbuf
    if isinstance(buffer, str):
        old = _current is not None and _current.launch.release.version == "0.2"
        name = ("shared_hbm" if old else "private_hbm") if buffer == "hbm" else buffer
        try:
            return MemoryRegion(name)
        except ValueError:
            pass
    raise CompilerError(
        "buffer must be nl.sbuf, nl.psum, nl.hbm, nl.private_hbm or nl.shared_hbm", operand="buffer", value=buffer
    )


def check_start_partition(start: int, partitions: int, instruction: str, operand: str, generation: str) -> None:
    """Raise HardwareError unless an access of ``partitions`` may start at partition ``start``.

    More than 64 partitions start at 0, 33 to 64 at 0 or 64, up to 32 at 0, 32, 64 or 96.
    """
    if start == 0:
        return
    allowed = (0,) if partitions > 64 else (0, 64) if partitions > 32 else (0, 32, 64, 96)
    if start not in allowed:
        raise HardwareError(
            f"an access of {partitions} partitions cannot start at partition {start}",
            instruction=instruction,
            operand=operand,
            value=start,
            limit=f"start partition in {allowed}",
            generation=generation,
        )


def scalar_index(source: Any, view: NkiTensor) -> int:
    """The value of a run-time scalar index, as the unsigned 32-bit number the bounds check sees."""
    core = current()
    if isinstance(source, VirtualRegister):
        return source.cell.read() % 2**32
    if isinstance(source, NkiTensor):
        if source.size != 1:
            raise CompilerError(
                "a scalar offset is a register or a tensor with one element", operand=view.name, value=source.shape
            )
        if core.numeric:
            return int(source.array().reshape(-1)[0]) % 2**32
        if source.storage.kind == "input":
            core.require_data(source.storage, "an address")
        from trnsim.machine.lazy import read

        return int(read(core, source).reshape(-1)[0]) % 2**32
    if isinstance(source, int):
        return source % 2**32
    raise CompilerError("a scalar offset is a register or a 1x1 tensor", operand=view.name, value=source)


__all__ = [
    "UPDATE", "Cell", "Core", "Launch", "Location", "TrnsimError", "UndefinedBehaviorError", "as_region",
    "check_start_partition", "current", "running", "scalar_index", "set_current", "wrap32",
]  # fmt: skip
