"""The constants reproduce the published classes that they were fitted to, and say where they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from timing_programs import chip, timing

from trnsim.errors import InputError
from trnsim.hardware.load import load_chip
from trnsim.hardware.timing_constants import load_timing

NS = 1_000


@pytest.mark.parametrize("name", ["trn1", "trn2", "trn3"])
def test_every_constant_has_a_source(name):
    found = timing(name)
    assert found.constants
    for constant in found.constants:
        assert constant.source, constant.name
        assert constant.unit, constant.name
        assert constant.support in ("calibrated", "documented", "assumed"), constant.name
        if constant.support == "calibrated" and constant.unit == "ns":
            assert constant.residual or "distance" in constant.source or "window" in constant.name, constant.name


# Medians of trn2_instr_timing.csv (ten public profiles of trn2), in nanoseconds.
@pytest.mark.parametrize(
    ("what", "measured"),
    [
        (lambda t: t.tensor.multiply(512), 216.5),
        (lambda t: t.tensor.multiply(128), 56.0),
        (lambda t: t.tensor.multiply(512, cycles_per_row=2), 429.0),
        (lambda t: t.tensor.multiply(128, cycles_per_row=2), 112.0),
        (lambda t: t.tensor.multiply(512) + t.tensor.tail_ps, 379.0),
        (lambda t: t.tensor.multiply(512, cycles_per_row=2) + t.tensor.tail_ps, 591.0),
        (lambda t: t.vector.duration(512), 690.0),
        (lambda t: t.vector.duration(128), 290.5),
        (lambda t: t.vector.interval(512), 603.0),
        (lambda t: t.vector.duration(256, arithmetic=True), 481.0),
        (lambda t: t.vector.interval(256, arithmetic=True), 396.0),
        (lambda t: t.vector.duration(128, arithmetic=True), 349.5),
        (lambda t: t.scalar.duration(512), 585.0),
        (lambda t: t.scalar.duration(128), 265.0),
        (lambda t: t.scalar.interval(512), 477.0),
        (lambda t: t.scalar.duration(512) + t.scalar.activate_ps, 696.5),
        (lambda t: t.dma.packet_ps + 512 * 1e3 / t.dma.bytes_per_ns, 27.0),
        (lambda t: t.dma.packet_ps + 4096 * 1e3 / t.dma.bytes_per_ns, 158.0),
    ],
)
def test_constants_reproduce_their_classes(what, measured):
    assert what(timing()) / NS == pytest.approx(measured, rel=0.03)


def test_sustained_rate_is_the_documented_one():
    for name, rate in (("trn2", 23), ("trn3", 33)):
        d = timing(name).dma
        assert 65_536 / (d.packet(65_536) / NS) == pytest.approx(rate, rel=0.01)
    d = timing("trn1").dma
    assert 65_536 / (d.transfer(16 * d.packet(4096), 65_536, static=False) / NS) == pytest.approx(17, rel=0.01)


def test_transfers_of_32_kib_on_trn1_take_what_their_profile_shows():
    d = timing("trn1").dma
    assert d.transfer(8 * d.packet(4096), 32_768, static=True) / NS == pytest.approx(1985, rel=0.03)
    # Two that share an engine last longer than either alone: the fixed part is no more than 80 ns of it.
    alone = replace(d, sustained_bytes_per_ns=27.0)
    assert alone.transfer(8 * d.packet(4096), 32_768, static=True) / NS == pytest.approx(1280, rel=0.01)


def test_few_long_runs_are_cut_for_all_engines():
    d = timing().dma
    assert d.split(2048, 128) == ((2048, 128),)
    assert d.split(1 << 20, 1) == ((1 << 16, 16),)
    assert d.split(512, 4) == ((512, 4),)


def test_clocks_come_from_the_chip():
    assert timing("trn1").vector.cycles(1120) == 1_000_000
    assert chip("trn1").core.version == "v2"


def test_chips_without_neuroncore_are_refused():
    with pytest.raises(InputError):
        load_timing(load_chip("h100"))
