"""The picture of ``trnsim compare``: throughput against latency, times, cost and chips, with error bars.

An error bar is the mean error of the plan's stack on published runs that it was not fitted on. Where there is none the
bar is hatched: assumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trnsim.commands.compare_report import NAMES, Served, days
from trnsim.commands.roofline import COLOURS
from trnsim.errors import InputError, UnsupportedError
from trnsim.planner.serving import ServingEstimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trnsim.commands.compare_report import Trained
    from trnsim.planner.comparison import Basis, Compared

SUFFIXES = (".svg", ".png", ".html")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em}}
svg{{max-width:100%;height:auto}}table{{border-collapse:collapse}}td,th{{padding:.3em .8em;text-align:right;
border-bottom:1px solid #ddd}}td:first-child,th:first-child,td:nth-child(2),td:nth-child(3){{text-align:left}}</style>
<h1>{title}</h1>{picture}<table>{rows}</table><p>{below}</p></html>
"""


def check(target: str) -> None:
    """Before anything is computed.

    Raises:
        InputError: another kind of picture.
        UnsupportedError: Matplotlib is not installed.
    """
    if Path(target).suffix not in SUFFIXES:
        raise InputError(f"--plot {target}: no such kind of picture", operand="--plot", limit=SUFFIXES)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UnsupportedError("--plot needs Matplotlib: pip install 'trnsim[plots]'") from error


def draw(what: Served | Trained, rows: Sequence[Compared], basis: Basis, target: str) -> None:
    """Draw a comparison into ``target``, whose suffix says as what."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: F401
    from matplotlib.figure import Figure

    check(target)
    shown = [row for row in rows if row.best is not None]
    figure = Figure(figsize=(13, 9), layout="constrained")
    if not target.endswith(".html"):
        figure.suptitle(what.title)
    places = figure.subplots(2, 2)
    if isinstance(what, Served):
        _curves(places[0, 0], shown)
        _bars(places[0, 1], shown, _tpot, "TPOT, ms", error=True)
    else:
        _bars(places[0, 0], shown, lambda r: r.tokens_per_second_per_chip, "tokens a second and chip", error=True)
        _bars(places[0, 1], shown, lambda r: days(what, r), f"days for {what.tokens:.3g} tokens", error=True)
    dated = f", {basis.type} {basis.date}" if basis.date else ""
    _bars(places[1, 0], shown, lambda r: r.usd_per_million, f"USD a million {what.unit}{dated}", error=True)
    _bars(places[1, 1], shown, lambda r: r.best.chips if r.best else None, "chips", error=False)
    _write(figure, what, rows, basis, Path(target))


def _tpot(row: Compared) -> float | None:
    return row.best.state.tpot * 1e3 if isinstance(row.best, ServingEstimate) else None


def _systems(rows: Sequence[Compared]) -> list[str]:
    return list(dict.fromkeys(row.system for row in rows))


def _curves(axes: Any, rows: Sequence[Compared]) -> None:
    """Throughput of a chip against TPOT, one line a system and variant, more users to the right."""
    systems = _systems(rows)
    for row in rows:
        if not row.curve:
            continue
        colour = COLOURS[systems.index(row.system) % len(COLOURS)]
        shipped = row.variant == "as-shipped"
        x = [e.state.tpot * 1e3 for e in row.curve]
        y = [e.output_tokens_per_second_per_chip for e in row.curve]
        share = (row.error_percent or 0.0) / 100
        axes.errorbar(
            x, y, xerr=[share * at for at in x] if share else None, color=colour, marker="o" if shipped else "^",
            markersize=4, linestyle="-" if shipped else "--", linewidth=1.2, elinewidth=0.6, capsize=2,
            label=f"{row.system}, {NAMES[row.variant]}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("TPOT, ms (frontier over layouts and 1 to 1,024 users)")
    axes.set_ylabel("output tokens a second and chip")
    axes.grid(visible=True, which="major", linewidth=0.3)
    for one in (axes.xaxis, axes.yaxis):
        one.set_major_formatter(lambda value, _: f"{value:,g}")
        one.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:.0e}"[0] in "25" else "")
        one.set_tick_params(which="both", labelsize=8)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False)


def _bars(
    axes: Any, rows: Sequence[Compared], value: Callable[[Compared], float | None], label: str, *, error: bool
) -> None:
    systems = _systems(rows)
    variants = list(dict.fromkeys(row.variant for row in rows))
    width = 0.8 / max(len(variants), 1)
    highest = max((v for row in rows if (v := value(row)) is not None), default=1.0)
    for row in rows:
        system, variant = systems.index(row.system), variants.index(row.variant)
        at = system + (variant - (len(variants) - 1) / 2) * width
        found = value(row)
        if found is None:
            axes.text(at, highest * 0.02, "refused", rotation=90, ha="center", va="bottom", fontsize=8)
            continue
        share = row.error_percent if error else None
        shipped = row.variant == "as-shipped"
        axes.bar(
            at, found, width * 0.92, color=COLOURS[system % len(COLOURS)], alpha=1.0 if shipped else 0.5,
            yerr=None if share is None else found * share / 100, capsize=3,
            hatch="//" if error and share is None else None, edgecolor="white",
        )  # fmt: skip
        top = found * (1 + (share or 0.0) / 100)
        axes.text(at, top, f"{found:,.3g}" if found < 1000 else f"{found:,.0f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(systems)), systems, rotation=15, ha="right", fontsize=8)
    axes.set_ylabel(label)
    axes.margins(y=0.15)
    if error:
        axes.set_title("solid: as shipped; pale: best kernel; hatched: no published error", fontsize=8)


def _write(figure: Any, what: Served | Trained, rows: Sequence[Compared], basis: Basis, path: Path) -> None:
    import io

    from trnsim.report.files import svg_of, write_bytes_atomic, write_text_atomic

    if path.suffix == ".png":
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        write_bytes_atomic(path, data.getvalue())
        return
    picture = svg_of(figure)
    if path.suffix == ".svg":
        write_text_atomic(path, picture)
        return
    write_text_atomic(path, _page(what, rows, basis, picture[picture.index("<svg") :]))


def _page(what: Served | Trained, rows: Sequence[Compared], basis: Basis, picture: str) -> str:
    from html import escape

    from trnsim.commands.compare_report import cells_of

    middle = ["TTFT ms", "TPOT ms", "tokens/s"] if isinstance(what, Served) else ["step s", "days", "MFU"]
    heads = ["system", "operators", "layout", "chips", *middle, "a chip", "USD/M", "support"]
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells_of(what, row)) + "</tr>" for row in rows]
    below = [f"Prices: {basis.type}, {basis.date}." if basis.date else "No system has a public price."]
    for row in rows:
        if row.break_even:
            even = ", ".join(f"{name} at {hourly:,.2f}" for name, hourly in row.break_even.items())
            below.append(f"{row.system} ({NAMES[row.variant]}): US dollars an hour to break even with {even}.")
    return _PAGE.format(
        title=escape(what.title), picture=picture, rows="".join(lines), below="<br>".join(escape(one) for one in below)
    )
