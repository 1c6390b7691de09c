"""Computing aten calls instruction by instruction: the depth ``exact``.

A call that one of our kernels computes (``trnsim.kernels``, and ``chains`` for what is element-wise) runs on the
simulated chip, every instruction of it. What moves values about and computes nothing is PyTorch's. What no kernel
computes, or not with these arguments, is computed as the depth ``fast`` does, and counted with its reason in
``fallbacks``.

Arrays are handed over as kernels want them: matrices as they lie, contiguous; sizes that a kernel wants as multiples
are filled up with zeros where that changes nothing. Results get the strides that PyTorch's own would have.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import numpy as np
import torch

from trnsim.errors import InputError, TrnsimError
from trnsim.frameworks.torch import formats
from trnsim.frameworks.torch.chains import Unmatched
from trnsim.frameworks.torch.exact_calls import CALLS, foreach
from trnsim.frameworks.torch.fast import FastExecutor, _meta, _tensors, result_dtypes
from trnsim.frameworks.torch.formats import LOW, Policy, Tensor
from trnsim.frameworks.torch.plans import FOREIGN, MOVE, Plan, plan_of
from trnsim.hardware import load_chip
from trnsim.numerics import DType, as_dtype, cast
from trnsim.session import SimulationOptions, to_numpy

# Decide, compare or count: nothing is rounded.
_DECISIONS = frozenset(
    (
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "logical_xor", "any", "all"),
        *("bitwise_and", "bitwise_or", "bitwise_not", "max_pool2d_with_indices", "sign", "max", "min"),
    )
)


class ExactExecutor:
    """Computes aten calls with our kernels on a simulated logical core.

    Args:
        chip: as ``load_chip`` takes it.
        lnc: cores of the logical core.
        policy: of products; ``formats.autocast`` overrides it.
        stochastic_rounding, seed: as of ``FastExecutor``.

    Attributes:
        fallbacks: how many calls of an operator no kernel has computed, by (operator, reason).
        launches: how many times each kernel ran.
    """

    def __init__(
        self, chip: str, lnc: int, policy: Policy | str, *, stochastic_rounding: bool = False, seed: int = 0
    ) -> None:
        core = load_chip(chip).core
        if core is None:
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
        self.generation = core.version
        self.fast = FastExecutor(policy, self.generation, stochastic_rounding=stochastic_rounding, seed=seed)
        self.options = SimulationOptions(chip=chip, timed=False, lnc=lnc, seed=seed)
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()
        self._plans: dict[Any, Plan] = {}
        self.pending: Any = None  # something of its last result that a call's backward pass is not told
        self._notes: dict[int, tuple[Any, Any]] = {}

    @property
    def policy(self) -> Policy:
        """The policy of products now."""
        policy = formats.active(self.fast.policy)
        policy.check(self.generation)
        return policy

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute ``func(*args, **kwargs)``; see ``FastExecutor.run``."""
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = plan_of(func)
        if plan.kind == FOREIGN:
            from trnsim.frameworks.torch.inner import run_inside

            return run_inside(self.run, func, args, kwargs)
        tensors = [t for a in (*args, *kwargs.values()) for t in _tensors(a)]
        moves = (plan.kind == MOVE and plan.name != "embedding") or plan.name in _DECISIONS
        if moves or not any(_large(t) for t in tensors):  # integers and single numbers are the host's
            return self.fast.run(func, args, kwargs)
        result, reason = self._with_kernels(plan, func, args, kwargs)
        if reason:
            self.fallbacks[plan.overload, reason] += 1
            return self.fast.run(func, args, kwargs)
        self.fast.gradients.follow(plan, args, result)
        return result

    def forget(self, tensors: list[Tensor] | None = None) -> None:
        """See ``FastExecutor.forget``."""
        self.fast.forget(tensors)

    def notes(self) -> tuple[str, ...]:
        """How many kernels ran, and what was computed without one."""
        kernels, calls = sum(self.launches.values()), sum(self.fallbacks.values())
        first = f"exact: {kernels} kernels ran, {calls} calls of other operators were computed as in fast"
        return (first, *(f"{name}, {count} times: {why}" for (name, why), count in self.fallbacks.most_common()))

    def _with_kernels(self, plan: Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str]:
        """(The result, nothing), or (None, why there is none)."""
        call = foreach if plan.name.startswith("_foreach_") else CALLS.get(plan.name)
        if call is None:
            return None, "no kernel"
        if any(t.dtype is not torch.float32 and t.dtype not in LOW for a in args for t in _tensors(a) if _large(t)):
            return None, "a format that kernels do not take"
        self.pending = None
        try:
            made = call(self, plan, args, kwargs)
        except Unmatched as error:
            return None, str(error)
        except (AssertionError, TrnsimError) as error:
            # What a kernel's contract excludes it asserts.
            return None, str(error).splitlines()[0] or type(error).__name__
        if plan.writes:
            return self._written(plan, args, kwargs, made), ""
        like = _like(func, args, kwargs, made)
        if isinstance(like, torch.Tensor):
            return as_tensor(made, like), ""
        results = [None if t is None else as_tensor(m, t) for m, t in zip(made, like, strict=True)]
        if self.pending is not None:
            self._note(results[-1], self.pending)
        return type(like)(results), ""

    def _written(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
        """Put what was computed where the call wants it: pairs of (tensor, values), or the one that is changed."""
        if isinstance(made, list):
            for tensor, values in made:
                self.fast.cache.written([tensor])
                self.fast._store(tensor, torch.from_numpy(np.asarray(values)).reshape(tensor.shape))
            return None
        place, name = plan.writes[0]
        tensor = args[place] if place < len(args) else kwargs[name]
        self.fast.cache.written([tensor])
        wide = made if made.dtype == np.float32 else made.astype(np.float32)
        self.fast._store(tensor, torch.from_numpy(np.ascontiguousarray(wide)).reshape(tensor.shape))
        return tensor

    def launch(self, kernel: Any, *args: Any, **named: Any) -> Any:
        """Run a kernel on NumPy arrays; its results, every instruction simulated."""
        self.launches[kernel.func.__name__] += 1
        return kernel.launch(args, named, self.options)

    def operand(self, tensor: Tensor, kind: DType | None = None) -> np.ndarray[Any, Any]:
        """A contiguous array of a tensor's values in a format; None: its own."""
        array = to_numpy(tensor)
        own = as_dtype(tensor.dtype)
        return array if kind is None or kind is own else cast(array, own, kind)

    def gradient(self, tensor: Tensor) -> bool:
        """Whether a tensor is a gradient, which 8-bit policies round to other formats."""
        return self.fast.gradients.is_gradient(tensor)

    def _note(self, tensor: Any, value: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._notes[key] = (value, weakref.ref(storage, lambda _: self._notes.pop(key, None)))

    def noted(self, tensor: Tensor) -> Any:
        """What a call left in ``pending`` when it made a tensor, its last result; None: nothing."""
        return self._notes.get(tensor.untyped_storage()._cdata, (None, None))[0]


def _like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
    """What the call returns, without data; where PyTorch has no rule for that, as a contiguous result would be."""
    try:
        return func(*map(_meta, args), **{k: _meta(v) for k, v in kwargs.items()})
    except (NotImplementedError, RuntimeError):
        dtypes = result_dtypes(func, args, kwargs)
        if not isinstance(dtypes, tuple):
            return torch.empty(made.shape, dtype=dtypes, device="meta")
        return tuple(torch.empty(m.shape, dtype=d, device="meta") for m, d in zip(made, dtypes, strict=True))


def _large(tensor: Tensor) -> bool:
    return bool(tensor.is_floating_point() and tensor.dim())


def as_tensor(values: Any, like: Tensor) -> Tensor:
    """An array as a tensor of the shape, strides and format of another (on the meta device)."""
    if isinstance(values, torch.Tensor):
        made = values
    else:
        array = np.ascontiguousarray(values)
        kind = as_dtype(array.dtype)
        native = array.dtype.kind in "fiub" and array.dtype.isbuiltin == 1
        made = torch.from_numpy(array if native else np.asarray(cast(array, kind, formats.FLOAT32)))
    result = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    return result.copy_(made.reshape(like.shape))
