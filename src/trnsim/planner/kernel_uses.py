"""Costs of uses by our own kernels, for plans: known surfaces first, and without minutes of simulation.

A plan asks for hundreds of sizes. Each is answered by the first of these that there is, and says by which:

1. a surface that is shipped, or in the user's store;
2. where it is small, a simulation of that very use (kept in the store);
3. the nearest sizes that were simulated, scaled by work (``operators.neighbours``);
4. the operator as several that have kernels: gated networks as their products, gradients of attention in blocks that
   the kernel takes, experts as a product each;
5. compiled code, which is then named.

``kernel-simulated`` takes the samples that surfaces lack, in minutes at first; ``best`` is the faster of kernel and
compiled code, for each use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError, TrnsimError
from trnsim.operators.compiled import CompilerCosts
from trnsim.operators.cost import OperatorCost
from trnsim.operators.kernel_costs import KernelCosts
from trnsim.operators.neighbours import roofline_us

if TYPE_CHECKING:
    from trnsim.operators.store import Store

    Sizes = Mapping[str, Any]

# What a simulation of a twentieth of a second or so may hold: TensorE's multiplications, and bytes. Kernels with loops
# of small pieces (attention, experts) have far more instructions for as much.
_SMALL_FLOPS, _SMALL_BYTES = 1600 * 2 * 128 * 128 * 512, 200 * 2 * 128 * 2048
_QUICK = frozenset(
    ("matmul", "matmul_fp8", "rmsnorm", "layernorm", "rope", "elementwise", "gated_activation", "softmax")
)  # fmt: skip
# Formats of products by the name that plans have for them.
_FORMATS = {"float8": "float8_e4m3", "mxfp8": "float8_e4m3fn_x4", "mxfp4": "float4_e2m1fn_x4"}
# Queries and keys of a block of attention's gradients.
_BLOCK = 2048


@dataclass(frozen=True)
class _Part:
    """``count`` times an operator."""

    count: float
    name: str
    sizes: Sizes


class KernelUses:
    """Costs on one chip, on logical cores of ``cores`` cores, as ``planner.uses`` asks for them.

    ``simulate``: take samples that surfaces lack, however long that takes; ``best``: the faster of kernel and compiled.
    """

    def __init__(
        self, chip: str, cores: int, store: Store | None = None, *, simulate: bool = False, best: bool = False
    ) -> None:
        self.kernels, self.compiled = KernelCosts(chip, cores, store), CompilerCosts(chip, cores)
        self.chip, self.cores = chip, cores
        self._simulate, self._best = simulate, best
        self._known: dict[tuple[Any, ...], OperatorCost] = {}

    def cost(self, name: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs.

        Raises:
            InputError: neither a kernel nor compiled code has it.
        """
        key = (name, dtype, *given.items())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._chosen(name, dtype, given)
        return found

    def _chosen(self, name: str, dtype: str, given: Sizes) -> OperatorCost:
        kernel = self._kernel(name, dtype, given)
        if kernel is not None and not self._best:
            return kernel
        try:
            compiled = self._compiled(name, dtype, given)
        except InputError:
            if kernel is None:
                raise
            return kernel
        if kernel is None:
            reason = f"{name}: no kernel that was simulated stands for it; as compiled code: {compiled.reason}"
            return replace(compiled, reason=reason)
        return min(kernel, compiled, key=lambda cost: cost.time_ps)

    def _compiled(self, name: str, dtype: str, given: Sizes) -> OperatorCost:
        sizes = {k: v for k, v in given.items() if k not in ("contract_lhs", "contract_rhs")}
        return self.compiled.cost(name, dtype, **sizes)

    def _kernel(self, name: str, dtype: str, given: Sizes) -> OperatorCost | None:
        """By kernels; None: by none."""
        form = _FORMATS.get(dtype, dtype)
        try:
            contract = self.kernels.contract(name, form)
            sizes = _taken(contract, given)
            problem = contract.problem(form, self.cores, sizes, self.kernels.generation)
        except InputError:
            return self._parts(name, dtype, given)
        try:
            found = self.kernels.known(name, form, **sizes)
            if found is None and self._simulate:
                found = self.kernels.cost(name, form, **sizes)
            if found is None and _is_small(contract, problem):
                found = self.kernels.simulated(name, form, **sizes)
        except TrnsimError:
            found = None
        return found or self._near(contract, problem) or self._parts(name, dtype, given)

    def _near(self, contract: Any, problem: Any) -> OperatorCost | None:
        near = self.kernels.neighbours(contract, problem)
        if near is None:
            return None
        time = max(near.ratio(problem.sizes) * roofline_us(self.chip, self.cores, contract, problem), near.least_us)
        changed = f", with another {' and '.join(near.changed)}" if near.changed else ""
        reason = f"{contract.name}: from the nearest simulated sizes{changed}, ±{100 * near.error:.0f} % between these"
        return OperatorCost(
            operator=contract.name,
            implementation="kernel",
            time_ps=time * 1e6,
            hbm_bytes=round(float(contract.bytes(problem))),
            flops=round(float(contract.flops(problem))),
            sbuf_bytes=0,
            support="extrapolated",
            reason=reason,
            how="neighbours",
            error_percent=100 * near.error,
        )

    def _parts(self, name: str, dtype: str, given: Sizes) -> OperatorCost | None:
        """An operator as others that have kernels, one after the other."""
        turn = _PARTS.get(name)
        parts = turn(given) if turn is not None else ()
        if not parts or any(part.name == name and dict(part.sizes) == dict(given) for part in parts):
            return None
        costs = []
        for part in parts:
            found = self._kernel(part.name, dtype, part.sizes)
            if found is None:
                return None
            costs.append((part.count, found))
        return OperatorCost(
            operator=name,
            implementation="kernel",
            time_ps=sum(count * cost.time_ps for count, cost in costs),
            hbm_bytes=round(sum(count * cost.hbm_bytes for count, cost in costs)),
            flops=round(sum(count * cost.flops for count, cost in costs)),
            sbuf_bytes=max(cost.sbuf_bytes for _, cost in costs),
            support="extrapolated",
            reason=f"{name}: kernels of its parts, one after the other ({', '.join(sorted({p.name for p in parts}))})",
            how="parts",
        )


def _is_small(contract: Any, problem: Any) -> bool:
    if contract.name not in _QUICK:
        return False
    return bool(contract.flops(problem) <= _SMALL_FLOPS and contract.bytes(problem) <= _SMALL_BYTES)


def _taken(contract: Any, given: Sizes) -> dict[str, Any]:
    """The sizes that a contract has; a width of values that is that of keys is 0 there."""
    known = {*contract.sizes, *contract.options}
    found = {name: value for name, value in given.items() if name in known}
    if "depth" in found and found.get("width") == found["depth"]:
        found["width"] = 0
    for name, values in contract.options.items():
        if name in found and found[name] not in values:
            found.pop(name)
    return found


def _gated(s: Sizes) -> tuple[_Part, ...]:
    return (
        _Part(1, "matmul", _product(s["tokens"], s["width"], 2 * s["hidden"])),
        _Part(1, "gated_activation", {"rows": s["tokens"], "width": s["hidden"]}),
        _Part(1, "matmul", _product(s["tokens"], s["hidden"], s["outputs"])),
    )


def _plain(s: Sizes) -> tuple[_Part, ...]:
    return (
        _Part(1, "matmul", _product(s["tokens"], s["width"], s["hidden"])),
        _Part(1, "elementwise", {"rows": s["tokens"], "width": s["hidden"]}),
        _Part(1, "matmul", _product(s["tokens"], s["hidden"], s["outputs"])),
    )


def _experts(s: Sizes) -> tuple[_Part, ...]:
    """A product for each expert."""
    met = max(min(int(s["experts"]), int(s["tokens"])), 1)
    return (_Part(met, "matmul", _product(ceil(s["tokens"] / met), s["k"], s["n"])),)


def _attention_backward(s: Sizes) -> tuple[_Part, ...]:
    """In blocks of so many queries and keys as the kernel takes: those on the diagonal, and whole ones below it."""
    queries, keys = int(s["queries"]), int(s["keys"])
    if (queries <= _BLOCK and keys <= _BLOCK) or s.get("window"):
        return ()
    size = min(_BLOCK, queries, keys)
    one = {**s, "queries": size, "keys": size}
    if not s.get("causal", 1):
        return (_Part(queries * keys / size**2, "attention_backward", {**one, "causal": 0}),)
    rows = queries / size
    before = (keys - queries) / size
    whole = rows * before + rows * (rows - 1) / 2
    parts = (_Part(rows, "attention_backward", {**one, "causal": 1}),)
    return (*parts, _Part(whole, "attention_backward", {**one, "causal": 0})) if whole > 0 else parts


def _product(m: Any, k: Any, n: Any) -> dict[str, Any]:
    return {"m": m, "k": k, "n": n, "contract_lhs": 1}


_PARTS = {
    "gated_mlp": _gated,
    "mlp": _plain,
    "grouped_matmul": _experts,
    "attention_backward": _attention_backward,
}
