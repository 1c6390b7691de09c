"""Drawn uses of operators, for checks of surfaces: sizes as models have them, of so many instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators.kernel_costs import contracts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trnsim.kernels.contract import Contract, Problem

_PLACES = (("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2))
# Of a PSUM bank's product, 128 x 128 x 512, and of a tile of elements, 128 x 2,048: an instruction each, about.
_PRODUCT, _TILE = 2 * 128 * 128 * 512, 128 * 2048

Use = tuple[str, int, str, str, dict[str, Any]]


class Draws:
    """Uses by number, the same ones for the same seed, of about ``least`` to ``most`` instructions.

    Operators take turns, in another order each time; from turn to turn one moves to the next chip and logical core, so
    that few uses cover much.
    """

    def __init__(self, seed: int, least: int, most: int, operators: Sequence[str] = ()) -> None:
        self.seed, self.least, self.most = seed, least, most
        self.operators = tuple(operators) or tuple(sorted(contracts()))

    def use(self, number: int) -> Use:
        """(chip, cores, operator, number format, sizes and options)."""
        turn, place = divmod(number, len(self.operators))
        index = int(np.random.default_rng([self.seed, turn]).permutation(len(self.operators))[place])
        operator = self.operators[index]
        contract = contracts()[operator]
        places = [(*where, _version(where[0])) for where in _PLACES]
        places = [one for one in places if contract.dtypes[one[2]]]
        chip, cores, generation = places[(turn + index) % len(places)]
        draw = np.random.default_rng([self.seed, number, 1])
        dtype = str(draw.choice(contract.dtypes[generation]))
        while True:
            given: dict[str, Any] = _sizes(operator, draw)
            given |= {name: _chosen(draw, values) for name, values in contract.options.items()}
            try:
                problem = contract.problem(dtype, cores, given, generation)
            except InputError:
                continue
            if self.least <= estimated(contract, problem) <= self.most:
                return chip, cores, operator, dtype, given

    def size(self, number: int) -> float:
        """About how many instructions a use takes."""
        chip, cores, operator, dtype, given = self.use(number)
        contract = contracts()[operator]
        return estimated(contract, contract.problem(dtype, cores, given, _version(chip)))


def _version(chip: str) -> str:
    core = load_chip(chip).core
    assert core is not None
    return core.version


def estimated(contract: Contract, problem: Problem) -> float:
    """About how many instructions a use takes."""
    moved = contract.bytes(problem) / (2 * _TILE)
    passes = 3 if "attention" in contract.name else 1
    return float(max(contract.flops(problem) / _PRODUCT * passes, 3 * moved))


def _chosen(draw: Any, values: tuple[Any, ...]) -> Any:
    return values[int(draw.integers(len(values)))]


def _log(draw: Any, low: int, high: int, multiple: int = 1) -> int:
    size = round(float(np.exp(draw.uniform(np.log(low), np.log(high)))))
    return max(multiple, size // multiple * multiple)


def _sizes(operator: str, draw: Any) -> dict[str, int]:
    by_name: dict[str, Callable[[Any], dict[str, int]]] = {
        "adam": lambda d: {"elements": _log(d, 10**7, 3 * 10**9)},
        "attention": _attention,
        "attention_backward": _attention,
        "decode_attention": _decode,
        "embedding": lambda d: {"tokens": _log(d, 1000, 10**6), "width": _log(d, 512, 8192, 64), "rows": 128_000},
        "embedding_backward": lambda d: {
            "tokens": _log(d, 1000, 10**6), "width": _log(d, 512, 8192, 64), "rows": _log(d, 32_000, 256_000),
        },
        "grouped_matmul": lambda d: {
            "tokens": _log(d, 1000, 65536), "experts": int(d.choice([8, 16, 64, 128])),
            "k": _log(d, 1024, 7168, 128), "n": _log(d, 512, 4096, 128),
        },
        "mlp": _mlp,
        "gated_mlp": _mlp,
        "rope": lambda d: {
            "tokens": _log(d, 1000, 10**6), "heads": int(d.choice([8, 16, 32])), "depth": int(d.choice([64, 128])),
        },
        "router": lambda d: {
            "tokens": _log(d, 1000, 10**6), "width": _log(d, 1024, 8192, 128),
            "experts": int(d.choice([8, 64, 128, 256])), "k": int(d.choice([1, 2, 6, 8])),
        },
        "cross_entropy": lambda d: {"rows": _log(d, 100, 16384), "vocabulary": _log(d, 32_000, 262_144, 64)},
        "cross_entropy_backward": lambda d: {"rows": _log(d, 100, 16384), "vocabulary": _log(d, 32_000, 262_144, 64)},
        "quantize_mxfp8": lambda d: {"k": _log(d, 512, 65536, 128), "n": _log(d, 512, 65536, 64)},
    }  # fmt: skip
    if operator.startswith("matmul"):
        multiple = 128 if operator == "matmul_mx" else 64
        return {"m": 2 * _log(draw, 1, 32768), "k": _log(draw, 128, 16384, multiple), "n": _log(draw, 128, 32768, 64)}
    if operator in by_name:
        return by_name[operator](draw)
    return {"rows": _log(draw, 1000, 10**6), "width": _log(draw, 512, 8192, 64)}


def _attention(draw: Any) -> dict[str, int]:
    group = int(draw.choice([1, 2, 4, 8]))
    key_heads = int(draw.choice([1, 2, 4, 8]))
    queries = _log(draw, 256, 32768)
    keys = queries if draw.random() < 0.6 else queries + _log(draw, 128, 32768)
    depth = int(draw.choice([64, 96, 128, 192]))
    return {"heads": key_heads * group, "kv_heads": key_heads, "queries": queries, "keys": keys, "depth": depth}


def _decode(draw: Any) -> dict[str, int]:
    key_heads = int(draw.choice([1, 2, 4, 8]))
    group = int(draw.choice([1, 4, 8, 16]))
    context = _log(draw, 512, 131_072)
    return {
        "sequences": _log(draw, 1, 256), "heads": key_heads * group, "kv_heads": key_heads, "context": context,
        "depth": int(draw.choice([64, 128])), "block": int(draw.choice([64, 128])),
    }  # fmt: skip


def _mlp(draw: Any) -> dict[str, int]:
    width = int(draw.choice([1024, 2048, 2560, 4096]))
    return {"tokens": _log(draw, 64, 16384), "width": width, "hidden": _log(draw, 1024, 16384, 128), "outputs": width}


__all__ = ["Draws", "Use", "estimated"]
