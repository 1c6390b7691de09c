"""The same as the commands, from Python: ``simulate``, ``simulate_ranks`` and ``profile``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.numerics import as_dtype
from trnsim.session import Session, ShapeOnly, SimulationOptions, current_session

if TYPE_CHECKING:
    from trnsim.machine.ranks import World
    from trnsim.report.call import KernelCall

_SHORT = {
    "f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16", "tf32": "tfloat32",
    "f8e4m3": "float8_e4m3", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "i8": "int8", "i16": "int16",
    "i32": "int32", "u8": "uint8", "u16": "uint16", "u32": "uint32",
}  # fmt: skip
_SPEC = re.compile(r"^(?P<dtype>[A-Za-z_0-9]+)\[(?P<shape>[0-9,x ]*)\]$")


def parse_argument(text: str) -> Any:
    """An argument written as text: ``f32[2048,2048]``, ``file.npy``, or a Python literal such as ``16`` or ``(2, 3)``.

    Raises:
        InputError: it is none of these.
    """
    import ast

    from trnsim.session import load_argument

    match = _SPEC.match(text.strip())
    if match:
        name = match["dtype"]
        dtype = as_dtype(_SHORT.get(name, name))
        shape = tuple(int(n) for n in re.split(r"[,x]", match["shape"].replace(" ", "")) if n)
        if not shape or min(shape) < 1:
            raise InputError(f"argument {text!r} needs a shape of positive sizes, like f32[128,512]")
        return ShapeOnly(shape, dtype)
    if text.endswith(".npy"):
        return load_argument(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if re.fullmatch(r"[A-Za-z_][\w.]*", text):
        return text
    raise InputError(
        f"cannot read argument {text!r}: write a shape like f32[2048,2048], a file.npy, or a Python literal"
    )


def simulate(
    kernel: Any,
    *args: Any,
    chip: str | None = None,
    options: SimulationOptions | None = None,
    **kwargs: Any,
) -> Any:
    """Run ``kernel`` (a ``nki.jit`` kernel, ``kernel[lnc]`` or a plain function) with numbers; returns its results.

    Args:
        args, kwargs: the kernel's arguments: NumPy, PyTorch or JAX arrays, and plain values.
        chip: ``trn1``, ``trn2``, ``trn3``, ``inf2`` or a TOML file; see ``SimulationOptions.chip``.

    Raises:
        TrnsimError: what the kernel did wrong, or what trnsim cannot do.
    """
    from trnsim.installation import in_place
    from trnsim.nki.kernel import as_kernel

    chosen = options or SimulationOptions(chip=chip, timed=False)
    wrapped = as_kernel(kernel, in_place())
    return wrapped.launch(args, kwargs, chosen)


def simulate_ranks(
    kernel: Any,
    args: Sequence[Sequence[Any] | Mapping[str, Any]],
    *,
    chip: str | None = None,
    lnc: int | None = None,
    options: SimulationOptions | None = None,
    system: str | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Run ``kernel`` once a rank, all in this process, so that ``nki.collectives`` work; returns each rank's results.

    Args:
        kernel: a ``nki.jit`` kernel, ``kernel[lnc]`` or a plain function.
        args: the arguments of each rank, in rank order: arrays and plain values, or a mapping of them by name.
        chip: as for ``simulate``; every rank is one logical core of it.
        lnc: cores of a rank, 1 or 2; default: those of ``kernel[lnc]``.
        system: the instance or UltraServer (or as many of them as are needed) that the ranks fill from the first
            logical core on, such as ``"trn2.48xlarge"``: collectives then add up as its runtime's algorithms do, and
            calls are timed if the session (or ``options``) asks for it.
        kwargs: keyword arguments for all ranks.

    An array that several ranks are given is copied for all but the first: each rank has its own memory.

    Raises:
        DeadlockError: ranks wait for each other in collectives that do not match.
        InputError: the system is unknown, cannot hold the ranks, or has another chip.
        TrnsimError: what the kernel did wrong, or what trnsim cannot do.
    """
    from trnsim.installation import in_place
    from trnsim.machine.ranks import World
    from trnsim.nki.kernel import Kernel

    if not args:
        raise InputError("simulate_ranks needs the arguments of at least one rank", operand="args")
    wrapped = kernel if isinstance(kernel, Kernel) else Kernel(kernel, release=in_place())
    if lnc is not None:
        wrapped = wrapped[lnc]
    chosen = options or SimulationOptions(chip=chip, timed=False)
    world = World(len(args))
    if system is not None:
        session = current_session()
        if session is not None and options is None:
            chosen = session.options if chip is None else replace(session.options, chip=chip)
        chosen = _placed(world, system, chosen, wrapped.lnc or chosen.lnc or 1)
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(own(v) for v in value)
        if hasattr(value, "__array__") and hasattr(value, "copy") and id(value) in seen:
            return value.copy()
        seen.add(id(value))
        return value

    given = [() if isinstance(rank, Mapping) else tuple(own(value) for value in rank) for rank in args]
    named = [
        {key: own(value) for key, value in {**kwargs, **(rank if isinstance(rank, Mapping) else {})}.items()}
        for rank in args
    ]
    return world.run(
        [
            lambda r=rank: wrapped.launch(given[r], named[r], chosen, rank=r, world=world)  # type: ignore[misc]
            for rank in range(world.size)
        ]
    )


def _placed(world: World, system: str, options: SimulationOptions, lnc: int) -> SimulationOptions:
    """Puts the ranks into a system; returns the options with its chip."""
    from trnsim.nki.placement import Placement

    world.placement = Placement(system, world.size, lnc)
    chip = world.placement.chip
    if options.chip is not None and load_chip(options.chip).name != chip:
        raise InputError(f"{system} has {chip}, not {options.chip}", operand="chip", value=options.chip, limit=chip)
    return replace(options, chip=chip)


def profile(
    kernel: Any,
    *args: Any,
    chip: str | None = None,
    numeric: bool = False,
    options: SimulationOptions | None = None,
    arguments: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> KernelCall:
    """Predict the time of ``kernel``; returns the record that reports are made of.

    Arguments may be arrays, or shapes as text such as ``"f32[2048,2048]"``: then nothing is computed unless control
    flow needs it.

    Raises:
        NeedsDataError: a value decides control flow and there is no data for it.
        TrnsimError: what the kernel did wrong, or what trnsim cannot do.
    """
    from trnsim.installation import in_place
    from trnsim.nki.kernel import as_kernel

    chosen = options or SimulationOptions(chip=chip, numeric=numeric, arguments=dict(arguments or {}))
    session = Session(chosen)
    wrapped = as_kernel(kernel, in_place())
    values = [parse_argument(a) if isinstance(a, str) and _SPEC.match(a) else a for a in args]
    named = {k: parse_argument(a) if isinstance(a, str) and _SPEC.match(a) else a for k, a in kwargs.items()}
    with session.active():
        wrapped.launch(tuple(values), named, chosen)
    return session.calls[-1]
