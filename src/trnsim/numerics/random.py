"""The random generators of a NeuronCore: one XORWOW for each partition lane.

NeuronCore-v3's GpSimd and NeuronCore-v4's VectorE and GpSimd generate XORWOW streams (``nki.isa.rand2``,
``rand_set_state``; Trainium3 architecture guide, "XORWOW-based PRNG"): Marsaglia's five-word xorshift with a Weyl
counter added (G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003, section 3.1). A lane's
state is 6 words; VectorE keeps four states a lane (24 words) to deliver four numbers a cycle.

The streams here are deterministic, and equal on any host, but they are **not** a device's: how the hardware expands a
seed, orders a state's words, interleaves VectorE's four states and turns words into floats is not public.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim.errors import InputError

Words = np.ndarray[Any, np.dtype[np.uint32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

#: Words of one XORWOW state: five of the xorshift, then the Weyl counter.
STATE_WORDS = 6

_WEYL = 362437  # Marsaglia's increment of the counter
_U1, _U2, _U4 = np.uint32(1), np.uint32(2), np.uint32(4)


def seed_states(seed: int, lanes: int = 128, words: int = STATE_WORDS) -> Words:
    """Expand a 32-bit ``seed`` into ``(lanes, words)`` words of state, by SplitMix64.

    (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.) ``words`` is a
    multiple of 6. Lanes are independent of how many there are: lane 3 of 4 gets the words of lane 3 of 128.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError("a seed is an unsigned 32-bit integer", value=seed, limit=(1 << 32) - 1)
    count = np.arange(1, lanes * words + 1, dtype=np.uint64)
    z = count * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    # The lowest bit is set in one word of each xorshift, which must not be all zeros.
    state = (z >> np.uint64(32)).astype(np.uint32).reshape(lanes, words)
    state[:, ::STATE_WORDS] |= _U1
    return state


class Xorwow:
    """XORWOW generators, one or more a lane, advanced together.

    Args:
        seeds: ``(lanes, 6 k)`` uint32: the state of ``k`` generators a lane, as ``rand_set_state`` takes it. A
            generator whose first five words are all 0 only counts.

    """

    def __init__(self, seeds: Words) -> None:
        if seeds.ndim != 2 or seeds.dtype != np.uint32 or seeds.shape[1] % STATE_WORDS or not seeds.size:
            raise InputError(
                "the state of a random generator is uint32 of shape (lanes, multiple of 6)",
                value=f"{seeds.dtype} {seeds.shape}",
            )
        # (word, generator of the lane, lane): a word of all lanes is contiguous
        self._state: Words = np.ascontiguousarray(seeds.T).reshape(-1, STATE_WORDS, len(seeds)).swapaxes(0, 1).copy()

    @classmethod
    def from_seed(cls, seed: int, lanes: int = 128, words: int = STATE_WORDS) -> Xorwow:
        """Make the generators of ``seed_states``."""
        return cls(seed_states(seed, lanes, words))

    @property
    def state(self) -> Words:
        """State as ``rand_get_state`` returns it: a new array ``(lanes, 6 k)`` uint32."""
        return np.ascontiguousarray(self._state.swapaxes(0, 1).reshape(-1, self._state.shape[2]).T)

    def lanes(self, start: int, stop: int) -> Xorwow:
        """Return the generators of lanes ``start`` to ``stop``; they advance those of this object."""
        part = object.__new__(Xorwow)
        part._state = self._state[:, :, start:stop]
        return part

    def next(self, n: int) -> Words:
        """Return the next ``n`` words of each lane, ``(lanes, n)`` uint32.

        The ``k`` generators of a lane take turns, starting with the first; what is left of the last turn is dropped.
        """
        state = self._state
        _, generators, lanes = state.shape
        turns = -(-n // generators)
        # The xorshift's words in the order they are made, the first five being the state.
        words: Words = np.empty((turns + 5, generators, lanes), np.uint32)
        words[:5] = state[:5]
        scratch: Words = np.empty((generators, lanes), np.uint32)
        for first in range(0, turns, 5):
            # What a word takes from the word five before it is the same for five words at once.
            old = words[first : first + 5]
            fresh = old >> _U2
            fresh ^= old
            fresh ^= fresh << _U1
            for turn in range(first, min(first + 5, turns)):
                last = words[turn + 4]
                word = words[turn + 5]
                np.left_shift(last, _U4, out=scratch)
                np.bitwise_xor(scratch, last, out=scratch)
                np.bitwise_xor(scratch, fresh[turn - first], out=word)
        state[:5] = words[turns:]
        counters = np.arange(1, turns + 1, dtype=np.uint32)[:, None, None] * np.uint32(_WEYL) + state[5]
        if turns:
            state[5] = counters[-1]
        counters += words[5:]
        return np.ascontiguousarray(counters.reshape(turns * generators, lanes)[:n].T)

    def uniform(self, n: int, low: float | Floats = 0.0, high: float | Floats = 1.0) -> Floats:
        """Return ``n`` uniform float32 for each lane, ``(lanes, n)``: ``low + u (high - low)``, u in [0, 1).

        ``u`` is the upper 24 bits of a word, so all of [0, 1) is equally fine. ``low`` and ``high`` are numbers or
        ``(lanes, 1)``; the float32 rounding of the sum may give ``high`` itself.
        """
        unit = (self.next(n) >> np.uint32(8)).astype(np.float32)
        unit *= np.float32(2.0**-24)
        first = np.asarray(low, np.float32)
        unit *= np.asarray(high, np.float32) - first
        unit += first
        return unit
