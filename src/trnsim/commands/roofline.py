"""A roofline: peak rates of chips over operations a byte, and where uses of an operator stand below them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.commands.operator_costs import Found

SUFFIXES = (".svg", ".png", ".html")
# Colour-blind safe (Okabe and Ito), one a chip.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = {"kernel": "o", "compiler": "s", "gpu": "D", "library": "^"}
_PAGE = '<!doctype html><meta charset="utf-8"><title>{title}</title><body style="margin:2em">{picture}</body>\n'


def draw(found: Sequence[Found], dtype: str, cores: int, target: str) -> None:
    """Draw the costs into ``target``, whose suffix says as what.

    Raises:
        InputError: another suffix, or an operator that computes nothing.
        UnsupportedError: Matplotlib is not installed.
    """
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot {target}: no such kind of picture", operand="--plot", limit=SUFFIXES)
    costs = [(f, f.cost) for f in found if f.cost is not None]
    if not all(cost.flops for _, cost in costs):
        raise InputError(f"{costs[0][1].operator} computes nothing: a roofline has no place for it", operand="--plot")
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: F401
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("--plot needs Matplotlib: pip install 'trnsim[plots]'") from error

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    intensities = [cost.flops / cost.hbm_bytes for _, cost in costs]
    chips = list(dict.fromkeys(f.chip for f, _ in costs))
    labels = {f.chip: f.label for f, _ in costs}
    peaks = {chip: peak(chip, dtype, cores) for chip in chips}
    ridges = [flops / bandwidth for flops, bandwidth in peaks.values()]
    low, high = min(*intensities, *ridges) / 8, max(*intensities, *ridges) * 8
    for number, (chip, (flops, bandwidth)) in enumerate(peaks.items()):
        colour = COLOURS[number % len(COLOURS)]
        ridge = flops / bandwidth
        title = f"{labels[chip]}: {flops / 1e12:,.0f} TFLOPS, {bandwidth / 1e12:.2f} TB/s, ridge at {ridge:,.0f}"
        # Chips of one memory share a line: later ones are broken, so that both show.
        style = LINES[number % len(LINES)]
        heights = [low * bandwidth / 1e12, flops / 1e12, flops / 1e12]
        axes.plot([low, ridge, high], heights, style, color=colour, label=title)
        axes.axvline(ridge, color=colour, linewidth=0.5, linestyle=":")
    for one, cost in costs:
        reached = cost.flops / cost.time_ps
        places = 0 if reached >= 100 else 1 if reached >= 1 else 3
        axes.plot(
            [cost.flops / cost.hbm_bytes],
            [reached],
            MARKERS.get(one.implementation, "x"),
            color=COLOURS[chips.index(one.chip) % len(COLOURS)],
            markeredgecolor="white",
            markersize=11 - chips.index(one.chip) % 5,
            linestyle="none",
            label=f"{one.who}: {cost.microseconds:,.1f} us, {reached:,.{places}f} TFLOPS",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="operations a byte of HBM traffic",
        ylabel="TFLOPS",
        title=f"{costs[0][1].operator}, {dtype}",
    )
    axes.grid(visible=True, which="major", linewidth=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=2)
    _save(figure, path, f"{costs[0][1].operator} {dtype}")


def peak(chip: str, dtype: str, cores: int) -> tuple[float, float]:
    """Operations and bytes a second of a logical core, or of a GPU.

    Formats that the matrix engine has not (elementwise operators take any) are drawn with its 16-bit rate.
    """
    from trnsim.hardware import load_chip
    from trnsim.operators import gpu
    from trnsim.operators.compiled import Rates

    loaded = load_chip(chip)
    if loaded.family == "nvidia":
        rate = gpu.rates(chip, dtype if gpu.has(chip, dtype) else "bfloat16")
        return rate.flops * 1e6, rate.bandwidth * 1e6
    assert loaded.core is not None
    rates = Rates.of(chip, cores, dtype if loaded.core.tensor.flops(dtype) else "bfloat16")
    return rates.flops, rates.bytes_per_second


def _save(figure: Any, path: Path, title: str) -> None:
    from io import BytesIO

    from trnsim.report.files import svg_of, write_bytes_atomic, write_text_atomic

    if path.suffix == ".png":
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_bytes_atomic(path, buffer.getvalue())
        return
    picture = svg_of(figure)
    if path.suffix == ".html":
        picture = _PAGE.format(title=title, picture=picture[picture.index("<svg") :])
    write_text_atomic(path, picture)
