"""The XORWOW generators against Marsaglia's algorithm in plain Python, and their statistics."""

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.numerics import Xorwow, seed_states

MASK = 0xFFFFFFFF


def xorwow(state, count):
    """Marsaglia's xorwow(), 2003, one number at a time."""
    x, y, z, w, v, d = (int(word) for word in state)
    numbers = []
    for _ in range(count):
        t = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4) & MASK) ^ (t ^ (t << 1) & MASK)
        d = (d + 362437) & MASK
        numbers.append((d + v) & MASK)
    return numbers, [x, y, z, w, v, d]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 33, 1000])
def test_each_lane_is_marsaglias(count):
    seeds = np.random.default_rng(0).integers(0, 1 << 32, (7, 6), dtype=np.uint32)
    seeds[0] = [123456789, 362436069, 521288629, 88675123, 5783321, 6615241]  # the article's
    seeds[1] = MASK
    generator = Xorwow(seeds)
    words = generator.next(count)
    assert words.shape == (7, count)
    assert words.dtype == np.uint32
    for lane, seed in enumerate(seeds):
        expected, state = xorwow(seed, count)
        assert words[lane].tolist() == expected
        assert generator.state[lane].tolist() == state


def test_continues():
    whole = Xorwow.from_seed(3, 16).next(100)
    generator = Xorwow.from_seed(3, 16)
    parts = [generator.next(n) for n in (1, 7, 0, 12, 80)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_state_can_be_saved():
    generator = Xorwow.from_seed(3, 16, 24)
    generator.next(10)
    restored = Xorwow(generator.state)
    np.testing.assert_array_equal(restored.next(50), generator.next(50))
    generator.state[:] = 0  # a copy
    assert generator.state.any()


def test_four_generators_of_a_lane_take_turns():
    seeds = seed_states(9, 5, 24)
    words = Xorwow(seeds).next(13)
    alone = [Xorwow(np.ascontiguousarray(seeds[:, 6 * k : 6 * k + 6])).next(4) for k in range(4)]
    for i in range(13):
        np.testing.assert_array_equal(words[:, i], alone[i % 4][:, i // 4])


def test_lanes_advance_the_whole():
    generator, reference = Xorwow.from_seed(1, 8), Xorwow.from_seed(1, 8)
    first = generator.lanes(2, 5).next(10)
    expected = reference.next(20)
    np.testing.assert_array_equal(first, expected[2:5, :10])
    second = generator.next(10)
    np.testing.assert_array_equal(second[2:5], expected[2:5, 10:])
    np.testing.assert_array_equal(second[:2], expected[:2, :10])


def test_seeding():
    np.testing.assert_array_equal(seed_states(5, 3), seed_states(5, 128)[:3])
    assert len({seed_states(seed).tobytes() for seed in range(100)}) == 100
    assert (seed_states(0).reshape(128, 6)[:, :5] != 0).any(axis=1).all()
    # SplitMix64's first number from seed 0 is 0xE220A8397B1DCDAF, its second 0x6E789E6AA1B965F4
    assert seed_states(0)[0, :2].tolist() == [0xE220A839 | 1, 0x6E789E6A]


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seed_out_of_range(seed):
    with pytest.raises(InputError, match="32-bit"):
        seed_states(seed)


@pytest.mark.parametrize(
    "seeds", [np.zeros(6, np.uint32), np.zeros((2, 5), np.uint32), np.zeros((2, 6)), np.zeros((0, 6), np.uint32)]
)
def test_bad_state(seeds):
    with pytest.raises(InputError, match="state of a random generator"):
        Xorwow(seeds)


class TestStatistics:
    """Five standard deviations: one run in a million fails by chance, and the seed is fixed."""

    words = Xorwow.from_seed(2024).next(2000)

    def test_bits_are_balanced(self):
        ones = np.unpackbits(self.words.view(np.uint8), axis=1).reshape(-1, 32).mean(axis=0)
        assert (abs(ones - 0.5) < 5 * 0.5 / np.sqrt(self.words.size)).all()

    def test_bytes_are_uniform(self):
        counts = np.bincount(self.words.view(np.uint8).ravel(), minlength=256)
        expected = counts.sum() / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)

    def test_lanes_and_numbers_are_uncorrelated(self):
        unit = self.words / 2.0**32 - 0.5
        variance = 1 / 12
        for other in (np.roll(unit, 1, axis=0), np.roll(unit, 1, axis=1)):
            assert abs((unit * other).mean()) < 5 * variance / np.sqrt(unit.size)

    def test_uniform(self):
        unit = Xorwow.from_seed(1).uniform(1000)
        assert unit.dtype == np.float32
        assert unit.min() >= 0
        assert unit.max() < 1
        assert abs(unit.mean() - 0.5) < 5 * np.sqrt(1 / 12 / unit.size)
        assert abs(unit.astype(np.float64).var() - 1 / 12) < 5 * np.sqrt(1 / 180 / unit.size)

    def test_uniform_between(self):
        low = np.linspace(-3, 3, 128, dtype=np.float32)[:, None]
        values = Xorwow.from_seed(1).uniform(1000, low, low + np.float32(2))
        assert (values >= low).all()
        assert (values <= low + 2).all()
        assert abs((values - low).mean() - 1) < 5 * np.sqrt(4 / 12 / values.size)
        assert (Xorwow.from_seed(1).uniform(9, -1, 3) == Xorwow.from_seed(1).uniform(9) * 4 - 1).all()
