"""The terminal report: fits, is plain in pipes, and says what matters."""

import io
import re

import pytest
from report_samples import make_call
from rich.console import Console

from trnsim.report.terminal import describe_arguments, render_terminal


def render(calls, width=100, **options):
    stream = io.StringIO()
    render_terminal(calls, Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("terminal", [False, True])
def test_fits(width, terminal, tmp_path):
    call = make_call(folder=tmp_path, support_reason="a long reason " * 12, arguments=["float32 2048x2048x2048"] * 9)
    text = re.sub(r"\x1b\[[0-9;]*m", "", render([call], width, force_terminal=terminal))
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert len(make_page(tmp_path, width)) <= 45


def make_page(tmp_path, width):
    return render([make_call(folder=tmp_path)], width).splitlines()


def test_pipe_has_no_escape_codes_and_is_ascii(tmp_path):
    call = make_call(folder=tmp_path, kernel="größe")
    text = render([call])
    assert "\x1b" not in text
    assert text.isascii()


def test_terminal_has_colours(tmp_path):
    assert "\x1b[" in render([make_call(folder=tmp_path)], force_terminal=True, color_system="standard")


def test_headline_and_content(tmp_path):
    text = render([make_call(folder=tmp_path)])
    headline = text.splitlines()[0]
    assert headline.startswith("nki_matmul_tiled_   trn2, 1 core, 3 x float32 2048x2048 ")
    assert headline.endswith("(calibrated, +-8 %)")
    parts = """bound by|TensorE|DMA|MFU|% of peak|SBUF|PSUM|rhs_tile|matmul.py:12|rhs_tile = nl.load(rhs[k
|[uninitialized-read] (3 times)|schedule nki|seed 7|throttle"""
    for part in parts.replace("\n", "").split("|"):
        assert part in text


def test_two_calls_and_no_traces():
    text = render([make_call(traces=False), make_call(findings=(), numeric=False)])
    assert text.count("bound by") == 2
    assert "time only" in text


def test_empty_timeline():
    call = make_call(0)
    assert "nothing" not in render([call])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], ""),
        (["float32 2x4"], "float32 2x4"),
        (["float32 2x4", "float32 4x8"], "float32 2x4, 4x8"),
        (["float32 2x4", "bfloat16 4", "float32 1"], "float32 2x4, bfloat16 4, float32 1"),
        (["float32 4", "axis=1", "axis=1"], "float32 4, 2 x axis=1"),
    ],
)
def test_arguments(arguments, text):
    assert describe_arguments(arguments) == text
