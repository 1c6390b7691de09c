"""``trnsim op``: what an operator costs on a chip, by implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands import common
from trnsim.commands.output import console, microseconds, table, write_json
from trnsim.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trnsim.operators.cost import OperatorCost
    from trnsim.operators.store import Store

DEFAULT_CHIP = "trn2"
_SHORT = {
    "bf16": "bfloat16", "f16": "float16", "fp16": "float16", "f32": "float32", "fp32": "float32",
    "fp8": "float8_e4m3", "mxfp8": "float8_e4m3fn_x4", "mxfp4": "float4_e2m1fn_x4",
}  # fmt: skip


def op(
    context: typer.Context,
    operator: Annotated[str, typer.Argument(help="Such as matmul; list: what there is; all: common uses of each.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Number format: bf16, fp16, fp32, fp8, mxfp8, mxfp4.")] = "bf16",
    chip: common.Chip = None,
    set: common.Set = None,
    lnc: Annotated[int, typer.Option("--lnc", help="Cores of a logical core.")] = 1,
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="File that keeps what is simulated; default: in the user's folder for caches."),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the costs to FILE, or - for standard output.")
    ] = None,
) -> None:
    """Predict the time, traffic and bound of one use of an operator by every implementation.

    Sizes are options of the operator's own: trnsim op list names them. With --set, times of the chip as it is stand
    beside those of the changed one.

    Example: trnsim op matmul --m 4096 --k 4096 --n 4096 --set trn2.dma.sustained_bytes_per_ns=40GB/s
    """
    if operator == "list":
        _list(json)
        return
    given, dtype = _sizes(context.args), _SHORT.get(dtype, dtype)
    name = common.changed_chip(chip, set, DEFAULT_CHIP) or DEFAULT_CHIP
    store = _store(cache)
    if operator == "all":
        from trnsim.commands.operators_all import show_all

        show_all(name, lnc, store, json)
        return
    costs, refused = _costs(operator, dtype, name, lnc, store, given)
    before: list[OperatorCost] = []
    if name.endswith("]"):
        before, _ = _costs(operator, dtype, name.partition("[")[0], lnc, store, given, like=costs[0])
    if json is not None:
        rows = [_as_json(cost) for cost in costs]
        for row, cost in zip(rows, before, strict=False):
            row["unchanged_time_us"] = cost.microseconds
        rows += [{"implementation": name, "error": text} for name, text in refused.items()]
        write_json({"schema": "trnsim-op-1", "chip": name, "cores": lnc, "sizes": given, "costs": rows}, json)
    if json != "-":
        _show(costs, refused, before)


def _store(cache: str | None) -> Store | None:
    """The file ``cache``, or the user's; where that cannot be used it is said."""
    from trnsim.operators.store import Store, default_store

    if cache is not None:
        return Store(cache)
    found, said = default_store()
    if said:
        common.error_console().print(said, highlight=False, markup=False)
    return found


def _costs(
    operator: str,
    dtype: str,
    chip: str,
    lnc: int,
    store: Store | None,
    given: Mapping[str, int | str],
    like: OperatorCost | None = None,
) -> tuple[list[OperatorCost], dict[str, str]]:
    """Costs by implementation, and why others have none; our kernel's in the way that ``like`` was found, if given."""
    from trnsim.operators.compiled import CompilerCosts
    from trnsim.operators.kernel_costs import KernelCosts

    ours, refused = KernelCosts(chip, lnc, store), {}
    ask = ours.once if like is None else ours.simulated if like.how == "simulated" else ours.cost
    costs = [ask(operator, dtype, **given)]
    try:
        costs.append(CompilerCosts(chip, lnc).cost(operator, dtype, **given))
    except (UnsupportedError, InputError) as error:
        refused["compiler"] = str(error)
    return costs, refused


def _sizes(arguments: list[str]) -> dict[str, int | str]:
    """``--m 4096 --activation=silu`` as sizes and options."""
    from trnsim.operators.kernel_costs import contracts

    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2:
        raise InputError("sizes are written as --NAME NUMBER", value=" ".join(arguments))
    found: dict[str, int | str] = {}
    for name, text in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--"):
            raise InputError(f"sizes are written as --NAME NUMBER, not {name!r}", value=name)
        word = name[2:].replace("-", "_")
        try:
            found[word] = int(text)
        except ValueError:
            if not any(word in contract.options for contract in contracts().values()):
                raise InputError(f"{name} needs an integer", operand=name, value=text) from None
            found[word] = text
    return found


def _list(json: str | None) -> None:
    from trnsim.operators.kernel_costs import contracts

    rows = [
        {
            "operator": c.name,
            "sizes": list(c.sizes),
            "options": {k: list(v) for k, v in c.options.items()},
            "dtypes": {generation: list(of) for generation, of in c.dtypes.items()},
            "summary": c.summary,
        }
        for c in contracts().values()
    ]
    if json is not None:
        write_json({"schema": "trnsim-op-list-1", "operators": rows}, json)
    if json == "-":
        return
    lines = [
        (
            c.name,
            " ".join(f"--{size.replace('_', '-')}" for size in c.sizes),
            " ".join(f"--{name.replace('_', '-')} {'|'.join(map(str, of))}" for name, of in c.options.items()),
            _formats(c.dtypes),
        )
        for c in contracts().values()
    ]
    console().print(table("Operators", ("operator", "sizes", "options", "number formats"), lines))


def _formats(dtypes: Mapping[str, tuple[str, ...]]) -> str:
    """By generation, where they differ."""
    if len(set(dtypes.values())) == 1:
        return " ".join(next(iter(dtypes.values())))
    return "; ".join(f"{generation}: {' '.join(of) or 'none'}" for generation, of in dtypes.items())


def _as_json(cost: OperatorCost) -> dict[str, Any]:
    return {
        "implementation": cost.implementation,
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


def _show(costs: list[OperatorCost], refused: Mapping[str, str], before: Sequence[OperatorCost] = ()) -> None:
    unchanged = ("unchanged us",) if before else ()
    columns = ("implementation", "time us", *unchanged, "TFLOPS", "HBM GB/s", "bound", "support")
    rows = []
    for number, cost in enumerate(costs):
        busy = cost.busy_ps.get(cost.bound, 0) / cost.time_ps if cost.bound else 0
        error = f", ±{cost.error_percent:.0f} %" if cost.error_percent is not None else ""
        rows.append(
            (
                cost.implementation,
                microseconds(cost.time_ps),
                *(microseconds(other.time_ps) for other in before[number : number + 1]),
                f"{cost.flops / cost.time_ps:.1f}",
                f"{cost.hbm_bytes / cost.time_ps * 1e3:.0f}",
                f"{cost.bound} {busy:.0%} busy" if cost.bound else "",
                f"{cost.support}{error}",
            )
        )
    console().print(table(costs[0].operator, columns, rows))
    for cost in costs:
        console().print(f"{cost.implementation}: {cost.reason}")
    for name, text in refused.items():
        console().print(f"{name}: {text}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(op)
