"""``trnsim plan train``: one layout, or the best of all that fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.hardware.model import System
    from trnsim.planner.search import Spread, Wanted
    from trnsim.workloads.layout import Layout

# Formats of --dtype: of activations, and of products if another.
FORMATS = {
    "bf16": ("bfloat16", ""),
    "fp16": ("float16", ""),
    "fp32": ("float32", ""),
    "fp8": ("bfloat16", "fp8"),
    "mxfp8": ("bfloat16", "mxfp8"),
    "nvfp4": ("bfloat16", "nvfp4"),
}
IMPLEMENTATION = (
    "Of operators: gpu; compiler, kernel (our kernels), kernel-simulated (what is not known of them is simulated: "
    "minutes at first), best (the faster of both for each operator). Default: gpu or compiler."
)
_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def train(
    model: Annotated[str, typer.Option("--model", help="A model's name as published, or a config.json.")],
    system: Annotated[str, typer.Option("--system", help="A system of the catalogue, or its TOML file.")],
    chips: Annotated[int, typer.Option("--chips", help="How many chips.", min=1)],
    global_batch: Annotated[int, typer.Option("--global-batch", help="Sequences of a step.", min=1)],
    sequence: Annotated[int, typer.Option("--seq", help="Tokens of a sequence.", min=1)] = 8192,
    tp: Annotated[int | None, typer.Option("--tp", help="Ranks of tensor parallelism.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Stages of the pipeline.")] = None,
    vpp: Annotated[int | None, typer.Option("--vpp", help="Chunks of a stage (interleaved).")] = None,
    cp: Annotated[int | None, typer.Option("--cp", help="Ranks of context parallelism.")] = None,
    ep: Annotated[int | None, typer.Option("--ep", help="Ranks that share the experts.")] = None,
    dp: Annotated[int | None, typer.Option("--dp", help="Ranks of data parallelism.")] = None,
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", help="Sequences of a micro-batch.")] = None,
    recompute: Annotated[str | None, typer.Option("--recompute", help="none, selective or full.")] = None,
    zero: Annotated[int | None, typer.Option("--zero", help="0 to 3; default 1, or what is faster.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help=", ".join(FORMATS) + ".")] = "bf16",
    tokens: Annotated[str, typer.Option("--tokens", help="Of the whole run, such as 15T.")] = "1T",
    implementation: Annotated[str | None, typer.Option("--implementation", help=IMPLEMENTATION)] = None,
    stack: Annotated[str | None, typer.Option("--stack", help="Training stack; default: the chip's usual.")] = None,
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core; default: the chip's.")] = None,
    top: Annotated[int, typer.Option("--top", help="How many layouts to show.", min=1)] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Say why the best is best, and what binds.")] = False,
    price: Annotated[
        str | None, typer.Option("--price", help="Type: capacity-block, on-demand, reserved-3y, spot.")
    ] = None,
    price_date: Annotated[str, typer.Option("--price-date", help="Date of the price; default: the newest.")] = "",
    against: Annotated[
        str | None, typer.Option("--against", help="A system with a price, for the break-even price of one without.")
    ] = None,
    mtbf: Annotated[float | None, typer.Option("--mtbf", help="Hours between failures of one chip.")] = None,
    checkpoint: Annotated[float, typer.Option("--checkpoint", help="Seconds of a checkpoint.", min=0)] = 60.0,
    restart: Annotated[float, typer.Option("--restart", help="Seconds from a failure to work.", min=0)] = 600.0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="What if: PATH=VALUE of the chip, as for trnsim op. Repeat.")
    ] = None,
    chakra: Annotated[
        Path | None, typer.Option("--chakra", help="Write the best plan's step into this folder, a trace a stage.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that search.", min=1)] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Search over the machines of a Ray cluster: its address, or local.")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the plans to FILE, or - for output.")] = None,
) -> None:
    """Plan the training of a model: with a layout, that one; without, the best of all that fit in memory.

    Degrees that are given stay; the others are searched. tp counts ranks: logical cores on Trainium, GPUs elsewhere.

    Example: trnsim plan train --model llama-3.1-70b --system trn2.48xlarge --chips 512 --global-batch 1024 --seq 8192
    """
    from trnsim.commands.plan_report import Asked, report
    from trnsim.planner.search import DEGREES, search

    given = {"tp": tp, "pp": pp, "vpp": vpp, "cp": cp, "ep": ep, "dp": dp, "micro_batch": micro_batch,
             "recompute": recompute, "zero": zero}  # fmt: skip
    fixed = {name: value for name in DEGREES if (value := given[name]) is not None}
    _check(fixed)
    wanted = wanted_of(model, system, chips, sequence, global_batch, fixed, dtype, implementation, stack, lnc, set_)
    found = search(wanted, top, _spread(workers, ray))
    asked = Asked(
        tokens=parse_tokens(tokens), mtbf_hours=mtbf, checkpoint_seconds=checkpoint, restart_seconds=restart,
        price=price, price_date=price_date, against=against, explain=explain,
    )  # fmt: skip
    report(found, asked, json)
    if chakra is not None:
        from trnsim.commands.chakra import write_steps
        from trnsim.commands.output import said

        for path in write_steps(found.best[0].plan, chakra):
            said(f"wrote {path}")


def _spread(workers: int, ray: str | None) -> Spread | None:
    """Where a search runs; None: here."""
    if ray is not None:
        from trnsim.planner.spread import ray_cluster

        return ray_cluster("" if ray == "local" else ray)
    if workers > 1:
        from trnsim.planner.spread import processes

        return processes(workers)
    return None


def _check(fixed: dict[str, int | str]) -> None:
    from trnsim.workloads.layout import RECOMPUTATION

    for name, value in fixed.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, int) and value < (0 if name == "zero" else 1):
            raise InputError(f"{option} must be at least 1", operand=option, value=value)
    if fixed.get("recompute", "none") not in RECOMPUTATION:
        raise InputError("no such recomputation", operand="--recompute", value=fixed["recompute"], limit=RECOMPUTATION)
    if fixed.get("zero", 1) not in (0, 1, 2, 3):
        raise InputError("--zero is 0, 1, 2 or 3", operand="--zero", value=fixed["zero"])


def wanted_of(
    model: str, system: str, chips: int, sequence: int, global_batch: int, fixed: dict[str, int | str], dtype: str,
    implementation: str | None, stack: str | None, lnc: int | None, settings: Sequence[str] | None,
) -> Wanted:  # fmt: skip
    """What options ask to search for.

    Raises:
        InputError: unknown names or formats.
    """
    from trnsim.planner.search import Wanted
    from trnsim.planner.stack import load_training_stack
    from trnsim.planner.training import default_stack
    from trnsim.workloads import Layout, load_model

    if dtype not in FORMATS:
        raise InputError(f"no format {dtype!r} of training", operand="--dtype", value=dtype, limit=sorted(FORMATS))
    where = changed_system(system, settings)
    surround = load_training_stack(stack or default_stack(where))
    wide, narrow = FORMATS[dtype]
    base: Layout = Layout(dtype=wide, product_dtype=narrow, gradient_dtype=surround.gradient_dtype)
    return Wanted(
        model=load_model(model), system=where, chips=chips, sequence=sequence, global_batch=global_batch, fixed=fixed,
        base=base, implementation=implementation or "", stack=surround.name, lnc=lnc,
    )  # fmt: skip


def changed_system(name: str, settings: Sequence[str] | None) -> System:
    """A system, with what ``--set`` changes of its chip."""
    from trnsim.hardware import load_system
    from trnsim.hardware.whatif import systems_with

    return load_system(systems_with([name], settings)[0])


def parse_tokens(text: str) -> float:
    """``15T`` is 15e12 tokens.

    Raises:
        InputError: no number.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmbgt]?)", text.strip().lower())
    try:
        assert match is not None
        value = float(match[1]) * _SCALES.get(match[2], 1.0)
    except (AssertionError, ValueError):
        raise InputError("--tokens is a number such as 15T or 300B", operand="--tokens", value=text) from None
    if value <= 0:
        raise InputError("--tokens must be more than 0", operand="--tokens", value=text)
    return value


def register(plan_app: typer.Typer) -> None:
    """Add the command to ``trnsim plan``."""
    plan_app.command()(train)
