"""Random instructions: streams against Marsaglia's XORWOW in plain Python, seeds, states, and five-sigma statistics."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    GENERATIONS,
    INTEGERS,
    NUMPY,
    assert_refused,
    assert_same,
    chip,
    draw_values,
    draws,
    generations,
    given_tensor,
    layouts,
    memories,
    only_writes,
    output_layouts,
    read,
    rounded,
    running,
    seeds,
    sizes,
    tensor,
)

from trnsim.errors import CompilerError, HardwareError, UndefinedBehaviorError
from trnsim.hardware import load_timing
from trnsim.isa import randomness as R
from trnsim.isa.constants import engine
from trnsim.machine import core as machine
from trnsim.machine.core import Launch

MASK = 0xFFFFFFFF
SIGMAS = 5


def xorwow(state, count):
    """Marsaglia's xorwow(), 2003, one number at a time, and the state after them."""
    x, y, z, w, v, d = (int(word) for word in state)
    numbers = []
    for _ in range(count):
        t = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4) & MASK) ^ (t ^ (t << 1) & MASK)
        d = (d + 362437) & MASK
        numbers.append((d + v) & MASK)
    return numbers, [x, y, z, w, v, d]


def bits(core, which=engine.vector, shape=(128, 64), dtype="uint32"):
    dst = core.ndarray(shape, dtype)
    R.rng(dst, which)
    return read(dst)


def seeded(core, value, dtype="uint32"):
    R.set_rng_seed(given_tensor(core, np.array([[value]], NUMPY[dtype]), dtype))


def assert_mean(values, mean, deviation):
    """The mean of independent values is within five standard errors of the expected one."""
    error = deviation / math.sqrt(values.size)
    assert abs(values.mean(dtype=np.float64) - mean) <= SIGMAS * error


def assert_uniform(values, bins=64):
    """Counts of numbers in [0, 1) in equal bins: chi-squared within five standard deviations of its mean."""
    counts = np.bincount((values.ravel() * bins).astype(np.int64), minlength=bins)
    expected = values.size / bins
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - (bins - 1)) <= SIGMAS * math.sqrt(2 * (bins - 1))


class TestBits:
    @draws
    @given(generations, sizes, seeds, st.sampled_from(INTEGERS), memories, output_layouts)
    def test_are_the_low_ones_of_a_word(self, generation, size, seed, kind, place, layout):
        with running(generation) as core:
            wide, dst = tensor(core, "uint32", *size, "sbuf", layout), tensor(core, kind, *size, place, layout)
            seeded(core, seed)
            R.rng(wide)
            seeded(core, seed)
            with only_writes(dst):
                R.rng(dst)
            bits_of = 8 * np.dtype(NUMPY[kind]).itemsize
            low = (read(wide).astype(np.uint64) % 2**bits_of).astype(f"u{bits_of // 8}")
            assert_same(read(dst), low.view(NUMPY[kind]))

    @pytest.mark.parametrize("generation", GENERATIONS)
    def test_every_bit_is_fair_and_independent(self, generation):
        with running(generation) as core:
            words = bits(core, shape=(128, 512))
            planes = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(128, 512, 32)
            for bit in range(32):
                plane = planes[:, :, bit]
                assert_mean(plane, 0.5, 0.5)
                for neighbour in (plane[:, 1:] ^ plane[:, :-1], plane[1:] ^ plane[:-1]):
                    assert_mean(neighbour, 0.5, 0.5)
            assert_uniform(words / 2.0**32)
            assert len(np.unique(words)) > words.size - 20

    def test_lanes_advance_on_their_own(self):
        with running() as core:
            seeded(core, 1)
            whole = bits(core, shape=(128, 8))
            seeded(core, 1)
            low, high = core.ndarray((32, 4), "uint32"), core.ndarray((128, 8), "uint32")
            R.rng(low)
            R.rng(high[64:128, :4])
            R.rng(high[64:128, 4:8])
            assert_same(read(low), whole[:32, :4])
            assert_same(read(high[64:128]), whole[64:])
            R.rng(high[0:128:2])
            assert_same(read(high)[64:128:2] != whole[64::2], np.ones((32, 8), bool))


class TestSeeds:
    def test_equal_seeds_give_equal_streams(self):
        with running() as core:
            streams = []
            for seed, kind in ((7, "uint32"), (7, "int32"), (8, "uint32"), (2**32 - 1, "uint32"), (-1, "int32")):
                seeded(core, seed, kind)
                streams.append(bits(core))
            assert_same(streams[0], streams[1])
            assert_same(streams[3], streams[4])
            assert (streams[0] != streams[2]).mean() > 0.99
            seeded(core, np.array([7], np.uint32).view(np.float32)[0], "float32")
            assert_same(bits(core), streams[0])
            seeded(core, 7)
            continued = np.concatenate([bits(core, shape=(128, 32)), bits(core, shape=(128, 32))], 1)
            assert_same(continued, streams[0])

    def test_a_run_repeats_with_the_seed_of_the_launch(self):
        def streams(seed, index=0):
            launch = Launch(chip("v3"), lnc=2, seed=seed)
            before = machine.set_current(launch.cores[index])
            try:
                return [bits(launch.cores[index], e).tobytes() for e in (engine.vector, engine.gpsimd)]
            finally:
                machine.set_current(before)

        assert streams(3) == streams(3)
        different = [*streams(3), *streams(4), *streams(3, 1), *streams(-1), *streams(2**40)]
        assert len(set(different)) == len(different)


class TestStates:
    @pytest.mark.parametrize(
        ("generation", "which", "words"),
        [("v3", engine.gpsimd, 6), ("v4", engine.gpsimd, 6), ("v4", engine.vector, 24)],
    )
    def test_streams_are_marsaglias(self, generation, which, words):
        x = draw_values(5, "uint32", 32, words)
        with running(generation) as core:
            state = given_tensor(core, x, "uint32")
            before = core.ndarray((128, words), "uint32")
            R.rand_get_state(before, which)
            R.rand_set_state(state, which)
            numbers = bits(core, which, (32, 12))
            after = core.ndarray((128, words), "uint32")
            R.rand_get_state(after, which)
            turns = words // 6
            for lane in range(32):
                parts = [xorwow(x[lane, 6 * k : 6 * k + 6], 12 // turns) for k in range(turns)]
                expected = [parts[i % turns][0][i // turns] for i in range(12)]
                assert numbers[lane].tolist() == expected
                assert read(after)[lane].tolist() == [word for _, state in parts for word in state]
            assert_same(read(after)[32:], read(before)[32:])
            assert len(np.unique(read(before))) > before.size - 5

    def test_states_restore_a_stream(self):
        with running("v4") as core:
            for which, words, place in ((engine.vector, 24, "psum"), (engine.gpsimd, 6, "sbuf")):
                saved = tensor(core, "uint32", 128, words, place)
                R.rand_get_state(saved, which)
                restored = given_tensor(core, read(saved), "uint32")
                first = bits(core, which)
                other = bits(core, engine.gpsimd if which is engine.vector else engine.vector)
                assert (first != other).any()
                R.rand_set_state(restored, which)
                assert_same(bits(core, which), first)

    def test_the_default_is_gpsimd(self):
        with running("v4") as core:
            for choice in ({}, {"engine": engine.unknown}, {"engine": None}):
                R.rand_get_state(core.ndarray((128, 6), "uint32"), **choice)
                klass = core.trace.classes[core.trace.instructions["klass"][-1]]
                assert klass.engines == ("gpsimd",)
                assert klass.state == ("gpsimd_random",)
            R.rng(core.ndarray((8, 6), "uint32"), engine.unknown)
            assert core.trace.classes[core.trace.instructions["klass"][-1]].engines == ("vector",)


class TestUniform:
    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3, 5), (1e-3, 2e-3)])
    def test_numbers(self, low, high):
        with running("v4") as core:
            dst = core.ndarray((128, 1024), "float32", "psum")
            R.rand2(dst, low, high)
            values = read(dst).astype(np.float64)
            assert np.float32(low) <= values.min()
            assert values.max() <= np.float32(high)
            assert_mean(values, (low + high) / 2, (high - low) / math.sqrt(12))
            assert_mean((values - (low + high) / 2) ** 2, (high - low) ** 2 / 12, (high - low) ** 2 / math.sqrt(180))
            assert_uniform(np.clip((values - low) / (high - low), 0, 1 - 1e-9))

    def test_bounds_of_partitions(self):
        low = np.arange(128, dtype=np.float32)[:, None]
        with running("v4") as core:
            dst = core.ndarray((128, 512), "float32")
            R.rand2(dst, given_tensor(core, low, "float32"), given_tensor(core, low + 2, "float32"))
            assert_uniform((read(dst) - low) / 2 * (1 - 2**-20))
            R.rand2(dst, given_tensor(core, low, "float32"), 200.0)
            assert ((read(dst) >= low) & (read(dst) <= 200)).all()

    @draws
    @given(sizes, seeds, st.sampled_from([*FLOATS, *INTEGERS]), memories, output_layouts)
    def test_results_are_rounded(self, size, seed, kind, place, layout):
        with running("v4") as core:
            wide, dst = tensor(core, "float32", *size, "sbuf", layout), tensor(core, kind, *size, place, layout)
            seeded(core, seed)
            R.rand2(wide, -20.0, 300.0)
            seeded(core, seed)
            with only_writes(dst):
                R.rand2(dst, -20.0, 300.0)
            assert_same(read(dst), rounded(read(wide), kind))

    def test_an_empty_range_is_refused(self):
        with running("v4") as core:
            dst = core.ndarray((4, 4), "float32")
            low = given_tensor(core, np.array([[0], [0], [3], [0]], np.float32), "float32")
            for bounds in ((1.0, 1.0), (2, 1), (1.0, 1.0 + 1e-12), (float("nan"), 1.0)):
                assert_refused(HardwareError, "min", lambda bounds=bounds: R.rand2(dst, *bounds))
            with pytest.raises(UndefinedBehaviorError, match="partition 2"):
                R.rand2(dst, low, 3.0)


class TestDropout:
    @draws
    @given(
        generations,
        sizes,
        seeds,
        st.sampled_from([*FLOATS, *INTEGERS]),
        st.booleans(),
        memories,
        memories,
        layouts,
        output_layouts,
    )
    def test_keeps_bits(self, generation, size, seed, kind, column, place1, place, layout1, layout):
        x = draw_values(seed, kind, *size)
        p = np.random.default_rng(seed).random((size[0], 1)).astype(np.float32)
        with running(generation) as core:
            data = given_tensor(core, x, kind, place1, layout1)
            dst = tensor(core, kind, *size, place, layout)
            with only_writes(dst):
                R.dropout(dst, data, given_tensor(core, p, "float32") if column else float(p[0, 0]))
            result = read(dst)
            assert_same(np.where(result == 0, x, result), x)
            R.dropout(dst, data, 0.0)
            assert_same(read(dst), x)
            R.dropout(dst, data, 1)
            assert_same(read(dst), np.zeros_like(x))
            assert not core.launch.findings

    @pytest.mark.parametrize("generation", GENERATIONS)
    @pytest.mark.parametrize("probability", [0.001, 0.2, 0.5, 0.97])
    def test_rate(self, generation, probability):
        with running(generation) as core:
            data = given_tensor(core, np.ones((128, 2048), np.float32), "float32")
            dst = core.ndarray((128, 2048), "float32")
            R.dropout(dst, data, probability)
            dropped = read(dst) == 0
            spread = math.sqrt(probability * (1 - probability))
            assert_mean(dropped, probability, spread)
            assert np.abs(dropped.mean(1) - probability).max() <= SIGMAS * spread / math.sqrt(2048)
            both = dropped[:, 1:] & dropped[:, :-1]
            # neighbours overlap, so the variance of the pairs' mean is up to three times that of independent ones
            assert_mean(both, probability**2, math.sqrt(3) * probability)
            R.dropout(dst, data, probability)
            assert ((read(dst) == 0) != dropped).any()

    @pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
    def test_rates_of_partitions(self, kind):
        rates = rounded(np.linspace(0, 1, 128)[:, None], kind)
        with running() as core:
            data = given_tensor(core, np.ones((128, 4096), np.float32).astype(NUMPY["bfloat16"]), "bfloat16")
            dst = core.ndarray((128, 4096), "bfloat16")
            R.dropout(dst, data, given_tensor(core, rates, kind, "psum"))
            p = rates[:, 0].astype(np.float64)
            error = np.abs((read(dst) == 0).mean(1) - p)
            assert (error <= SIGMAS * np.sqrt(p * (1 - p) / 4096)).all()

    @pytest.mark.parametrize(("probability", "kept"), [(1.5, 0), (-0.5, 1), (float("nan"), 1)])
    def test_what_is_no_probability_is_reported(self, probability, kept):
        with running() as core:
            tile = given_tensor(core, np.ones((8, 8), np.float32), "float32")
            R.dropout(tile, tile, probability)
            assert (read(tile) == kept).all()
            assert [f.kind for f in core.launch.findings.values()] == ["dropout-probability"]


def tile(dtype="float32", partitions=8, elements=16, memory="sbuf"):
    core = machine.current()
    made = core.ndarray((partitions, elements), dtype, memory)
    made.storage.bytes()[:] = 0
    made.storage.coverage.full = True
    return made


RULES = [
    ("v3", HardwareError, "dst", lambda: R.rng(tile())),
    ("v3", HardwareError, "dst", lambda: R.rng(tile("uint32", memory="hbm"))),
    ("v2", HardwareError, "engine", lambda: R.rng(tile("uint32"), engine.gpsimd)),
    ("v3", HardwareError, "engine", lambda: R.rng(tile("uint32"), engine.scalar)),
    ("v3", HardwareError, "engine", lambda: R.rng(tile("uint32", memory="psum"), engine.gpsimd)),
    ("v3", HardwareError, "src_seeds", lambda: R.set_rng_seed(tile("uint32", 1, 2))),
    ("v3", HardwareError, "src_seeds", lambda: R.set_rng_seed(tile("uint32", 2, 1))),
    ("v3", HardwareError, "src_seeds", lambda: R.set_rng_seed(tile("uint16", 1, 1))),
    ("v3", HardwareError, "src_seeds", lambda: R.set_rng_seed(tile("uint32", 1, 1, "hbm"))),
    ("v3", HardwareError, "src_seeds", lambda: R.rand_set_state(tile("int32", 8, 6))),
    ("v3", HardwareError, "src_seeds", lambda: R.rand_set_state(tile("uint32", 8, 24))),
    ("v4", HardwareError, "src_seeds", lambda: R.rand_set_state(tile("uint32", 8, 6), engine.vector)),
    ("v4", HardwareError, "src_seeds", lambda: R.rand_set_state(tile("uint32", 8, 24, "psum"), engine.vector)),
    ("v4", HardwareError, "src_seeds", lambda: R.rand_set_state(tile("uint32", 8, 6).reshape(8, 2, 3))),
    ("v3", HardwareError, "engine", lambda: R.rand_set_state(tile("uint32", 8, 24), engine.vector)),
    ("v4", HardwareError, "engine", lambda: R.rand_set_state(tile("uint32", 8, 24), engine.scalar)),
    ("v3", HardwareError, "dst", lambda: R.rand_get_state(tile("float32", 8, 6))),
    ("v3", HardwareError, "dst", lambda: R.rand_get_state(tile("uint32", 8, 5))),
    ("v4", HardwareError, "dst", lambda: R.rand_get_state(tile("uint32", 8, 6, "psum"))),
    ("v3", HardwareError, "engine", lambda: R.rand_get_state(tile("uint32", 8, 24), engine.vector)),
    ("v4", HardwareError, "dst", lambda: R.rand2(tile("float8_e4m3fn_x4"), 0.0, 1.0)),
    ("v4", HardwareError, "dst", lambda: R.rand2(tile(memory="hbm"), 0.0, 1.0)),
    ("v4", HardwareError, "min", lambda: R.rand2(tile(), tile("bfloat16", 8, 1), 1.0)),
    ("v4", HardwareError, "max", lambda: R.rand2(tile(), 0.0, tile("float32", 8, 2))),
    ("v4", CompilerError, "max", lambda: R.rand2(tile(), 0.0, None)),
    ("v3", HardwareError, "dst", lambda: R.dropout(tile("bfloat16"), tile(), 0.5)),
    ("v3", HardwareError, "data", lambda: R.dropout(tile(), tile(elements=8), 0.5)),
    ("v3", HardwareError, "data", lambda: R.dropout(tile(), tile(memory="hbm"), 0.5)),
    ("v3", HardwareError, "prob", lambda: R.dropout(tile(), tile(), tile())),
    ("v3", HardwareError, "prob", lambda: R.dropout(tile(), tile(), tile("int32", 8, 1))),
    ("v3", HardwareError, "prob", lambda: R.dropout(tile("int8"), tile("int8"), tile("bfloat16", 8, 1))),
    ("v3", CompilerError, "prob", lambda: R.dropout(tile(), tile(), None)),
]


@pytest.mark.parametrize(("generation", "kind", "operand", "call"), RULES)
def test_rules(generation, kind, operand, call):
    with running(generation) as core:
        assert_refused(kind, operand, call)
        assert len(core.trace) == 0


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        (("v2",), lambda: R.rand_set_state(tile("uint32", 8, 6))),
        (("v2",), lambda: R.rand_get_state(tile("uint32", 8, 6))),
        (("v2", "v3"), lambda: R.rand2(tile(), 0.0, 1.0)),
    ],
)
def test_generations(missing, call):
    for generation in GENERATIONS:
        with running(generation) as core:
            if generation in missing:
                with pytest.raises(HardwareError, match=f"does not exist on NeuronCore-{generation}"):
                    call()
            else:
                call()
                assert len(core.trace) == 1


def test_time_only_runs_draw_the_same_numbers():
    results = []
    for numeric in (True, False):
        with running("v4", numeric=numeric) as core:
            tiles = [core.ndarray((16, 8), "uint32") for _ in range(4)]
            R.rng(tiles[0])
            R.rng(tiles[1], engine.gpsimd)
            R.rand2(core.ndarray((16, 8), "float32"), 0.0, 1.0)
            R.rng(tiles[2])
            R.rng(tiles[3], engine.gpsimd)
            for made in reversed(tiles):
                core.force(made)
            results.append(np.stack([read(made) for made in tiles]))
    assert_same(results[1], results[0])


@pytest.mark.parametrize(
    ("generation", "cycles", "call"),
    [
        ("v3", 1000, lambda: R.rng(tile("uint32", 128, 1000))),
        ("v4", 250, lambda: R.rand2(tile("float32", 128, 1000), 0.0, 1.0)),
        ("v3", 1000, lambda: R.dropout(tile("float32", 128, 1000), tile("float32", 128, 1000), 0.5)),
        ("v4", 24, lambda: R.rand_set_state(tile("uint32", 128, 24), engine.vector)),
        ("v2", 1, lambda: R.set_rng_seed(tile("uint32", 1, 1))),
    ],
)
def test_costs_of_vector(generation, cycles, call):
    with running(generation) as core:
        call()
        klass = core.trace.classes[core.trace.instructions["klass"][-1]]
    timing = load_timing(chip(generation))
    (work,) = klass.instruction.cost(timing, klass, "vector")
    fixed = work.latency_ps - timing.vector.cycles(cycles)
    assert fixed in (timing.vector.fixed_ps, timing.vector.fixed_ps + timing.vector.arithmetic_ps)
    assert work.busy_ps == max(timing.vector.cycles(64), work.latency_ps - timing.vector.overlap_ps)


def test_gpsimd_starts_slowly():
    with running("v3") as core:
        R.rng(tile("uint32", 128, 1000), engine.gpsimd)
        klass = core.trace.classes[core.trace.instructions["klass"][-1]]
    timing = load_timing(chip("v3"))
    (work,) = klass.instruction.cost(timing, klass, "gpsimd")
    assert work.latency_ps == timing.gpsimd.cycles(1150) + timing.gpsimd.fixed_ps
