"""The machine alone: ten profiles of trn2 replayed with our durations, latencies, contention and throttle."""

from __future__ import annotations

import pytest
from measurements import DATA, REASON

from trnsim.hardware import load_chip, load_timing
from trnsim.profiles.read import read
from trnsim.profiles.replay import replay

pytestmark = pytest.mark.skipif(DATA is None, reason=REASON)

PROFILES = (
    "baseline_attention", "baseline_bf16_s1024", "baseline_bf16_s512", "baseline_fp32_s1024", "baseline_fp32_s512",
    "fused_attention", "fused_bf16_s1024", "fused_bf16_s512", "fused_fp32_s1024", "fused_fp32_s512",
)  # fmt: skip
ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")
WITHIN = 0.05

# Measured gaps: (profile, engine), predicted over measured less one, and why.
LATE = "a throttle window that the idle time before it decides: DMAs end a microsecond earlier or later"
HELD = "loads wait while stores of another ring are in flight: not modelled"
LARGE = "triggers of transfers of 4 KiB elements last longer while others are under way"
GAPS = {
    ("baseline_bf16_s1024", "tensor"): (-0.058, LATE),
    ("baseline_fp32_s1024", "tensor"): (-0.062, LATE),
    ("baseline_bf16_s1024", "sync"): (-0.173, HELD),
    ("baseline_fp32_s1024", "sync"): (-0.204, HELD),
    ("baseline_fp32_s1024", "gpsimd"): (-0.098, LARGE),
}


@pytest.fixture(scope="module")
def replayed():
    timing = load_timing(load_chip("trn2"))
    found = {}

    def one(name):
        if name not in found:
            found[name] = replay(read(DATA / "profiles_trn2" / f"{name}.json.gz"), timing)
        return found[name]

    return one


@pytest.mark.parametrize("name", PROFILES)
def test_span_within_five_percent(replayed, name):
    assert abs(replayed(name).span.error) <= WITHIN


def _cases():
    for name in PROFILES:
        for engine in ENGINES:
            marks = ()
            if (name, engine) in GAPS:
                gap, why = GAPS[name, engine]
                marks = pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"{gap:+.1%}: {why}")
            yield pytest.param(name, engine, marks=marks)


@pytest.mark.parametrize(("name", "engine"), list(_cases()))
def test_busy_time_within_five_percent(replayed, name, engine):
    (found,) = [e for e in replayed(name).engines if e.name == engine]
    assert abs(found.error) <= WITHIN


@pytest.mark.parametrize(("name", "engine"), list(GAPS))
def test_gaps_are_the_measured_ones(replayed, name, engine):
    (found,) = [e for e in replayed(name).engines if e.name == engine]
    assert found.error == pytest.approx(GAPS[name, engine][0], abs=0.01)
