"""How an instruction is written down: once, with its operands, rules, meaning and cost side by side.

::

    @instruction("nki.isa.reciprocal", engines="vector")
    def reciprocal(dst: Out, data: In) -> None:
        ...rules: raise what hardware would...

    @reciprocal.meaning
    def _(data: NkiTensor) -> Array: ...

    @reciprocal.cost
    def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]: ...

The decorator compiles the signature into a function that looks the call's class up by the forms of its operands and its
attributes, and appends integers to the trace. Rules run once a class; they see forms (shape, dtype, memory), never
data.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol, cast

import numpy as np

from trnsim import releases
from trnsim.errors import CompilerError, HardwareError, InternalError, TrnsimError
from trnsim.isa import seen as packing
from trnsim.isa.alu import Activation, AluOp, as_activation, as_alu_op
from trnsim.isa.constants import dge_mode as _DgeMode
from trnsim.isa.constants import engine as Engine
from trnsim.machine import core as machine
from trnsim.machine import indirection
from trnsim.machine.core import Core, check_start_partition
from trnsim.machine.form import HBM, PSUM, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import CLASSES, INSTRUCTIONS, READ, UPDATE, WRITE, InstructionClass, OperandClass
from trnsim.numerics import from_float32
from trnsim.releases import MISSING, CallError

# Annotations of an instruction's parameters. In rules an operand is its Form (None if absent); a number given where a
# tensor may stand is its class there (int or float), and reaches the meaning as it is.
Out = Form
In = Form
Update = Form
OptionalIn = Form | None
OptionalOut = Form | None
Vector = Form | type | None  # a tensor with one element a partition, or a number
Ins = tuple[Form, ...]
Immediate = Any  # a number that changes neither rules nor cost

State = Callable[[dict[str, Any]], str]  # the engine state that a call touches, from what its rules see

_ENUMS = ("dge_mode", "engine", "oob_mode", "reduce_cmd")
_DGE_BY_NUMBER = {mode.value: mode for mode in _DgeMode}


class NkiInstruction:
    """Handle of a recorded instruction, returned by every ISA call."""

    __slots__ = ("_core", "_row")

    def __init__(self, core: Core, row: int) -> None:
        self._core, self._row = core, row

    def depends_on(self, *producers: NkiInstruction) -> NkiInstruction:
        """Run this instruction after each of ``producers``; returns itself."""
        for producer in producers:
            if producer._row >= self._row:
                raise CompilerError("an instruction can only depend on one that was issued before it")
            self._core.trace.edges.append((self._row, producer._row))
        return self


class _KindError(CompilerError):
    """A tensor where something else belongs, or the other way round: often the call of another release."""


class InstructionFunction(Protocol):
    """What ``@instruction`` makes of a function."""

    instruction: Instruction

    def __call__(self, *args: Any, **kwargs: Any) -> NkiInstruction: ...

    def meaning(self, function: Callable[..., Any]) -> Callable[..., Any]: ...

    def cost(self, function: Callable[..., Any]) -> Callable[..., Any]: ...


_ROLES = {"Out": WRITE, "In": READ, "Update": UPDATE, "OptionalIn": READ, "OptionalOut": WRITE, "Vector": READ}


class Instruction:
    """The definition of one instruction."""

    def __init__(
        self,
        name: str,
        rules: Callable[..., Any],
        engines: tuple[str, ...],
        generations: tuple[str, ...],
        state: tuple[str, ...] | State,
        indirect: tuple[str, ...] = (),
    ) -> None:
        self.name, self.rules = name, rules
        self.short = name.split(".")[2]  # what follows tells apart kinds of one documented function
        self.engines, self.generations, self.state = engines, generations, state
        self.indirect = indirect
        self.parameters = list(inspect.signature(rules).parameters.values())
        self.kinds = {p.name: str(p.annotation) for p in self.parameters}
        self.is_matmul = self.short in ("nc_matmul", "nc_matmul_mx")
        self.caches: defaultdict[str, dict[Any, InstructionClass]] = defaultdict(dict)  # by generation and release
        self._legalized = False
        self._meaning: Callable[..., Any] | None = None
        self._meaning_names: tuple[str, ...] = ()
        self._cost: Callable[..., Any] | None = None

    def set_meaning(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._meaning = function
        self._meaning_names = tuple(inspect.signature(function).parameters)
        return function

    def set_cost(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._cost = function
        return function

    def cost(self, timing: Any, klass: InstructionClass, engine: str) -> Any:
        """The work the machine does for an instruction of ``klass`` on ``engine``."""
        if self._cost is None:
            raise InternalError(f"{self.name} has no cost", instruction=self.name)
        return self._cost(timing, klass, engine)

    def wrong_call(self, core: Core | None, other: dict[str, Any]) -> CallError:
        """The error for keywords that the instruction does not have, or else for too many positional arguments."""
        version = core.launch.release.version if core is not None else releases.LATEST
        known = [*self.kinds, "name"]
        if other:
            error = releases.wrong_keywords(self.name, other, version, known)
        else:
            error = releases.too_many_arguments(self.name, version, known)
        if core is not None:
            error.location = core.launch.lines.locations[core.caller_line()]
        return error

    # -- recording, slow path: once a class ------------------------------------------------------------------------

    def classify(self, core: Core | None, values: dict[str, Any], key: Any) -> InstructionClass:
        """Check a call against all rules and make its class."""
        if core is None:
            core = machine.current()
        known = core.legalized.get((self.name, key)) if core.legalized else None
        if known is not None:
            return known
        lacking = [name for name, value in values.items() if value is MISSING]
        try:
            if lacking:
                raise releases.missing_arguments(self.name, lacking, core.launch.release.version, [*self.kinds, "name"])
            return self._classify(core, values, key)
        except TrnsimError as error:
            if isinstance(error, CompilerError) and not lacking:
                shifted = isinstance(error, _KindError) or isinstance(error.value, NkiTensor)
                version = core.launch.release.version
                error.message += (
                    releases.order_hint(self.name, version) if shifted else releases.reordered_hint(self.name)
                )
            error.instruction = error.instruction or self.short
            error.generation = error.generation or core.generation
            if error.location is None:
                error.location = core.launch.lines.locations[core.caller_line()]
            raise

    def _classify(self, core: Core, values: dict[str, Any], key: Any) -> InstructionClass:
        if core.generation not in self.generations:
            raise HardwareError(
                f"{self.short} does not exist on NeuronCore-{core.generation}",
                limit="NeuronCore-" + ", ".join(self.generations),
            )
        seen: dict[str, Any] = {}
        operands: list[OperandClass] = []
        sources: dict[str, tuple[int, Any]] = {}
        attributes: dict[str, Any] = {}
        immediates = 0
        for parameter in self.parameters:
            name, kind, value = parameter.name, self.kinds[parameter.name], values[parameter.name]
            if kind in _ROLES or kind == "Ins":
                place, immediates = immediates, immediates + (kind == "Vector")
                tensors = value if kind == "Ins" else (value,)
                if kind == "Ins" and not isinstance(value, (list, tuple)):
                    raise CompilerError(f"{name} must be a list of tensors", operand=name, value=type(value).__name__)
                if kind == "Vector" and not isinstance(value, NkiTensor):
                    if value is not None and not _is_number(value):
                        raise CompilerError(
                            f"{name} must be a number or a tensor{releases.foreign_tensor(value)}", operand=name,
                            value=type(value).__name__,
                        )  # fmt: skip
                    seen[name] = None if value is None else int if isinstance(value, (int, np.integer)) else float
                    sources[name] = (2, place)
                    continue
                if kind in ("OptionalIn", "OptionalOut") and value is None:
                    seen[name] = None
                    sources[name] = (1, None)
                    continue
                forms = []
                for index, tensor in enumerate(tensors):
                    label = f"{name}{index}" if kind == "Ins" else name
                    if not isinstance(tensor, NkiTensor):
                        raise _KindError(
                            f"{label} must be a tensor of the kernel, not {type(tensor).__name__}"
                            + releases.foreign_tensor(tensor),
                            operand=label,
                            value=type(tensor).__name__,
                        )
                    form = tensor.form
                    self._check_operand(core, label, form)
                    if form.reach:
                        self._check_indirect(label, tensor)
                    sources[label] = (0, len(operands))
                    role = READ if kind == "Ins" else _ROLES[kind]
                    operands.append(OperandClass(label, role, form))
                    if form.indirect > 0:
                        assert tensor.indirection is not None
                        assert tensor.indirection.index is not None
                        operands.append(OperandClass(label + ".index", READ, tensor.indirection.index.form))
                    elif form.indirect < 0 and "oob_mode" not in self.kinds:
                        assert tensor.indirection is not None
                        raise HardwareError(
                            "a run-time index is out of bounds", operand=label, value=tensor.indirection.stride,
                            limit=tensor.indirection.limit,
                        )  # fmt: skip
                    forms.append(form)
                seen[name] = tuple(forms) if kind == "Ins" else forms[0]
                if kind == "Ins":
                    sources[name] = (3, tuple(sources[f"{name}{i}"][1] for i in range(len(forms))))
                continue
            if kind == "Immediate":
                seen[name] = value
                sources[name] = (2, immediates)
                immediates += 1
                continue
            if kind.startswith("AluOp") and value is not None:
                value = as_alu_op(value, name)
                attributes[name] = value.name
            elif kind.startswith("Activation") and value is not None:
                value = as_activation(value, name)
                attributes[name] = value.name
            else:
                if isinstance(value, NkiTensor):
                    raise _KindError(f"{name} takes no tensor", operand=name, value=value)
                if name == "dge_mode" and value in _DGE_BY_NUMBER:  # nki-library gives numbers to NKI 0.3 and later
                    value = _DGE_BY_NUMBER[value]
                if name in _ENUMS and isinstance(value, int):
                    raise CompilerError(
                        f"{name} takes a member of nisa.{name}; numbers are NKI 0.2's", operand=name, value=value
                    )
                attributes[name] = value if _is_plain(value) else str(getattr(value, "name", value))
            seen[name] = value
            sources[name] = (1, value)
        engines = self._engines(seen, attributes)
        plan = tuple((4, None) if n == "core" else sources[n] for n in self._meaning_names)
        state = self.state if isinstance(self.state, tuple) else tuple(self.state(seen).split())
        klass = InstructionClass(
            self,
            core.generation,
            attributes,
            tuple(operands),
            engines,
            len(CLASSES),
            state,
            _bound_call(plan),
            tuple(o.role for o in operands),
            self.is_matmul,
            any(o.form.reach for o in operands),
            any(o.form.memory == HBM for o in operands),
            attributes.get("oob_mode") == "skip" or any(o.role != READ and o.form.indirect for o in operands),
            seen,
        )
        CLASSES.append(klass)
        if self._legalized:
            self._legalized = False
            core.legalized[self.name, key] = klass
        else:
            self.caches[core.rules][key] = klass
        return klass

    def again(
        self,
        core: Core,
        klass: InstructionClass,
        forms: Mapping[str, Form] | None = None,
        *,
        any_engine: bool = False,
    ) -> InstructionClass:
        """``klass`` as it would be on ``core``'s generation, the operands named in ``forms`` with the forms there.

        ``any_engine``: as if the kernel left the choice of the engine open.

        Raises:
            TrnsimError: the instruction would be rejected there.
        """
        try:
            if core.generation not in self.generations:
                raise HardwareError(
                    f"{self.short} does not exist on NeuronCore-{core.generation}",
                    limit="NeuronCore-" + ", ".join(self.generations),
                )
            new = forms or {}
            operands = tuple(replace(o, form=new.get(o.name, o.form)) for o in klass.operands)
            for operand in operands:
                if not operand.name.endswith(".index"):
                    self._check_operand(core, operand.name, operand.form)
            self._legalized = False
            seen, attributes = {name: _mapped(name, value, new) for name, value in klass.seen.items()}, klass.attributes
            if any_engine and "engine" in seen:
                seen["engine"], attributes = Engine.unknown, {**attributes, "engine": "unknown"}
            engines = self._engines(seen, attributes)
        except TrnsimError as error:
            error.instruction = error.instruction or self.short
            error.generation = error.generation or core.generation
            raise
        return replace(
            klass,
            generation=core.generation,
            operands=operands,
            engines=engines,
            attributes=attributes,
            seen=seen,
            id=-1,
        )

    def pack_seen(self, seen: dict[str, Any], forms: dict[int, int]) -> dict[str, list[Any]]:
        """What the rules saw, as a saved trace keeps it; ``forms`` numbers the forms there by their id."""
        return packing.pack(seen, forms)

    def unpack_seen(self, saved: dict[str, list[Any]], forms: Sequence[Form]) -> dict[str, Any]:
        """What ``pack_seen`` packed."""
        return packing.unpack(saved, forms)

    def _engines(self, seen: dict[str, Any], attributes: dict[str, Any]) -> tuple[str, ...]:
        chosen = seen.get("engine")
        wanted = str(getattr(chosen, "name", chosen)) if chosen is not None else "unknown"
        generation = machine.current().generation
        allowed = self.rules(**seen)
        engines = tuple(allowed) if allowed is not None else self.engines
        dst = seen.get("dst")
        if isinstance(dst, Form) and dst.reach and dst.memory == PSUM and "scalar" in engines:
            engines = without(engines, "scalar")
            require(bool(engines), "ScalarE cannot scatter into PSUM", "dst", PSUM, "sbuf")
        if not engines:
            raise HardwareError(
                "no engine can run this combination of operands", operand="engine", value=attributes, limit=self.engines
            )
        if wanted == "unknown" or engines == ("dma",):  # a DMA names the engine whose ring it goes by
            return engines
        if wanted not in engines:
            raise HardwareError(
                f"engine {wanted} cannot run this", operand="engine", value=wanted, limit=engines, generation=generation
            )
        return (wanted,)

    def _check_operand(self, core: Core, name: str, form: Form) -> None:
        if form.memory == HBM:
            return
        spec = core.launch.spec
        limit = spec.psum.partitions if form.memory == PSUM else spec.sbuf.partitions
        if form.partitions > limit:
            raise HardwareError(
                f"partition size {form.partitions} exceeds {limit}", operand=name, value=form.partitions, limit=limit
            )
        if self.engines == ("dma",):
            return  # descriptors address any partition; the quadrant rule is that of the engines' ports
        try:
            check_start_partition(form.start, form.partition_span, self.short, name, core.generation)
        except HardwareError:
            if not core.legalizes:
                raise
            self._legalized = True

    def _check_indirect(self, name: str, tensor: NkiTensor) -> None:
        """An operand with tensor indirection, which only some take."""
        if name not in self.indirect:
            raise HardwareError(
                f"{name} does not support tensor indirection", operand=name, value=repr(tensor),
                limit=self.indirect or "no operand",
            )  # fmt: skip
        indirection.check_capacity(tensor, self._group, name)

    @property
    def _group(self) -> int:
        return indirection.TENSOR_GROUP if self.is_matmul else indirection.GROUP

    # -- execution -------------------------------------------------------------------------------------------------

    def execute(
        self, core: Core, klass: InstructionClass, operands: tuple[NkiTensor, ...], immediate: tuple[Any, ...]
    ) -> None:
        """Compute the results and write them."""
        assert self._meaning is not None, self.name
        if klass.indirect:
            self._execute_indirect(core, klass, operands, immediate)
            return
        if core.launch.quiet:
            result = klass.call(self._meaning, core, operands, immediate)
            if result is not None:
                write(operands[0], result)
            return
        with np.errstate(all="ignore"):
            result = klass.call(self._meaning, core, operands, immediate)
            if result is not None:
                write(operands[0], result)

    def _execute_indirect(
        self, core: Core, klass: InstructionClass, operands: tuple[NkiTensor, ...], immediate: tuple[Any, ...]
    ) -> None:
        """Execute on plain stand-ins for the operands that an index moves, and scatter what was written to them."""
        group = self._group
        plain = tuple(indirection.stand_in(t, group) if t.form.reach else t for t in operands)
        self.execute(core, replace(klass, indirect=False), plain, immediate)
        for role, tensor, filled in zip(klass.roles, operands, plain, strict=True):
            if role != READ and filled is not tensor:
                indirection.scatter(tensor, filled.array(), group)


def _bound_call(plan: tuple[tuple[int, Any], ...]) -> Callable[..., Any]:
    """A function of a meaning, the core, the operands and the immediates that calls the meaning as ``plan`` says."""
    constants = tuple(value for kind, value in plan if kind == 1)
    text: list[str] = []
    fixed = 0
    for kind, value in plan:
        if kind == 1:
            text.append(f"constants[{fixed}]")
            fixed += 1
        elif kind == 3:
            text.append("[" + ", ".join(f"operands[{i}]" for i in value) + "]")
        else:
            text.append("core" if kind == 4 else f"{'operands' if kind == 0 else 'immediate'}[{value}]")
    return _call_of(", ".join(text))(constants)


@cache
def _call_of(arguments: str) -> Callable[[tuple[Any, ...]], Callable[..., Any]]:
    source = f"lambda constants: lambda meaning, core, operands, immediate: meaning({arguments})"
    return cast("Callable[[tuple[Any, ...]], Callable[..., Any]]", eval(source))  # noqa: S307


def write(dst: NkiTensor, result: Any) -> None:
    """Store an instruction's result: float32 is rounded to the destination, integers of its own type go bit for bit."""
    if result.dtype == np.float32:
        dst.store_float32(result)
    elif result.dtype == dst.dtype.numpy:
        dst.store(result)
    elif dst.dtype.kind in ("int", "uint"):
        limits = np.iinfo(dst.dtype.numpy)
        dst.store(np.clip(result.astype(np.int64), limits.min, limits.max).astype(dst.dtype.numpy))
    elif result.dtype.kind in "iub":
        dst.store_float32(result.astype(np.float32))
    else:
        dst.store(from_float32(np.asarray(result, np.float32), dst.dtype))


def column(value: Any, like: NkiTensor) -> Any:
    """A number or ``(P, 1)`` operand in float32, shaped to broadcast along the free dimensions of ``like``."""
    if value.__class__ is NkiTensor:
        return value.as_float32().reshape(-1, *(1,) * (len(like.shape) - 1))
    return np.float32(value)


def target(dst: NkiTensor) -> Any:
    """The elements of ``dst``, to be written in place."""
    storage = dst.storage
    if not storage.writable:
        storage.make_writable()
    storage.shadow = None
    return dst.array()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, type)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


_TEMPLATE = """
def {short}({signature}):
    _core_ = _machine._current
    if _more_ or _other_:
        raise _wrong(_core_, _other_)
    try:
        _key_ = ({key})
        _klass_ = _caches[_core_.rules][_key_]
    except (KeyError, AttributeError, TypeError):
        _values_ = dict({values})
        _key_ = _key(_values_)
        _klass_ = _instruction.caches[_core_.rules].get(_key_) if _core_ is not None else None
        if _klass_ is None:
            _klass_ = _instruction.classify(_core_, _values_, _key_)
            _core_ = _machine._current
    return _Handle(_core_, _core_.emit(_klass_, {operands}, {immediate}, name))
"""

# Where operands may have tensor indirection.
_INDIRECT = """
    if _klass_.indirect:
        return _Handle(_core_, _core_.emit(_klass_, _indirect(_klass_, {operands}), {immediate}, name))
    return"""


def instruction(
    name: str,
    *,
    engines: str,
    generations: str = "v2 v3 v4",
    state: str | State = "",
    indirect: str = "",
) -> Callable[[Callable[..., Any]], InstructionFunction]:
    """Define an instruction; see the module's text.

    ``engines`` are its candidates, preferred first; ``generations`` the NeuronCores that have it; ``state`` engine
    state that it reads and writes (names, or a function of what the rules see if not every call does); ``indirect`` the
    operands that tensor indirection can move: ``dst``, then the main input, then others. The decorated function checks
    rules and may return the engines that a particular call can run on.
    """

    def decorate(rules: Callable[..., Any]) -> InstructionFunction:
        touched = tuple(state.split()) if isinstance(state, str) else state
        definition = Instruction(
            name, rules, tuple(engines.split()), tuple(generations.split()), touched, tuple(indirect.split())
        )
        INSTRUCTIONS[name] = definition
        function = _compile(definition)
        function.__doc__ = rules.__doc__
        function.__module__ = rules.__module__
        function.instruction = definition
        function.meaning = definition.set_meaning
        function.cost = definition.set_cost
        return cast("InstructionFunction", function)

    return decorate


def _compile(definition: Instruction) -> Any:
    scope: dict[str, Any] = {
        "_machine": machine,
        "_caches": definition.caches,
        "_instruction": definition,
        "_Handle": NkiInstruction,
        "_T": NkiTensor,
        "_M": MISSING,
        "_wrong": definition.wrong_call,
        "_expand": _expand,
        "_indirect": indirection.expand,
    }
    signature: list[str] = []
    key: list[str] = []
    operands: list[str] = []
    immediates: list[str] = []
    for p in definition.parameters:
        kind = definition.kinds[p.name]
        if p.default is inspect.Parameter.empty:
            signature.append(f"{p.name}=_M")
        else:
            scope[f"_d_{p.name}"] = p.default
            signature.append(f"{p.name}=_d_{p.name}")
        if kind in ("Out", "In", "Update"):
            key.append(f"{p.name}.form")
            operands.append(p.name)
        elif kind in ("OptionalIn", "OptionalOut", "Vector"):
            key.append(f"{p.name}.form if {p.name}.__class__ is _T else {p.name}.__class__")
            operands.append(f"*(({p.name},) if {p.name}.__class__ is _T else ())")
            if kind == "Vector":
                immediates.append(f"None if {p.name}.__class__ is _T else {p.name}")
        elif kind == "Ins":
            key.append(f"tuple([x.form for x in {p.name}])")
            operands.append(f"*{p.name}")
        elif kind == "Immediate":
            key.append(f"{p.name}.__class__")
            immediates.append(p.name)
        else:
            key.append(p.name)
    indirect = any(definition.kinds[p.name] in ("Out", "In", "Update", "Ins") for p in definition.parameters)
    tuple_text = f"({', '.join(operands)},)" if operands else "()"
    if indirect and ("oob_mode" in definition.kinds):
        tuple_text = f"_expand({tuple_text})"

    def key_of_values(values: dict[str, Any]) -> Any:
        parts: list[Any] = []
        for p in definition.parameters:
            kind, value = definition.kinds[p.name], values[p.name]
            if kind == "Ins":
                parts.append(
                    tuple(getattr(x, "form", None) for x in value) if isinstance(value, (list, tuple)) else None
                )
            elif kind in _ROLES:
                parts.append(value.form if isinstance(value, NkiTensor) else value.__class__)
            elif kind == "Immediate":
                parts.append(value.__class__)
            else:
                parts.append(_hashable(value))
        return tuple(parts)

    scope["_key"] = key_of_values
    template = _TEMPLATE.replace("\n    return", _INDIRECT) if definition.indirect else _TEMPLATE
    source = template.format(
        short=definition.short,
        signature=", ".join([*signature, "name=None", "*_more_", "**_other_"]),
        key=", ".join(key) + ("," if key else ""),
        values=", ".join(f"{p.name}={p.name}" for p in definition.parameters),
        operands=tuple_text,
        immediate=f"({', '.join(immediates)},)" if immediates else "()",
    )
    exec(compile(source, f"<{definition.name}>", "exec"), scope)  # noqa: S102
    function = scope[definition.short]
    named = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
    function.__signature__ = inspect.Signature([*definition.parameters, named])
    return function


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(v) for v in value)
    return value


def _expand(operands: tuple[NkiTensor, ...]) -> tuple[NkiTensor, ...]:
    """Add the index tensors of indirect views behind them."""
    for tensor in operands:
        if tensor.indirection is not None and tensor.indirection.index is not None:
            result: list[NkiTensor] = []
            for item in operands:
                result.append(item)
                if item.indirection is not None and item.indirection.index is not None:
                    result.append(item.indirection.index)
            return tuple(result)
    return operands


def _mapped(name: str, value: Any, forms: Mapping[str, Form]) -> Any:
    """What rules saw of the argument ``name``, with the forms of ``forms`` in it."""
    if isinstance(value, Form):
        return forms.get(name, value)
    if isinstance(value, tuple) and value and all(isinstance(v, Form) for v in value):
        return tuple(forms.get(f"{name}{i}", v) for i, v in enumerate(value))
    return value


def require(condition: bool, message: str, operand: str = "", value: Any = None, limit: Any = None) -> None:
    """Raise HardwareError(``message``) unless ``condition`` holds."""
    if not condition:
        raise HardwareError(message, operand=operand, value=value, limit=limit)


def require_number(value: Any, name: str) -> None:
    """A number that the kernel's source gives, of whatever type; not a tensor, a string or nothing."""
    number = _is_number(value) or (hasattr(value, "__float__") and not isinstance(value, (str, bytes)))
    if not number:
        raise CompilerError(f"{name} must be a number", operand=name, value=type(value).__name__, limit="a number")


def require_same_size(dst: Form, *others: Form, names: Sequence[str] = ()) -> None:
    """All operands have the same partitions and the same elements a partition."""
    for index, other in enumerate(others):
        name = names[index] if index < len(names) else "input"
        require(
            other.partitions == dst.partitions and other.elements == dst.elements,
            f"{name} and dst differ in partitions or elements a partition",
            name,
            f"{other.shape}",
            f"{dst.shape}",
        )


def require_vector(form: Vector, data: Form, name: str, dtypes: Sequence[str] = (), *, more: bool = False) -> None:
    """An operand that is one element a partition (or a number); with ``more`` it may have further partitions."""
    if not isinstance(form, Form):
        return
    require(form.memory != HBM, f"{name} must be in SBUF or PSUM", name, form.memory, "SBUF or PSUM")
    require(
        (form.partitions == data.partitions or (more and form.partitions > data.partitions)) and form.elements == 1,
        f"{name} must have one element a partition",
        name,
        form.shape,
        (data.partitions, 1),
    )
    if dtypes:
        require(
            form.dtype in dtypes, f"{name} has a dtype that the engine does not take", name, form.dtype, tuple(dtypes)
        )


def require_on_chip(**forms: Form | None) -> None:
    """Operands must be in SBUF or PSUM."""
    for name, form in forms.items():
        if form is not None:
            require(form.memory != HBM, f"{name} must be in SBUF or PSUM", name, form.memory, "SBUF or PSUM")


def require_memory(memory: str, **forms: Form | None) -> None:
    """Operands must be in one memory."""
    for name, form in forms.items():
        if form is not None:
            require(form.memory == memory, f"{name} must be in {memory.upper()}", name, form.memory, memory)


def require_numbers(**forms: Form | None) -> None:
    """Operands must be on chip, of a dtype that the engines compute with: not packed."""
    require_on_chip(**forms)
    for name, form in forms.items():
        if form is not None:
            packed = form.dtype.kind == "packed"
            require(not packed, f"{name} is packed and cannot be computed with", name, form.dtype, "a number format")


def without(engines: Sequence[str], *names: str) -> tuple[str, ...]:
    """``engines`` but ``names``."""
    return tuple(e for e in engines if e not in names)


__all__ = [
    "Activation", "AluOp", "Engine", "Immediate", "In", "Ins", "NkiInstruction", "OptionalIn", "OptionalOut", "Out",
    "Update", "Vector", "column", "instruction", "require", "require_memory", "require_number", "require_numbers",
    "require_on_chip", "require_same_size", "require_vector", "target", "without", "write",
]  # fmt: skip
