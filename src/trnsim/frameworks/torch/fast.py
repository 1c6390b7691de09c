"""Computing aten calls at the speed of float32: the depth ``fast``.

One rule for all operators: what is narrower than float32 is read into float32, PyTorch's own float32 kernel computes,
and what it returns is rounded once, to the format that the operator's result has. Operands of products are first
rounded to what the policy multiplies in. So a call has the error of its format's rounding and not of a narrow sum, and
a product in bfloat16 takes as long as one in float32 (PyTorch's own in bfloat16 takes a hundred times as long where the
CPU has no instruction for it).

Rounded operands are kept as long as their storage lives and is not written, so that weights are rounded once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from trnsim.errors import UnsupportedError
from trnsim.frameworks.torch import formats
from trnsim.frameworks.torch.formats import LOW, Policy, Tensor
from trnsim.frameworks.torch.plans import FOREIGN, LAYERS, MOVE, PRODUCT, Plan, plan_of
from trnsim.numerics import DType

# What no engine has.
_MISSING = frozenset({torch.float64, torch.complex32, torch.complex64, torch.complex128})
_FLOAT32 = torch.float32
# Bytes of rounded operands that are kept at most, oldest dropped first.
CACHE_BYTES = 2 << 30


class FastExecutor:
    """Computes aten calls on CPU tensors as an operator at a time of the chip would round them.

    Args:
        policy: of products; ``formats.autocast`` overrides it.
        generation: of the NeuronCore, whose formats may be used.
        stochastic_rounding: of what is written in place to narrow tensors outside of autograd: updates of weights and
            of an optimiser's state.
        seed: of that rounding.
    """

    def __init__(
        self, policy: Policy | str, generation: str = "v3", *, stochastic_rounding: bool = False, seed: int = 0
    ) -> None:
        self.policy, self.generation = Policy.of(policy), generation
        self.policy.check(generation)
        self.rng = np.random.default_rng(seed) if stochastic_rounding else None
        self.cache = Rounded()
        self.gradients = Gradients()
        self._plans: dict[Any, Plan] = {}
        self._dtypes: dict[Any, Any] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute ``func(*args, **kwargs)``; types, shapes, formats and aliases of the result are those of PyTorch.

        Raises:
            UnsupportedError: a tensor of float64 or complex numbers, which no engine has; scalars may be float64.
        """
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = plan_of(func)
        if plan.kind is MOVE or (plan.unless is not None and not _given(args, kwargs, plan.unless)):
            result = self._move(plan, func, args, kwargs)
        elif plan.kind is PRODUCT:
            result = self._product(plan, func, args, kwargs)
        elif plan.kind is FOREIGN:
            result = self._inside(func, args, kwargs)
        else:
            result = self._compute(plan, func, args, kwargs)
        if formats.active(self.policy).narrow:
            self.gradients.follow(plan, args, result)
        return result

    def forget(self, tensors: list[Tensor] | None = None) -> None:
        """Drop what is kept of tensors (None: of all): call it when they may have been changed outside of ``run``."""
        if tensors is None:
            self.cache.clear()
        else:
            self.cache.written(tensors)

    def notes(self) -> tuple[str, ...]:
        """Nothing: every call is computed alike."""
        return ()

    def _move(self, plan: Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if plan.view:
            return func(*args, **kwargs)
        if plan.writes:
            written = [t for w in plan.writes for t in _tensors(_argument(args, kwargs, w))]
            self.cache.written(written)
            if self.rng is not None and plan.name == "copy" and args[0].dtype in LOW and args[1].dtype is _FLOAT32:
                self._store(args[0], args[1])
                return args[0]
        return func(*args, **kwargs)

    def _compute(
        self, plan: Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prepared: Any = None
    ) -> Any:
        """Any operator, in float32. ``prepared`` are the arguments to compute with where they are not just upcast."""
        kind = refused(plan, args, kwargs)
        if plan.writes:
            written = [t for w in plan.writes for t in _tensors(_argument(args, kwargs, w))]
            self.cache.written(written)
        if kind is None:
            return func(*(args if prepared is None else prepared), **kwargs)
        wide: dict[int, Tensor] = {}
        values = _widened(args if prepared is None else prepared, wide)
        named = {name: _widen(value, wide) for name, value in kwargs.items()} if kwargs else kwargs
        result = func(*values, **named)
        back: dict[int, Tensor] = {}
        if plan.writes:
            for tensor in written:
                changed = wide.get(id(tensor))
                if changed is not None:
                    self._store(tensor, changed)
                    back[id(changed)] = tensor
            if not func._schema.returns:
                return result
        return self._rounded(func, args, kwargs, result, back)

    def _rounded(self, func: Any, args: Any, kwargs: Any, result: Any, back: dict[int, Tensor]) -> Any:
        """Results in the formats that the operator gives; those that are arguments are these arguments."""
        if isinstance(result, torch.Tensor):
            if id(result) in back:
                return back[id(result)]
            if result.dtype is not _FLOAT32:
                return result
            wanted = self._result_dtypes(func, args, kwargs)
            return result if wanted is _FLOAT32 else result.to(wanted)
        if isinstance(result, (tuple, list)):
            if all(t is None or not isinstance(t, torch.Tensor) or id(t) in back for t in result):
                return type(result)(back.get(id(t), t) for t in result)
            wanted = self._result_dtypes(func, args, kwargs)
            made = []
            for tensor, dtype in zip(result, wanted, strict=True):
                if isinstance(tensor, (tuple, list)):
                    made.append(type(tensor)(back.get(id(t)) or t.to(d) for t, d in zip(tensor, dtype, strict=True)))
                elif not isinstance(tensor, torch.Tensor) or tensor.dtype is not _FLOAT32:
                    made.append(tensor)
                else:
                    made.append(back.get(id(tensor), tensor) if id(tensor) in back else tensor.to(dtype))
            return type(result)(made)
        return result

    def _result_dtypes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The formats that ``func`` gives its results: asked of PyTorch once for arguments of these formats."""
        key = (func, *map(_kind, args), *((k, _kind(v)) for k, v in kwargs.items()))
        known = self._dtypes.get(key)
        if known is None:
            known = self._dtypes[key] = result_dtypes(func, args, kwargs)
        return known

    def _store(self, tensor: Tensor, values: Tensor) -> None:
        """Write float32 values into a tensor that is to be changed."""
        low = tensor.dtype in LOW
        if self.rng is not None and low and not torch.is_grad_enabled() and not in_backward():
            values = formats.stochastic(values.detach().expand(tensor.shape), tensor.dtype, self.rng)
        tensor.copy_(values)

    def _product(self, plan: Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        policy = formats.active(self.policy)
        if policy is not self.policy:
            policy.check(self.generation)
        if policy.narrow and plan.name in LAYERS:
            return self._narrow_product(policy, plan, func, args, kwargs)
        prepared = list(args)
        for place in plan.operands:
            if place < len(args) and isinstance(args[place], torch.Tensor):
                prepared[place] = self._operand(args[place], policy)
        return self._compute(plan, func, args, kwargs, prepared)

    def _operand(self, tensor: Tensor, policy: Policy) -> Tensor:
        """An operand's values in float32, rounded to what a product of such tensors multiplies in."""
        dtype = tensor.dtype
        if dtype is _FLOAT32:
            inner = policy.inner
            if inner is formats.FLOAT32:
                return tensor
            return self.cache.get(tensor, inner, lambda t: formats.rounded(t, inner))
        if dtype in LOW:
            return self.cache.get(tensor, dtype, lambda t: t.to(_FLOAT32))
        return tensor

    def _narrow_product(self, policy: Policy, plan: Plan, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A product with weights in 8 bits: their scales multiply the float32 sums, then what is added is added."""
        left, right = (args[p] for p in plan.operands)
        refused(plan, args, kwargs)
        values: list[Tensor] = []
        scales: list[Tensor] = []
        for place, tensor in enumerate((left, right)):
            dtype = policy.product(tensor.dtype, gradient=self.gradients.is_gradient(tensor))
            # the contraction is the last dimension of the left, and of the right operand of a linear layer
            dim = tensor.dim() - 1 if place == 0 or plan.name == "linear" else tensor.dim() - 2
            one, scale = self._narrow_operand(tensor, dtype, policy, dim)
            values.append(one)
            if scale is not None:
                scales.append(scale)
        kind = left.dtype
        if plan.name == "mm" and not kwargs:
            result = _scale(func(*values), scales)
        elif plan.name == "linear":
            result = _scale(func(*values), scales)
            bias = _argument(args, kwargs, (2, "bias"))
            if bias is not None:
                result += bias
        elif plan.name == "addmm" and not plan.writes:
            beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
            result = _scale(torch.mm(*values), scales)
            result = torch.add(args[0].to(_FLOAT32) * beta, result, alpha=alpha)
        else:
            # Sums that are not only scaled: what is multiplied holds its scale, a rounding of float32 each.
            prepared = list(args)
            for place, (one, tensor) in zip(plan.operands, zip(values, (left, right), strict=True), strict=True):
                del tensor
                prepared[place] = one
            if scales:
                prepared[plan.operands[0]] = _scale(values[0].clone(), scales)
            return self._compute(plan, func, args, kwargs, prepared)
        return result.to(kind)

    def _narrow_operand(self, tensor: Tensor, dtype: DType, policy: Policy, dim: int) -> tuple[Tensor, Tensor | None]:
        def make(t: Tensor) -> Any:
            wide = t.detach().to(_FLOAT32)
            if policy.scaling == "block":
                # ``quantize_mx`` reads 16 bits
                wide = formats.rounded(wide, formats.BFLOAT16) if t.dtype is _FLOAT32 else wide
                return formats.in_blocks(wide, dtype, dim), None
            return formats.scaled(wide, dtype)

        found: tuple[Tensor, Tensor | None] = self.cache.exact(tensor, (policy.name, dtype, dim), make)
        return found

    def _inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that is not PyTorch's own: what it is made of is computed call by call."""
        from trnsim.frameworks.torch.inner import run_inside

        return run_inside(self.run, func, args, kwargs)


class Rounded:
    """Operands in the format of products, kept while their storage lives and is not written.

    A tensor's version counter tells of writes through it, ``written`` of those that it does not count: through
    ``.data``, and to tensors made in inference mode.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._held: dict[int, dict[Any, tuple[int, Any, int]]] = {}
        self._alive: dict[int, Any] = {}

    def get(self, tensor: Tensor, dtype: Any, make: Callable[[Tensor], Tensor]) -> Tensor:
        """``make(tensor)``, which rounds each element by itself; of any tensor that shows the whole storage."""
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.itemsize != storage.nbytes() or not tensor.numel():
            return make(tensor)
        version = -1 if tensor.is_inference() else tensor._version
        key = storage._cdata
        kept = self._held.get(key)
        found = kept.get(dtype) if kept is not None else None
        if found is None or found[0] != version:
            made = make(tensor)
            if made.untyped_storage().nbytes() != made.itemsize * made.numel():
                return made
            self._keep(storage, key, dtype, version, made, 4 * made.numel())
            return made
        whole = found[1]
        if whole.shape == tensor.shape and whole.stride() == tensor.stride():
            return whole
        return torch.as_strided(whole, tensor.shape, tensor.stride(), 0)

    def exact(self, tensor: Tensor, kind: Any, make: Callable[[Tensor], Any]) -> Any:
        """``make(tensor)``, of this very view."""
        storage = tensor.untyped_storage()
        version = -1 if tensor.is_inference() else tensor._version
        place = (kind, tensor.storage_offset(), tensor.shape, tensor.stride())
        key = storage._cdata
        found = self._held.get(key, {}).get(place)
        if found is None or found[0] != version:
            made = make(tensor)
            self._keep(storage, key, place, version, made, 4 * tensor.numel())
            return made
        return found[1]

    def _keep(self, storage: Any, key: int, place: Any, version: int, made: Any, size: int) -> None:
        if size > self.limit:
            return
        kept = self._held.get(key)
        if kept is None:
            kept = self._held[key] = {}
            self._alive[key] = weakref.ref(storage, lambda _: self._drop(key))
        old = kept.pop(place, None)
        self.bytes += size - (old[2] if old else 0)
        kept[place] = (version, made, size)
        while self.bytes > self.limit:
            first = next(iter(self._held))
            if first == key:
                break
            self._drop(first)

    def written(self, tensors: list[Tensor]) -> None:
        """These are about to be changed."""
        for tensor in tensors:
            self._drop(tensor.untyped_storage()._cdata)

    def clear(self) -> None:
        for key in list(self._held):
            self._drop(key)

    def _drop(self, key: int) -> None:
        kept = self._held.pop(key, None)
        self._alive.pop(key, None)
        if kept is not None:
            self.bytes -= sum(size for _, _, size in kept.values())


class Gradients:
    """Which tensors are gradients: what a backward pass computes, from its first operator on, of what it computed."""

    def __init__(self) -> None:
        self._marks: dict[int, Any] = {}
        self._task = -1

    def is_gradient(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._marks

    def follow(self, plan: Plan, args: tuple[Any, ...], result: Any) -> None:
        """Note what a call has made."""
        if plan.view:
            return  # its storage is known
        made = _tensors(result)
        if not in_backward():
            for tensor in made:
                self._marks.pop(tensor.untyped_storage()._cdata, None)
            return
        task = torch._C._current_graph_task_id()
        # The first operator of a backward pass has the gradient of the loss, which no operator made.
        first = task != self._task
        self._task = task
        takes = first or plan.name.endswith(("_backward", "_backward_data"))
        takes = takes or any(self.is_gradient(t) for a in args for t in _tensors(a))
        for tensor in made:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if takes:
                self._marks[key] = weakref.ref(storage, partial(self._gone, key))
            else:
                self._marks.pop(key, None)

    def _gone(self, key: int, _: Any) -> None:
        self._marks.pop(key, None)


def in_backward() -> bool:
    """Whether autograd is computing gradients, and not what a checkpoint computes again."""
    return bool(torch._C._current_graph_task_id() != -1) and not torch.is_grad_enabled()


def result_dtypes(func: Any, args: Any, kwargs: Any) -> Any:
    """The formats of ``func``'s results, nested as these: by its rules of types, else those of its tensors."""
    try:
        with torch.no_grad():
            result = func(*map(_meta, args), **{k: _meta(v) for k, v in kwargs.items()})
    except (NotImplementedError, RuntimeError, TypeError):
        kinds = [t.dtype for a in (*args, *kwargs.values()) for t in _tensors(a) if t.is_floating_point() and t.dim()]
        common = kinds[0]
        for kind in kinds[1:]:
            common = torch.promote_types(common, kind)
        returns = len(func._schema.returns)
        return common if returns == 1 else (common,) * returns
    return _dtypes(result)


def _dtypes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_dtypes, value))
    return None


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_meta, value))
    return torch.device("meta") if isinstance(value, torch.device) else value


def _kind(value: Any) -> Any:
    """What of an argument decides the formats of results."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.dim() == 0
    if isinstance(value, (tuple, list)):
        return tuple(map(_kind, value))
    return value if isinstance(value, (torch.dtype, bool)) else type(value)


def _narrowest(args: Any, more: Any) -> Any:
    """A format among arguments that no engine has, else one that is narrower than float32, else None."""
    found = None
    for group in (args, more):
        for value in group:
            if isinstance(value, torch.Tensor):
                kind = value.dtype
                if kind is not _FLOAT32:
                    if kind in LOW:
                        found = kind
                    elif kind in _MISSING and value.dim():
                        return kind
            elif isinstance(value, (tuple, list)):
                kind = _narrowest(value, ())
                if kind is not None:
                    if kind in _MISSING:
                        return kind
                    found = kind
            elif value in LOW:
                found = value
    return found


def _widened(args: Any, wide: dict[int, Tensor]) -> list[Any]:
    return [_widen(value, wide) for value in args]


def _widen(value: Any, wide: dict[int, Tensor]) -> Any:
    """An argument with float32 for what is narrower; the same tensor stays one tensor."""
    if isinstance(value, torch.Tensor):
        if value.dtype not in LOW:
            return value
        found = wide.get(id(value))
        if found is None:
            found = wide[id(value)] = value.detach().to(_FLOAT32)
        return found
    if isinstance(value, (tuple, list)):
        return type(value)([_widen(v, wide) for v in value])
    return _FLOAT32 if isinstance(value, torch.dtype) and value in LOW else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []


def _argument(args: Any, kwargs: Any, where: tuple[int, str]) -> Any:
    return args[where[0]] if where[0] < len(args) else kwargs.get(where[1])


def _given(args: Any, kwargs: Any, where: tuple[int, str]) -> bool:
    return bool(_argument(args, kwargs, where))


def refused(plan: Plan, args: Any, kwargs: Any) -> Any:
    """The format among a call's arguments that is narrower than float32, or None.

    Raises:
        UnsupportedError: one is of a format that no engine has.
    """
    kind = _narrowest(args, kwargs.values() if kwargs else ())
    if kind is not None and kind in _MISSING:
        raise UnsupportedError(
            f"{plan.overload} on {_name(kind)}, which no engine has; use float32 or less",
            instruction=plan.overload,
            operand="dtype",
            value=_name(kind),
        )
    return kind


def _scale(result: Tensor, scales: list[Tensor]) -> Tensor:
    for scale in scales:
        result *= scale
    return result


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["FastExecutor", "in_backward", "result_dtypes"]
