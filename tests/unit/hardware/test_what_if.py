"""Chips with facts or timing constants set by the user, and what is said of what cannot be set."""

import pickle

import pytest

from trnsim.errors import InputError
from trnsim.hardware import load_chip, load_timing
from trnsim.hardware.whatif import choose, reference, what_if, without_effect

TRN3 = load_chip("trn3")


@pytest.mark.parametrize(
    ("path", "value", "read", "expected"),
    [
        ("hbm.bandwidth", "6 TB/s", lambda c: c.hbm.bytes_per_second, 6 * 10**12),
        ("hbm_bandwidth", "48 Tb/s", lambda c: c.hbm.bytes_per_second, 6 * 10**12),
        ("core_count", 16, lambda c: c.core_count, 16),
        ("vector_clock", "2 GHz", lambda c: load_timing(c).vector.clock_hz, 2 * 10**9),
        ("sbuf.bytes_per_partition", "1 MiB", lambda c: c.core.sbuf.bytes_per_partition, 1 << 20),
        ("tensor.products.bfloat16", 2.5, lambda c: c.core.tensor.products["bfloat16"], 2.5),
        ("dma.packet", "0.005 us", lambda c: load_timing(c).dma.packet_ps, 5000),
        ("dma.bytes_per_ns", "40 GB/s", lambda c: load_timing(c).dma.bytes_per_ns, 40.0),
        ("dma.packet_bytes", "8 KiB", lambda c: load_timing(c).dma.packet_bytes, 8192),
        ("vector.reciprocal_cycles", "4 cycles", lambda c: load_timing(c).vector.reciprocal_cycles, 4),
        ("throttle_rise", 0.5, lambda c: load_timing(c).tensor.throttle_rise, 0.5),
        ("machine.bank_conflicts", 0, lambda c: load_timing(c).bank_conflicts, False),
    ],
)
def test_values(path, value, read, expected):
    chip = what_if("trn3", {path: value})
    assert read(chip) == expected
    assert read(load_chip(chip.name)) == expected
    assert read(TRN3) != expected
    (change,) = chip.changes
    where = [f for f in (chip.facts.get(change.path),) if change.path not in chip.constants]
    where += [c for c in load_timing(chip).constants if c.name == change.path]
    assert [f.source for f in where] == ["set by the user"]


def test_a_changed_chip_is_a_value():
    chip = what_if("Trainium3", {"dma.packet": "5 ns", "hbm.bandwidth": "6 TB/s"})
    assert chip.name == "trn3[dma.packet=5ns,hbm.bandwidth=6TB/s]"
    assert load_chip(chip.name) == pickle.loads(pickle.dumps(chip)) == chip
    assert hash(chip) == hash(load_chip(chip.name))
    assert chip == what_if(what_if("trn3", {"hbm.bandwidth": "6TB/s"}), {"dma.packet": "5ns"})
    assert what_if(chip, {"hbm_bandwidth": "7TB/s"}).hbm.bytes_per_second == 7 * 10**12
    assert chip.changed == "dma.packet = 5ns (was 8.6 ns), hbm.bandwidth = 6TB/s (was 4.9 TB/s)"
    assert (TRN3.changes, TRN3.changed) == ((), "")
    assert load_timing(TRN3).dma.packet_ps == 8600


def test_a_users_file_can_be_changed(tmp_path):
    path = tmp_path / "big.toml"
    path.write_text('base = "trn2"\ncore_count = 16\n')
    chip = what_if(path, {"hbm.bandwidth": "6TB/s"})
    assert reference(chip) == f"{path}[hbm.bandwidth=6TB/s]"
    assert load_chip(reference(chip)) == chip
    assert (chip.core_count, chip.hbm.bytes_per_second) == (16, 6 * 10**12)
    assert reference(TRN3) == "trn3"


@pytest.mark.parametrize(
    ("chip", "settings", "expected"),
    [
        (None, ["trn3.hbm_bandwidth=6 TB/s"], "trn3[hbm.bandwidth=6TB/s]"),
        ("trn3", ["hbm_bandwidth=6TB/s", "gen4.core_count=16"], "trn3[core_count=16,hbm.bandwidth=6TB/s]"),
        ("trn3[core_count=16]", ["trn3.hbm.bandwidth=6TB/s"], "trn3[core_count=16,hbm.bandwidth=6TB/s]"),
        ("h100", ["clock=2 GHz"], "h100[clock=2GHz]"),
        ("trn2", [], "trn2"),
        (None, [], None),
    ],
)
def test_options(chip, settings, expected):
    assert choose(chip, settings) == expected


@pytest.mark.parametrize(
    ("chip", "setting", "text"),
    [
        ("trn3", "hbm_bandwith=6TB/s", r"trn3 has no 'hbm_bandwith'; the nearest are hbm.bandwidth"),
        ("trn3", "sbuf=48MiB", r"no 'sbuf'"),
        ("trn3", "hbm.bandwidth=6GHz", r"hbm.bandwidth: '6GHz' unit 'GHz' is not one of data rate"),
        ("trn3", "hbm.bandwidth=6", r"has no unit"),
        ("trn3", "hbm.bandwidth=6PB/s", r"out of range"),
        ("trn3", "core_count=7.5", r"whole number"),
        ("trn3", "hbm.kind=HBM4", r"only those can be set"),
        ("trn3", "clock=2GHz", r"may be core.engines.tensor.clock, .*: say which"),
        ("h100", "vector_clock=2GHz", r"h100 has no"),
        ("trn3", "tensor.issue=3", r"tensor.issue: '3' has no unit"),
        ("trn3", "sequencer.depth=1.5", r"whole number"),
        ("trn3", "throttle_rise=1.5", r"out of range \(more than 0 to 1 fraction\)"),
        ("trn3", "dma.bytes_per_ns=0B/s", r"out of range"),
        ("trn3", "dma.default_dge=swdge", r"no 'dma.default_dge'"),
        ("trn3", "machine.error=1", r"no 'machine.error'"),
        ("trn3", "dma.packet=-1ns", r"out of range"),
        ("trn3", "hbm.bandwidth", r"write PATH=VALUE"),
        ("trn2", "trn3.core_count=4", r"the chip is trn2"),
        (None, "hbm.bandwidth=6TB/s", r"say of which chip"),
        ("trn3[x]", "core_count=4", r"NAME\[PATH=VALUE"),
        ("trn3", "core_count=9", r"does not divide"),
    ],
)
def test_bad_settings(chip, setting, text):
    with pytest.raises(InputError, match=text):
        choose(chip, [setting])


def test_settings_of_one_path_twice():
    for second in ("hbm.bandwidth=7TB/s", "hbm_bandwidth=7TB/s"):
        with pytest.raises(InputError, match="set twice"):
            choose("trn3", ["hbm.bandwidth=6TB/s", second])


def test_what_no_time_depends_on_is_known():
    chip = what_if("trn3", {"core_count": 16, "dma_bandwidth": "6TB/s", "dma.packet": "5ns", "vector_clock": "2GHz"})
    assert without_effect(chip) == ("core_count", "dma_bandwidth; dma.sustained_bytes_per_ns does")
