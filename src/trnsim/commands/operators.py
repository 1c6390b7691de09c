"""``trnsim op``: what an operator costs on chips, by implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.commands import common
from trnsim.commands.output import said, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.operators.store import Store

DEFAULT_CHIP = "trn2"


def op(
    context: typer.Context,
    operator: Annotated[str, typer.Argument(help="Such as matmul; list: what there is; all: common uses of each.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Number format: bf16, fp16, fp32, fp8, mxfp8, mxfp4 or its full name.")
    ] = "bf16",
    chip: Annotated[
        list[str] | None,
        typer.Option("--chip", help="trn1, trn2, trn3, inf2, h100, b200, ..., or a chip's TOML file; may be repeated."),
    ] = None,
    set: common.Set = None,
    lnc: Annotated[int, typer.Option("--lnc", help="Cores of a logical core.")] = 1,
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="File that keeps what is simulated; default: in the user's folder for caches."),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the costs to FILE, or - for standard output.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", help="Draw a roofline into FILE: .svg, .png or .html. Needs Matplotlib.")
    ] = None,
) -> None:
    """Predict the time, traffic and bound of one use of an operator by every implementation, side by side.

    Sizes are options of the operator's own: trnsim op list names them. A NeuronCore chip is shown by one logical core,
    a GPU whole. With --set, times of a chip as it is stand beside those of the changed one.

    Example: trnsim op matmul --m 4096 --k 4096 --n 4096 --dtype bf16 --chip trn2 --chip h100
    """
    from trnsim.commands import operator_costs

    if operator == "list":
        _list(json)
        return
    if operator == "all":
        from trnsim.commands.operators_all import show_all

        for name in operator_costs.chosen(chip, set, DEFAULT_CHIP):
            show_all(name, lnc, _store(cache), json)
        return
    given = _sizes(context.args)
    chips, form = operator_costs.chosen(chip, set, DEFAULT_CHIP), operator_costs.FORMATS.get(dtype, dtype)
    found = operator_costs.gather(operator, form, chips, lnc, _store(cache), given)
    if json is not None:
        rows = [operator_costs.as_json(f) for f in found]
        document = {"schema": "trnsim-op-2", "chips": chips, "cores": lnc, "dtype": form, "sizes": given, "costs": rows}
        write_json(document, json)
    if json != "-":
        operator_costs.show(f"{operator}, {form}", found)
    if plot is not None:
        from trnsim.commands import roofline

        roofline.draw(found, form, lnc, plot)
        said(f"wrote {plot}")


def _store(cache: str | None) -> Store | None:
    """The file ``cache``, or the user's; where that cannot be used it is said."""
    from trnsim.operators.store import Store, default_store

    if cache is not None:
        return Store(cache)
    found, text = default_store()
    if text:
        common.error_console().print(text, highlight=False, markup=False)
    return found


def _sizes(arguments: list[str]) -> dict[str, int | str]:
    """``--m 4096 --k=4096 --activation silu`` as sizes and options."""
    from trnsim.commands import operator_costs

    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2:
        raise InputError("sizes are written as --NAME NUMBER", value=" ".join(arguments))
    found: dict[str, int | str] = {}
    for option, text in zip(words[::2], words[1::2], strict=True):
        if not option.startswith("--"):
            raise InputError(f"sizes are written as --NAME NUMBER, not {option!r}", value=option)
        name = option[2:].replace("-", "_")
        try:
            found[name] = int(text)
        except ValueError:
            if name not in operator_costs.word_options():
                raise InputError(f"{option} needs an integer", operand=option, value=text) from None
            found[name] = text
    return found


def _list(json: str | None) -> None:
    from trnsim.commands import operator_costs

    rows = operator_costs.listed()
    if json is not None:
        write_json({"schema": "trnsim-op-list-2", "operators": rows}, json)
    if json == "-":
        return
    operator_costs.show_list(rows)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(op)
