"""Costs of one use of an operator by every implementation on several chips, and how they are shown."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trnsim.commands.common import error_console
from trnsim.commands.output import console, microseconds, table
from trnsim.errors import InputError, TrnsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trnsim.operators.cost import OperatorCost
    from trnsim.operators.store import Store

# What people write for number formats; GPUs have one of each width, NeuronCores several.
FORMATS = {
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "f32": "float32",
    "fp32": "float32",
    "tf32": "tfloat32",
    "fp8": "float8_e4m3",
    "mxfp8": "float8_e4m3fn_x4",
    "mxfp4": "float4_e2m1fn_x4",
    "fp4": "float4_e2m1fn_x4",
}


@dataclass(frozen=True)
class Found:
    """What one implementation says of a use on one chip: a cost, or why there is none."""

    chip: str
    implementation: str
    cost: OperatorCost | None = None
    error: TrnsimError | None = None
    cores: int | None = None
    """Of the logical core; None: a GPU, whole."""
    unchanged: OperatorCost | None = None
    """On the chip as it is, where the user set something."""

    @property
    def who(self) -> str:
        """The chip and the implementation."""
        return f"{self.chip.partition('[')[0]} {self.implementation}"

    @property
    def label(self) -> str:
        """The chip, and how much of it."""
        from trnsim.hardware import load_chip

        loaded = load_chip(self.chip)
        return loaded.name if self.cores is None else f"{loaded.name} ({self.cores} of {loaded.core_count} cores)"


def chosen(chips: Sequence[str] | None, settings: Sequence[str] | None, default: str) -> list[str]:
    """The chips that ``--chip`` and ``--set`` ask for. A setting that names no chip is of all of them.

    Raises:
        InputError: a setting that does not hold, or of a chip that is not asked for.
    """
    from trnsim.hardware import load_chip
    from trnsim.hardware.whatif import chip_named_in, choose, without_effect

    named = {setting: chip_named_in(setting) for setting in settings or ()}
    wanted = list(chips or dict.fromkeys(n for n in named.values() if n)) or [default]
    known = {load_chip(chip).name for chip in wanted}
    found = []
    for chip in wanted:
        name = load_chip(chip).name
        mine = [s for s, n in named.items() if n is None or load_chip(n).name == name or load_chip(n).name not in known]
        made = choose(chip, mine)
        assert made is not None
        loaded = load_chip(made)
        for path in without_effect(loaded) if loaded.core is not None else ():
            error_console().print(f"no kernel's time depends on {path}", highlight=False)
        found.append(made)
    return found


def gather(
    operator: str, dtype: str, chips: Sequence[str], cores: int, store: Store | None, given: Mapping[str, int | str]
) -> list[Found]:
    """The costs of all implementations on each chip; where one refuses, why.

    Raises:
        InputError: no such operator.
        TrnsimError: no implementation has a cost: what they said.
    """
    from trnsim.hardware import load_chip
    from trnsim.operators.kernel_costs import contracts
    from trnsim.operators.work import OPERATORS

    known = {*OPERATORS, *contracts()}
    if operator not in known:
        near = difflib.get_close_matches(operator, known, 1)
        nearest = f"; nearest: {near[0]}" if near else ""
        raise InputError(f"no operator {operator!r}{nearest}", operand="operator", limit=sorted(known))
    found = []
    for chip in chips:
        for name, make in implementations(chip, cores, store).items():
            used = None if name == "gpu" else cores
            try:
                cost, unchanged = make()(operator, dtype, **given), None
                if load_chip(chip).changes:
                    as_is = implementations(chip.partition("[")[0], cores, store, like=cost)
                    unchanged = as_is[name]()(operator, dtype, **given)
                found.append(Found(chip, name, cost, cores=used, unchanged=unchanged))
            except TrnsimError as error:
                found.append(Found(chip, name, error=error, cores=used))
    errors = [(f, f.error) for f in found if f.error is not None]
    if len(errors) == len(found):
        if len(errors) == 1:
            raise errors[0][1]
        said = "\n".join(f"  {f.who}: {error}" for f, error in errors)
        raise InputError(f"no implementation has a cost of this {operator}:\n{said}")
    return found


def implementations(
    chip: str, cores: int, store: Store | None, like: OperatorCost | None = None
) -> dict[str, Callable[[], Callable[..., OperatorCost]]]:
    """How operators can run on a chip: what makes the function that tells the cost of a use.

    ``like``: a cost of our kernel that is to be compared with: found in the same way.

    Raises:
        InputError: nothing is known of operators on it.
    """
    from trnsim.hardware import chip_names, load_chip
    from trnsim.operators.compiled import CompilerCosts
    from trnsim.operators.gpu import GpuCosts
    from trnsim.operators.kernel_costs import KernelCosts

    loaded = load_chip(chip)
    if loaded.family == "nvidia":
        return {"gpu": lambda: GpuCosts(chip).cost}
    if loaded.core is None:
        having = [n for n in chip_names() if load_chip(n).core is not None or load_chip(n).family == "nvidia"]
        raise InputError(
            f"no time of operators on {chip}: its {loaded.title} has no timing constants", operand="chip", limit=having
        )

    def kernel() -> Callable[..., OperatorCost]:
        ours = KernelCosts(chip, cores, store)
        return ours.once if like is None else ours.simulated if like.how == "simulated" else ours.cost

    return {
        "kernel": kernel,
        "compiler": lambda: CompilerCosts(chip, cores).cost,
    }


def listed() -> list[dict[str, Any]]:
    """All operators: sizes, options and their values (any number where there are none), implementations, formats."""
    from trnsim.operators.kernel_costs import contracts
    from trnsim.operators.work import OPERATORS

    kernels = contracts()
    rows = []
    for name in sorted({*OPERATORS, *kernels}):
        fitted, kernel = OPERATORS.get(name), kernels.get(name)
        options: dict[str, list[Any]] = (
            {o: [] for o in (*fitted.defaults, *fitted.ignored)} if fitted is not None else {}
        )
        if kernel is not None:
            options |= {o: list(values) for o, values in kernel.options.items()}
        sizes = kernel.sizes if kernel is not None else fitted.sizes if fitted is not None else ()
        has = ["kernel"] * (kernel is not None) + ["compiler", "gpu"] * (fitted is not None)
        rows.append(
            {
                "operator": name,
                "sizes": [size for size in sizes if size not in options],
                "options": options,
                "implementations": has,
                "kernel_dtypes": kernel.dtypes if kernel is not None else None,
                "summary": kernel.summary if kernel is not None else "",
            }
        )
    return rows


def word_options() -> set[str]:
    """Options of operators whose values are words."""
    from trnsim.operators.kernel_costs import contracts
    from trnsim.operators.work import OPERATORS

    words = {
        n for c in contracts().values() for n, values in c.options.items() if any(isinstance(v, str) for v in values)
    }
    return words | {name for found in OPERATORS.values() for name in found.ignored}


def formats() -> dict[str, list[str]]:
    """Formats that each chip multiplies."""
    from trnsim.hardware import chip_names, load_chip

    chips = [load_chip(name) for name in chip_names()]
    found = {c.name: sorted(c.core.tensor.products) for c in chips if c.core is not None}
    return found | {c.name: sorted(c.flops) for c in chips if c.family == "nvidia"}


def as_json(found: Found) -> dict[str, Any]:
    """One row of the JSON."""
    row: dict[str, Any] = {"chip": found.chip, "cores": found.cores, "implementation": found.implementation}
    cost = found.cost
    if cost is None:
        return {**row, "error": str(found.error)}
    if found.unchanged is not None:
        row["unchanged_time_us"] = found.unchanged.microseconds
    return {
        **row,
        "time_us": cost.microseconds,
        "hbm_bytes": cost.hbm_bytes,
        "flops": cost.flops,
        "sbuf_bytes": cost.sbuf_bytes,
        "bound": cost.bound,
        "busy_us": {name: value / 1e6 for name, value in cost.busy_ps.items()},
        "how": cost.how,
        "support": cost.support,
        "reason": cost.reason,
        "error_percent": cost.error_percent,
    }


def show(title: str, rows: Sequence[Found]) -> None:
    """A table of the costs, and below it how each is known and what was refused."""
    costs = [(f, f.cost) for f in rows if f.cost is not None]
    changed = any(f.unchanged for f in rows)
    columns = (
        "chip",
        "implementation",
        "time us",
        *["unchanged us"] * changed,
        "TFLOPS",
        "HBM GB/s",
        "bound",
        "support",
    )
    lines = []
    for found, cost in costs:
        busy = cost.busy_ps.get(cost.bound, 0) / cost.time_ps if cost.bound else 0
        # That of a surface is the error of interpolating, not of time: JSON has it.
        known = cost.how == "fit" and cost.error_percent is not None
        error = f", ±{cost.error_percent:.0f} %" if known else ""
        lines.append(
            (
                found.label,
                found.implementation,
                microseconds(cost.time_ps),
                *[microseconds(found.unchanged.time_ps) if found.unchanged else ""] * changed,
                f"{cost.flops / cost.time_ps:.1f}",
                f"{cost.hbm_bytes / cost.time_ps * 1e3:.0f}",
                f"{cost.bound} {busy:.0%} busy" if cost.bound else "",
                f"{cost.support}{error}",
            )
        )
    out = console()
    out.print(table(title, columns, lines))
    for found, cost in costs:
        out.print(f"{found.who}: {cost.reason}", highlight=False, markup=False)
    for found in rows:
        if found.cost is None:
            out.print(f"{found.who}: refused, {found.error}", highlight=False, markup=False)


def show_list(rows: Sequence[Mapping[str, Any]]) -> None:
    """The operators, and the formats of each chip."""
    from rich import box
    from rich.table import Table

    def options(given: Mapping[str, Sequence[Any]]) -> str:
        return " ".join(
            f"--{name.replace('_', '-')}" + (f" {'|'.join(map(str, values))}" if values else "")
            for name, values in given.items()
        )

    shown = Table(title="Operators", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("operator", "sizes", "options", "implementations"):
        shown.add_column(name, overflow="fold")
    for row in rows:
        sizes = " ".join(f"--{size.replace('_', '-')}" for size in row["sizes"])
        shown.add_row(row["operator"], sizes, options(row["options"]), " ".join(row["implementations"]))
    out = console()
    out.print(shown)
    out.print("Formats that matrix engines multiply; operators that multiply nothing take any.")
    for name, found in formats().items():
        out.print(f"  {name:10} {' '.join(found)}", highlight=False)
