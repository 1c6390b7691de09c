"""Tensors of NKI 0.1: views through index expressions, block dimensions, Python operators, unplaced results.

A call that returns a tile is not recorded at once. What it returns, a ``Result``, knows its shape and dtype; its
instruction is recorded when it is assigned (``t[...] = call``: the target is the destination, cast included) or, before
anything else is recorded, with a new tile as destination. So no temporary, copy or addition is recorded that the
program does not ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trnsim.errors import CompilerError
from trnsim.machine import core as machine
from trnsim.machine.core import Core
from trnsim.machine.form import HBM, PSUM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.beta1.access import Check, subscript, verify
from trnsim.nki.versions.beta1.index import Predicate
from trnsim.numerics import DType, as_dtype

if TYPE_CHECKING:
    from types import CodeType
    from typing import Self

    from trnsim.nki.versions.beta1.programs import Program
    from trnsim.nki.versions.beta1.rules import Parameters


class State:
    """What a program of NKI 0.1 keeps beside its core.

    ``shared`` are the shared HBM tensors of all programs on the core; ``program`` is None without a launch grid;
    ``code`` is the kernel's, ``loops`` where in it the bodies of its loops are.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.grid: tuple[int, ...] = ()
        self.ids: tuple[int, ...] = ()
        self.pending: Result | None = None
        self.shared: list[Tensor] = []
        self.shared_count = 0
        self.lazy_zeros: dict[int, NkiTensor] = {}
        self.reductions: dict[Any, Tensor] = {}
        self.program: Program | None = None
        self.parameters: Parameters | None = None
        self.code: CodeType | None = None
        self.loops: set[tuple[int, int]] = set()


def state() -> State:
    """The state of the running launch.

    Raises:
        CompilerError: no kernel is running, or one of another release.
    """
    core = machine.current()
    found = core.state.get("beta1")
    if found is None:
        release = core.launch.release
        if release.version != "0.1":
            raise CompilerError(
                f"a kernel of NKI {release.version} calls neuronxcc.nki, which is NKI 0.1: a kernel uses one release; "
                "import the functions from nki, or nki.jit from neuronxcc"
            )
        found = core.state["beta1"] = State(core)
        core.legalizes = True
    return cast("State", found)


def flush() -> State:
    """Record the call whose result waits for a place; every function that records something begins with this."""
    current = state()
    pending = current.pending
    if pending is not None:
        pending.materialize()
    return current


def public_dtype(kind: DType) -> Any:
    """A dtype as kernels of NKI 0.1 see it: NumPy's."""
    if kind == "bool":
        return np.dtype(np.bool_)
    return kind if kind == "tfloat32" or kind.kind == "packed" else kind.numpy


class Tensor:
    """A tile in SBUF or PSUM, a tensor in HBM, or a view of one."""

    __slots__ = ("_view", "checks", "kind", "mask", "parameter", "shape")

    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(
        self, view: NkiTensor | None, shape: tuple[int, ...], kind: DType, checks: tuple[Check, ...] = ()
    ) -> None:
        self._view, self.shape, self.kind, self.checks = view, shape, kind, checks
        self.mask: Any = None
        self.parameter = False

    @property
    def tile(self) -> NkiTensor:
        """The strided view of the machine."""
        assert self._view is not None
        return self._view

    @property
    def dtype(self) -> Any:
        return public_dtype(self.kind)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.kind.itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def memory(self) -> str:
        return self.tile.storage.memory

    @property
    def buffer(self) -> Any:
        return self.tile.buffer

    @property
    def name(self) -> str:
        return self.tile.name

    def checked(self) -> NkiTensor:
        """The view, which must lie inside its tensor."""
        for check in self.checks:
            verify(check, self.tile.name)
        return self.tile

    def __repr__(self) -> str:
        return f"tensor {self.kind} {self.shape}"

    def __bool__(self) -> bool:
        if self.parameter:
            core = machine.current()
            core.launch.add_finding(
                "tensor-truth-value",
                f"the truth value of parameter {self.name!r} is asked for, which the compiler of NKI 0.1 refuses: "
                "write `is not None`",
                core.caller_line(),
            )
            return True
        if self.size == 1:
            raise CompilerError("dynamic control-flow depending on tensor value is not supported", value=repr(self))
        raise CompilerError(
            "Cannot evaluate truth value of a multi-element tensor/array: use ~, & and | instead of not, and and or",
            value=repr(self),
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        raise CompilerError("a tensor cannot be iterated over; index it", value=repr(self))

    # -- views -----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, Predicate):
            result = Tensor(self.tile, self.shape, self.kind, self.checks)
            result.mask = key
            return result
        view, checks = subscript(self, tuple(key) if isinstance(key, tuple) else (key,))
        return Tensor(view, view.shape, view.dtype, checks)

    def __setitem__(self, key: Any, value: Any) -> None:
        assign(self[key], value)

    def blocks_of_it(self, value: Any = None) -> list[tuple[Tensor, Any]]:
        """Its blocks, each with its part of ``value``; none if it is one tile."""
        del value
        return []

    def _same(self, view: NkiTensor) -> Tensor:
        result = Tensor(view, view.shape, view.dtype)
        result.parameter = self.parameter
        return result

    def reshape(self, shape: Sequence[int]) -> Tensor:
        """The same elements with another shape."""
        return self._same(self.checked().reshape(tuple(int(n) for n in shape)))

    def expand_dims(self, axis: int) -> Tensor:
        """A new dimension of size 1."""
        return self._same(self.checked().expand_dim(axis))

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        """Repeated to ``shape``: a view along free dimensions, a copy from one partition to many."""
        from trnsim.nki.versions.beta1.language import broadcast_to

        return cast("Tensor", broadcast_to(self, shape=shape))

    def astype(self, dtype: Any) -> Tensor:
        """A copy in another dtype."""
        from trnsim.nki.versions.beta1.language import copy

        return cast("Tensor", copy(self, dtype=dtype))

    def view(self, dtype: Any) -> Tensor:
        """The same bytes as another dtype."""
        return self._same(self.checked().view(as_dtype(dtype)))

    def assert_shape(self, shape: Sequence[int]) -> Tensor:
        """Itself; raises CompilerError if it has another shape."""
        if tuple(shape) != self.shape:
            raise CompilerError("assert_shape failed", value=self.shape, limit=tuple(shape))
        return self

    # -- operators -------------------------------------------------------------------------------------------------

    def _operate(self, name: str, x: Any, y: Any) -> Any:
        from trnsim.nki.versions.beta1.functions import binary

        if not isinstance(x, _OPERANDS) or not isinstance(y, _OPERANDS):
            return NotImplemented
        return binary(name, x, y)

    def __iadd__(self, other: Any) -> Self:
        accumulate(self, other)
        return self

    def _in_place(self, name: str, other: Any) -> Self:
        from trnsim.nki.versions.beta1.functions import binary

        assign(self, binary(name, self, other))
        return self

    def __isub__(self, other: Any) -> Self:
        return self._in_place("subtract", other)

    def __imul__(self, other: Any) -> Self:
        return self._in_place("multiply", other)

    def __itruediv__(self, other: Any) -> Self:
        return self._in_place("divide", other)

    def __neg__(self) -> Any:
        return self._operate("multiply", self, -1.0)

    def __invert__(self) -> Any:
        from trnsim.nki.versions.beta1.language import invert

        return invert(self)


_OPERANDS = (Tensor, int, float, np.generic)


def _operator(name: str, reverse: bool) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        return self._operate(name, other, self) if reverse else self._operate(name, self, other)

    return method


for _python, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "mod": "mod",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}.items():  # fmt: skip
    setattr(Tensor, f"__{_python}__", _operator(_name, reverse=False))
    setattr(Tensor, f"__r{_python}__", _operator(_name, reverse=True))
for _python, _name in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(Tensor, f"__{_python}__", _operator(_name, reverse=False))


class Result(Tensor):
    """The result of a call that no instruction has been recorded for yet.

    ``emit(dst)`` records it with destination ``dst``; ``memory`` is where the engine can write (``psum`` for TensorE,
    ``sbuf`` for anywhere on chip); ``add(dst)`` records a multiplication that adds to ``dst``.
    """

    __slots__ = ("add", "emit", "line", "place_in")

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: DType,
        emit: Callable[[Tensor], None],
        memory: str = "sbuf",
        add: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(None, shape if len(shape) > 1 else (*shape, 1), kind)
        self.emit, self.place_in, self.add = emit, memory, add
        current = state()
        self.line = current.core.caller_line()
        current.pending = self

    @property
    def tile(self) -> NkiTensor:
        if self._view is None:
            self.materialize()
        assert self._view is not None
        return self._view

    @property
    def waits(self) -> bool:
        """True until its instruction is recorded."""
        return state().pending is self

    def materialize(self, kind: DType | None = None) -> None:
        """Record it with a new tile as destination, of another dtype if that is where it goes next."""
        self.kind = kind or self.kind
        current = state()
        core = current.core
        before, core.pinned_line = core.pinned_line, self.line
        current.pending = None
        try:
            self._view = core.ndarray(self.shape, self.kind, self.place_in)
            self.emit(Tensor(self._view, self.shape, self.kind))
        finally:
            core.pinned_line = before

    def record(self, function: Callable[[Tensor], None], dst: Tensor) -> None:
        """Record it with ``dst`` as destination; it then stands for ``dst``."""
        current = state()
        core = current.core
        before, core.pinned_line = core.pinned_line, self.line
        current.pending = None
        try:
            function(dst)
        finally:
            core.pinned_line = before
        self._view = dst.tile if dst.tile.shape == self.shape else None
        if self._view is None:
            self._view, self.shape = dst.tile, dst.tile.shape
        self.kind, self.checks = dst.kind, dst.checks


# -- assignment --------------------------------------------------------------------------------------------------------


def assign(target: Tensor, value: Any) -> None:
    """``target[...] = value``."""
    from trnsim.nki.versions.beta1 import moves

    if target.blocks_of_it():
        for part, tile in target.blocks_of_it(value):
            assign(part, tile)
        return
    if isinstance(value, Tensor) and value.size > target.size:
        raise CompilerError(
            f"Illegal assignment destination shape in 'a = b': shape {list(target.shape)} of parameter 'a' is smaller "
            f"than other parameter shapes b{list(value.shape)}",
            value=repr(target),
        )
    if isinstance(value, Result) and value.waits and target.memory != HBM:
        dst = _as_destination(target, value)
        if dst is not None:
            drop_zeros(dst, reads=False)
            value.record(value.emit, dst)
            return
    flush()
    if isinstance(value, Tensor):
        a, b = target.tile, value.tile
        same = a.storage is b.storage and a.offset == b.offset and a.strides == b.strides and a.shape == b.shape
        if same:
            return
        moves.move(target, value)
    else:
        moves.fill(target, value)


def _as_destination(target: Tensor, value: Result) -> Tensor | None:
    """``target`` with the shape of ``value``, if an instruction can write it directly."""
    if value.place_in == PSUM and target.memory != PSUM:
        return None
    if target.shape == value.shape:
        return target
    if target.checks or target.size != value.size or target.shape[0] != value.shape[0]:
        return None
    try:
        view = target.tile.reshape(value.shape)
    except CompilerError:
        return None
    return Tensor(view, value.shape, target.kind)


def accumulate(target: Tensor, value: Any) -> None:
    """``target += value``: a multiplication that waits for its place adds into PSUM by itself."""
    if isinstance(value, Result) and value.waits and value.add is not None and target.memory == PSUM:
        dst = _as_destination(target, value)
        if dst is not None:
            value.record(value.add, dst)
            return
    target._in_place("add", value)


def drop_zeros(x: Tensor, *, reads: bool) -> None:
    """PSUM made by ``nl.zeros`` costs no memset if multiplications write it; fill what they left before other uses."""
    from trnsim.isa import vector

    current = state()
    zeros = current.lazy_zeros
    if not zeros or x.tile.storage.id not in zeros:
        return
    whole = zeros.pop(x.tile.storage.id)
    storage = whole.storage
    if storage.pe_regions is None:
        if reads or x.tile.size != whole.size:
            vector.memset(whole, 0)
        return
    missing = storage.coverage.missing(0, storage.rows, np.array([[0, storage.row_bytes]], np.int64))
    if missing:
        if current.core.numeric:
            storage.clear(missing)
        else:
            current.core.clears[len(current.core.trace)] = (storage, missing)
        storage.full = True
