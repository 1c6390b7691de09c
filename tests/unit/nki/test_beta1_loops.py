"""Python numbers in loops that the compiler of NKI 0.1 called once: what they hold, and what the report says."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import trnsim
from trnsim.nki.versions import beta1 as nki
from trnsim.nki.versions.beta1 import language as nl


def in_place(seen, loop):
    total = 16
    for _ in loop(3):
        seen.append(total)
        total += 8  # changes
    return total


def assigned(seen, loop):
    total = 16
    for _ in loop(3):
        seen.append(total)
        total = total + 8  # changes
    return total


def in_a_closure(seen, loop):
    total = 16

    def value():
        return total

    for _ in loop(3):
        seen.append(value())
        total += 8  # changes
    return total


def two_at_once(seen, loop):
    total, other = 16, 0.5
    for _ in loop(3):
        seen.append(total)
        other, total = other / 2, total + 8  # changes
    return total


def after_an_inner_loop(seen, loop):
    total = 16
    for _ in loop(3):
        seen.append(total)
        for _ in nl.static_range(2):
            total += 4  # changes
    return total


def long_body(seen, loop):
    total = 16
    for _ in loop(3):
        seen.append(total)
        total += 1 + 0  # changes
        a = b = c = d = e = f = g = h = total
        seen.append([a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h])
        seen.append([a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h])
        seen.append([a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h])
        seen.append([a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h])
        del seen[-4:]
        total += 7
    return total


@pytest.mark.parametrize("loop", [nl.affine_range, nl.sequential_range, nl.static_range, range])
@pytest.mark.parametrize("body", [in_place, assigned, in_a_closure, two_at_once, after_an_inner_loop, long_body])
def test_numbers_that_a_loop_changes(body, loop):
    seen, after = [], []

    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        after.append(body(seen, loop))
        nl.store(out, nl.load(a))
        return out

    session = trnsim.Session()
    with session.active():
        nki.jit(kernel)(np.ones((4, 4), np.float32))
    findings = session.calls[0].findings
    if loop in (nl.static_range, range):
        assert (seen, after, findings) == ([16, 24, 32], [40], ())
        return
    assert (seen, after) == ([16, 16, 16], [24])
    (finding,) = [f for f in findings if f.details["variable"] == "total"]
    assert (finding.kind, finding.severity, finding.count) == ("number-not-carried", "info", 2)
    assert finding.location.file == __file__
    lines, first = inspect.getsourcelines(body)
    assert finding.location.line == first + next(n for n, line in enumerate(lines) if "# changes" in line)
    assert f"'total' is changed in a loop of {loop.__name__}" in finding.message
    assert "plain Python" in finding.message


def test_what_a_loop_over_range_carries_is_reported():
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        total, step = 0, 2
        for i in range(3):
            total += step * i  # changes
            step = i
        unrolled = 0
        for _ in nl.static_range(3):
            unrolled += 2
        for unrolled in range(2):
            step = unrolled
        for chosen in (1, 2):
            step += chosen
        nl.store(out, nl.load(a) * (total + step))
        return out

    session = trnsim.Session()
    with session.active():
        nki.jit(kernel)[3](np.ones((4, 4), np.float32))
    findings = {f.details["variable"]: f for f in session.calls[0].findings}
    assert set(findings) == {"total", "step"}
    assert {(f.kind, f.severity, f.count) for f in findings.values()} == {("number-carried", "info", 1)}
    lines, first = inspect.getsourcelines(kernel)
    assert findings["total"].location.line == first + next(n for n, line in enumerate(lines) if "# changes" in line)


def set_in_the_body(loop):
    total = 5
    for i in loop(3):
        total = i
        for _ in nl.static_range(2):
            total += 1
    return total


def one_iteration(loop):
    total = 5
    for _ in loop(1):
        total += 1
    return total


def no_number(loop):
    total = [5]
    for _ in loop(3):
        total = [*total, 1]
    return total


def no_loop(loop):
    total = sum(1 for _ in loop(3))
    for _ in [*loop(3)]:
        total += 1
    return total


@pytest.mark.parametrize(
    ("body", "result"), [(set_in_the_body, 4), (one_iteration, 6), (no_number, [5, 1, 1, 1]), (no_loop, 6)]
)
def test_what_is_no_accumulation(body, result):
    @nki.jit
    def kernel():
        out = nl.ndarray((4, 4), dtype=nl.float32, buffer=nl.shared_hbm)
        assert body(nl.affine_range) == result
        nl.store(out, nl.zeros((4, 4), dtype=nl.float32))
        return out

    session = trnsim.Session()
    with session.active():
        kernel()
    assert not session.calls[0].findings
