"""``trnsim collective``: how long a collective takes on a system, by size, beside published times."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, said, table, write_json
from trnsim.errors import InputError
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.fabric.group import Group
    from trnsim.fabric.predict import Prediction
    from trnsim.report.charts import Chart

SCHEMA = "trnsim-collective-1"
LARGEST = 1 << 44
DRAWS = 10_000


def collective(
    name: Annotated[
        str,
        typer.Argument(
            metavar="COLLECTIVE",
            help="all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, or permute (each to the next).",
        ),
    ],
    system: Annotated[str, typer.Option("--system", help="A system of the catalogue, or its TOML file.")],
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks: logical cores, or GPUs.")],
    sizes: Annotated[
        str, typer.Option("--sizes", help="FROM:TO (doubling), or sizes with commas between.")
    ] = "8KiB:1GiB",
    systems: Annotated[
        int | None, typer.Option("--systems", min=1, help="How many systems; default: as few as hold the ranks.")
    ] = None,
    stride: Annotated[int, typer.Option("--stride", help="Logical cores from one rank to the next.")] = 1,
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core; default: the chip's.")] = None,
    skew: Annotated[
        bool, typer.Option("--skew", help="Also the time with stragglers: median and 90th percentile.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the stragglers.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="TRNSIM_DATA", help="Published times: collectives.csv or its folder."),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw into FILE.svg or FILE.html.")] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the times to FILE, or - for standard output.")
    ] = None,
) -> None:
    """Predict the time, algorithm and bus bandwidth of a collective by size.

    Sizes count as in nccom-test and NCCL's tests: the buffer of an all_reduce, all ranks' shares of an all_gather.

    Example: trnsim collective all_reduce --system trn2.48xlarge --ranks 64 --sizes 8KiB:1GiB --plot all_reduce.svg
    """
    from trnsim.fabric.group import group
    from trnsim.fabric.predict import predict

    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise InputError("a plot is an .svg or .html file", operand="--plot", value=str(plot))
    if stride < 1:
        raise InputError("ranks lie at least one logical core apart", operand="--stride", value=stride, limit=1)
    wanted = parse_sizes(sizes)
    where = group(system, ranks, stride=stride, systems=systems, lnc=lnc)
    chosen = name.replace("-", "_")
    found = [predict(where, chosen, size) for size in wanted]
    late = _stragglers(where, seed) if skew else None
    published = _published(data, where, chosen, wanted[-1]) if data is not None else []
    if plot is not None:
        _plot(plot, where, found, late, published)
    if json is not None:
        write_json(_json(where, found, late, published, seed), json)
    if json != "-":
        _show(where, found, late, published, seed)


def parse_sizes(text: str) -> list[int]:
    """Bytes: ``8KiB:1GiB`` doubles from the first to the last, ``1MB,8MB`` are these.

    Raises:
        InputError: not sizes, none, or above 16 TiB.
    """
    low, colon, high = text.partition(":")
    if not colon:
        return sorted({_size(part) for part in text.split(",")})
    first, last = _size(low), _size(high)
    if first > last:
        raise InputError("sizes go from the smaller to the larger", operand="--sizes", value=text)
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return found


def _size(text: str) -> int:
    from trnsim.hardware.quantity import SIZE

    try:
        size = int(text) if text.strip().isdigit() else int(SIZE.parse(text))
    except ValueError as error:
        raise InputError(f"--sizes: {text!r} {error}") from None
    if not 1 <= size <= LARGEST:
        raise InputError("a size is at least one byte and at most 16 TiB", operand="--sizes", value=text)
    return size


def _stragglers(where: Group, seed: int) -> tuple[float, float]:
    """Picoseconds that the first rank waits for the last: median and 90th percentile."""
    import numpy as np

    from trnsim.fabric.skew import published

    waits = published().waits(where.size, DRAWS, seed)
    return float(np.quantile(waits, 0.5)), float(np.quantile(waits, 0.9))


@dataclass(frozen=True)
class _Point:
    """A published time. ``traced``: which quantile of a trace, in which ranks waited for each other; else empty."""

    nbytes: int
    us: float
    id: str
    traced: str


def _published(data: Path, where: Group, collective: str, largest: int) -> list[_Point]:
    """Published times of the same chips, ranks and nodes up to a size."""
    from trnsim.hardware import load_system
    from trnsim.validation.collectives.neuron import TRACE
    from trnsim.validation.collectives.rows import excluded, read_rows, system_of

    chip, found = where.topology.system.chip.name, []
    for row in read_rows(data):
        if excluded(row) is not None or row.microseconds is None or row.nbytes is None or row.nbytes > largest:
            continue
        name = system_of(row)
        nodes = where.spread.systems if where.spread is not None else where.topology.systems
        same = name is not None and load_system(name).chip.name == chip
        if same and (row.collective, row.ranks, row.nodes) == (collective, where.size, nodes):
            traced = row.stat.split()[0] if TRACE.search(row.stat) else ""
            found.append(_Point(row.nbytes, row.microseconds, row.id, traced))
    return found


def _show(
    where: Group,
    found: Sequence[Prediction],
    late: tuple[float, float] | None,
    published: Sequence[_Point],
    seed: int,
) -> None:
    columns = ["size", "time us", "algorithm", "GB/s", "bus GB/s"]
    columns += ["median us", "p90 us"] if late else []
    columns += ["published us"] if published else []
    columns += ["support"]
    rows = []
    for p in found:
        row = [format_bytes(p.nbytes), f"{p.time_ps / 1e6:,.1f}", f"{p.algorithm} {p.protocol}".strip(),
               f"{p.algorithm_bytes_per_second / 1e9:,.2f}", f"{p.bus_bytes_per_second / 1e9:,.2f}"]  # fmt: skip
        row += [f"{(p.time_ps + wait) / 1e6:,.1f}" for wait in late or ()]
        if published:
            row.append(", ".join(_beside(point, p) for point in published if point.nbytes == p.nbytes))
        error = "" if p.error_percent is None else f" ±{p.error_percent:.0f} %"
        rows.append([*row, f"{p.support}{error}"])
    out = console()
    title = f"{found[0].collective} of {where.size} ranks, {where.topology.name}"
    out.print(table(title, columns, rows))
    for reason in dict.fromkeys(f"{p.support}: {p.reason}" for p in found):
        out.print(reason, highlight=False)
    if any(point.traced for point in published):
        out.print("published min, median, p90, max: of a trace, in which ranks waited for the last", highlight=False)
    if late:
        from trnsim.fabric.skew import published as skew_of

        out.print(f"stragglers: seed {seed}, {DRAWS} collectives; {skew_of().reason}", highlight=False)


def _beside(point: _Point, p: Prediction) -> str:
    """A published time with our error; the quantiles of traces, where ranks wait, stand without one."""
    if point.traced:
        return f"{point.traced} {point.us:,.1f}"
    return f"{point.us:,.1f} ({p.time_ps / 1e6 / point.us - 1:+.0%})"


def _json(
    where: Group,
    found: Sequence[Prediction],
    late: tuple[float, float] | None,
    published: Sequence[_Point],
    seed: int,
) -> dict[str, Any]:
    times = []
    for p in found:
        entry: dict[str, Any] = {
            **asdict(p),
            "time_us": p.time_ps / 1e6,
            "algorithm_gb_per_second": p.algorithm_bytes_per_second / 1e9,
            "bus_gb_per_second": p.bus_bytes_per_second / 1e9,
            "published": [
                {"time_us": x.us, "id": x.id, "quantile": x.traced or None} for x in published if x.nbytes == p.nbytes
            ],
        }
        if late:
            entry |= {"median_us": (p.time_ps + late[0]) / 1e6, "p90_us": (p.time_ps + late[1]) / 1e6}
        times.append(entry)
    return {
        "schema": SCHEMA,
        "system": where.topology.name,
        "ranks": where.size,
        "seed": seed if late else None,
        "times": times,
    }


def _plot(
    file: Path,
    where: Group,
    found: Sequence[Prediction],
    late: tuple[float, float] | None,
    published: Sequence[_Point],
) -> None:
    from trnsim.report.charts import html, svg
    from trnsim.report.files import write_text_atomic

    charts = [_chart(where, found, late, published, of_time=of_time) for of_time in (True, False)]
    notes = dict.fromkeys(f"{p.support}: {p.reason}" for p in found)
    write_text_atomic(file, svg(charts) if file.suffix == ".svg" else html(charts[0].title, charts, list(notes)))
    said(f"wrote {file}")


def _chart(
    where: Group,
    found: Sequence[Prediction],
    late: tuple[float, float] | None,
    published: Sequence[_Point],
    *,
    of_time: bool,
) -> Chart:
    """Time, or bus bandwidth, by size: a line for each algorithm, dashed with stragglers, and published points."""
    from trnsim.fabric.predict import bus_factor
    from trnsim.report.charts import Chart, Series

    factor = bus_factor(found[0].collective, where.size) / 1e3

    def series(name: str, points: Sequence[tuple[int, float]], color: int, **how: bool) -> Series:
        heights = [us if of_time else size / us * factor for size, us in points]
        return Series(name, [size for size, _ in points], heights, color=color, **how)

    runs: list[tuple[str, list[tuple[int, float]]]] = []
    for p in found:
        name = f"{p.algorithm} {p.protocol}".strip()
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append((p.nbytes, p.time_ps / 1e6))
    colors = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in runs))}
    drawn = [series(name, points, colors[name]) for name, points in runs]
    for name, wait in zip(("median with stragglers", "p90"), late or (), strict=False):
        drawn.append(
            series(name, [(p.nbytes, (p.time_ps + wait) / 1e6) for p in found], 4 + len(drawn) % 2, dashed=True)
        )
    shown = [p for p in published if p.nbytes >= found[0].nbytes]
    for name, color, traced in (("published", 5, False), ("published trace, ranks waited", 4, True)):
        points = [(p.nbytes, p.us) for p in shown if bool(p.traced) == traced]
        if points:
            drawn.append(series(name, points, color, line=False))
    return Chart(
        title=f"{found[0].collective}, {where.size} ranks, {where.topology.name}",
        x_title="size",
        y_title="time, us" if of_time else "bus bandwidth, GB/s",
        series=drawn,
        x_tick=lambda x: format_bytes(x).replace(".0 ", " "),
        y_tick="{:g}".format,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(collective)
