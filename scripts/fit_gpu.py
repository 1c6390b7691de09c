"""Fits the constants of GPU libraries (``operators/gpu.toml``) and their cross-validated errors.

    pip install 'trnsim[gpu-tables]'
    python scripts/fit_gpu.py [--tables DIRECTORY] [--only CLASS] [--write]

The tables are those of the package aiconfigurator-core (Apache-2.0), which are not copied: only what is fitted on them
is kept. Errors are of rows that a fit did not see: of a fifth of a generation's rows, five times (``error_percent``),
of a whole chip, predicted from the other chips of its generation, or from another one, by rates of the catalogue
(``left_out``), and of a whole generation, predicted from another one (``carried``).
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.optimize import least_squares

from trnsim.operators import gpu_models as models
from trnsim.operators.gpu import has, rates

FOLDS, SEED, SAMPLE = 5, 0, 2000
CHIPS = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
    "b300": "b300_sxm",
    "gb300": "gb300",
}
GENERATIONS = {
    "ampere": ("a100",),
    "hopper": ("h100", "h200"),
    "blackwell": ("b200", "gb200"),
    "blackwell ultra": ("b300", "gb300"),
}
# Where a generation's only chip is left out, and which generation it is then predicted from.
DONORS = {"ampere": "hopper", "hopper": "blackwell", "blackwell": "hopper", "blackwell ultra": "blackwell"}
LIBRARIES = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "sglang": "SGLang"}
Columns = dict[str, np.ndarray]
# (name, first guess, least, most)
SHARE = (0.8, 0.05, 1.0)
OVERLAP = ("overlap", 2.0, 1.0, 8.0)


@dataclass(frozen=True)
class Kind:
    """A class of operators: its tables, and the constants of its model with a first guess and bounds."""

    family: str
    table: str
    keys: tuple[str, ...]
    constants: tuple[tuple[str, float, float, float], ...]
    shapes: Callable[[Columns], dict[str, np.ndarray]]
    model: Callable[..., np.ndarray]
    keep: Callable[[Columns], np.ndarray] = lambda columns: np.ones(len(columns["latency"]), bool)
    either: str = ""
    """A property of the library, 0 or 1: what fits better."""


def _gemm(c: Columns) -> dict[str, np.ndarray]:
    return {"m": c["m"], "k": c["k"], "n": c["n"]}


def _context(c: Columns) -> dict[str, np.ndarray]:
    return {
        "heads": c["batch_size"] * c["num_heads"],
        "key_heads": c["batch_size"] * c["num_key_value_heads"],
        "queries": c["isl"],
        "keys": c["isl"],
        "depth": c["head_dim"],
        "value_depth": c["head_dim"],
        "causal": np.ones(len(c["isl"])),
        "window": c["window_size"],
    }


def _generation(c: Columns) -> dict[str, np.ndarray]:
    return {
        "sequences": c["batch_size"],
        "heads": c["num_heads"],
        "key_heads": c["num_key_value_heads"],
        "keys": c["step"] + 1,
        "depth": c["head_dim"],
        "value_depth": c["head_dim"],
    }


def _latent(c: Columns) -> dict[str, np.ndarray]:
    """Multi-head latent attention (DeepSeek-V3): 512 elements of latent, which are the values too, 64 of position."""
    ones = np.ones(len(c["step"]))
    return {
        "sequences": c["batch_size"],
        "heads": c["num_heads"],
        "key_heads": ones,
        "keys": c["step"] + 1,
        "depth": 576 * ones,
        "value_depth": 0 * ones,
    }


def _experts(c: Columns) -> dict[str, np.ndarray]:
    local = c["num_experts"] / c["moe_ep_size"]
    return {
        "tokens": c["num_tokens"],
        "routed": np.maximum(c["num_tokens"] * c["topk"] / c["moe_ep_size"], 1),
        "width": c["hidden_size"],
        "hidden": c["inter_size"] / c["moe_tp_size"],
        "experts": local,
    }


def _moved(c: Columns) -> dict[str, np.ndarray]:
    return {"moved": 3.0 * c["m"] * c["k"]}


TILE = ("tile_us", 0.5, 0.01, 10.0)
KINDS = {
    "matmul": Kind(
        "gemm",
        "gemm",
        ("m", "k", "n"),
        (
            ("fixed_us", 2.0, 0.1, 50.0),
            ("compute", *SHARE),
            ("memory", *SHARE),
            TILE,
            ("l2", 0.015, 0.001, 0.2),
            OVERLAP,
            ("split_us", 2.0, 0.1, 20.0),
        ),
        _gemm,
        models.matmul,
    ),
    "attention": Kind(
        "attention",
        "context_attention",
        ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "window_size"),
        (
            ("fixed_us", 8.0, 0.1, 50.0),
            ("compute", *SHARE),
            ("memory", 0.5, 0.05, 1.0),
            ("exponentials", 0.005, 1e-4, 0.1),
            TILE,
        ),
        _context,
        models.attention,
        keep=lambda c: (c["head_dim"] <= 256) & np.array(["triton" not in k for k in c["kernel_source"]], bool),
        either="packs",
    ),
    "decode": Kind(
        "attention",
        "generation_attention",
        ("batch_size", "step", "num_heads", "num_key_value_heads", "head_dim"),
        (
            ("fixed_us", 8.0, 0.1, 50.0),
            ("compute", 0.3, 0.02, 1.0),
            ("memory", *SHARE),
            TILE,
            ("key_us", 0.005, 1e-5, 0.2),
            ("head_us", 0.05, 1e-4, 10.0),
            OVERLAP,
        ),
        _generation,
        models.decode,
        # Larger groups have no kernel that keeps them together.
        keep=lambda c: (
            (c["head_dim"] <= 256) & (c["num_heads"] <= 32 * c["num_key_value_heads"]) & (c["window_size"] == 0)
        ),
    ),
    "latent decode": Kind(
        "mla",
        "generation_mla",
        ("batch_size", "step", "num_heads"),
        (
            ("fixed_us", 8.0, 0.1, 50.0),
            ("compute", 0.3, 0.02, 1.0),
            ("memory", *SHARE),
            TILE,
            ("key_us", 0.005, 1e-5, 0.2),
            ("head_us", 0.05, 1e-4, 10.0),
            OVERLAP,
        ),
        _latent,
        models.decode,
    ),
    "moe": Kind(
        "moe",
        "moe",
        ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
        (
            ("fixed_us", 20.0, 0.1, 100.0),
            ("compute", *SHARE),
            ("memory", *SHARE),
            TILE,
            ("l2", 0.01, 0.0005, 0.2),
            OVERLAP,
            ("passes", 4.0, 1.0, 50.0),
        ),
        _experts,
        models.moe,
        keep=lambda c: (
            (c["distribution"] == "balanced")
            & np.array(["nongated" not in k and "min_latency" not in k for k in c["kernel_source"]])
        ),
    ),
    "moving": Kind(
        "quantize",
        "scale_matrix",
        ("m", "k"),
        (("fixed_us", 2.0, 0.1, 50.0), ("memory", *SHARE)),
        _moved,
        models.moving,
    ),
}
# Class, format, library, and the rows of its tables: values of columns.
FITS = (
    ("matmul", "bfloat16", "trtllm", {"gemm_dtype": "bfloat16"}),
    ("matmul", "float8", "trtllm", {"gemm_dtype": "fp8"}),
    ("matmul", "float4", "vllm", {"gemm_dtype": "nvfp4"}),
    ("attention", "bfloat16", "sglang", {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}),
    ("attention", "float8", "sglang", {"attn_dtype": "fp8", "kv_cache_dtype": "fp8"}),
    ("decode", "bfloat16", "vllm", {"kv_cache_dtype": "bfloat16"}),
    ("decode", "float8", "vllm", {"kv_cache_dtype": "fp8"}),
    ("latent decode", "bfloat16", "trtllm", {"kv_cache_dtype": "bfloat16"}),
    ("latent decode", "float8", "trtllm", {"kv_cache_dtype": "fp8"}),
    ("moe", "bfloat16", "trtllm", {"moe_dtype": "bfloat16"}),
    ("moe", "float8", "trtllm", {"moe_dtype": "fp8"}),
    ("moe", "float4", "trtllm", {"moe_dtype": "nvfp4"}),
    ("moving", "bfloat16", "trtllm", {"quant_dtype": "fp8"}),
)


@dataclass(frozen=True)
class Rows:
    """What a chip's table measured: shapes as the model takes them, and microseconds."""

    shapes: dict[str, np.ndarray]
    measured: np.ndarray
    version: str


def read(root: Path, chip: str, kind: Kind, library: str, values: dict[str, str]) -> Rows | None:
    """The rows of a chip, the fastest kernel of each shape; None where there is no table."""
    folder = root / CHIPS[chip] / kind.family / library
    versions = [p for p in sorted(folder.glob("*")) if (p / f"{kind.table}_perf.parquet").exists()]
    versions = [p for p in versions if not (p / "reuse.yaml").exists()] or versions
    for path in reversed(versions):
        table = pq.read_table(path / f"{kind.table}_perf.parquet")
        for name, value in values.items():
            table = table.filter(pc.equal(table[name], value))
        columns: Columns = {n: table[n].to_numpy(zero_copy_only=False) for n in table.column_names}
        count = len(columns["latency"])
        window = columns.get("window_size")
        columns["window_size"] = np.zeros(count) if window is None else np.nan_to_num(window.astype(float))
        kept = kind.keep(columns) & (columns["latency"] > 0)
        if kept.sum() < 200:
            continue
        columns = {n: c[kept] for n, c in columns.items()}
        keys = np.stack([columns[k].astype(float) for k in kind.keys])
        unique, which = np.unique(keys, axis=1, return_inverse=True)
        fastest = np.full(unique.shape[1], np.inf)
        np.minimum.at(fastest, which.ravel(), columns["latency"].astype(float) * 1e3)
        return Rows(kind.shapes(dict(zip(kind.keys, unique, strict=True))), fastest, path.name)
    return None


Data = list[tuple[str, dict[str, np.ndarray], np.ndarray]]


def predict(kind: Kind, constants: dict[str, float], chip: str, dtype: str, shapes: dict[str, np.ndarray]) -> Any:
    return kind.model(constants, rates(chip, dtype), **shapes)


def fit(kind: Kind, dtype: str, data: Data) -> dict[str, float]:
    """Constants that make logarithms of predicted over measured small; large ones count less."""
    names = [c[0] for c in kind.constants]
    random = np.random.default_rng(SEED)
    drawn: Data = []
    for chip, shapes, measured in data:
        chosen = random.permutation(len(measured))[:SAMPLE]
        drawn.append((chip, {n: s[chosen] for n, s in shapes.items()}, measured[chosen]))
    first, low, high = (np.log([c[i] for c in kind.constants]) for i in (1, 2, 3))
    best, least = {}, np.inf
    for either in (0.0, 1.0) if kind.either else (0.0,):
        fixed = {kind.either: either} if kind.either else {}

        def errors(logs: np.ndarray, fixed: dict[str, float] = fixed) -> np.ndarray:
            constants = {**dict(zip(names, np.exp(logs), strict=True)), **fixed}
            return np.concatenate([np.log(predict(kind, constants, c, dtype, s) / m) for c, s, m in drawn])

        found = least_squares(errors, first, loss="soft_l1", f_scale=0.1, bounds=(low, high))
        if found.cost < least:
            best, least = {**dict(zip(names, np.exp(found.x).tolist(), strict=True)), **fixed}, found.cost
    return best


def cross_validated(kind: Kind, dtype: str, data: Data) -> dict[str, np.ndarray]:
    """Relative errors of each chip's rows, each from the fit of the four fifths that it is not in."""
    random = np.random.default_rng(SEED)
    parts = [random.integers(0, FOLDS, len(m)) for _, _, m in data]
    held = {chip: np.zeros(len(m)) for chip, _, m in data}
    for fold in range(FOLDS):
        kept = [
            (c, {n: v[p != fold] for n, v in s.items()}, m[p != fold]) for (c, s, m), p in zip(data, parts, strict=True)
        ]
        made = fit(kind, dtype, kept)
        for (chip, shapes, measured), part in zip(data, parts, strict=True):
            out = part == fold
            held[chip][out] = predict(kind, made, chip, dtype, {n: v[out] for n, v in shapes.items()}) / measured[out]
    return {chip: values - 1 for chip, values in held.items()}


Everything = dict[str, Rows]


def error_from(kind: Kind, dtype: str, everything: Everything, chips: list[str], others: list[str]) -> float:
    """Mean absolute per cent on ``chips`` of constants that are fitted on ``others``."""
    made = fit(kind, dtype, [(c, everything[c].shapes, everything[c].measured) for c in others])
    errors = [np.abs(predict(kind, made, c, dtype, everything[c].shapes) / everything[c].measured - 1) for c in chips]
    return round(100 * float(np.concatenate(errors).mean()), 1)


def left_out(kind: Kind, dtype: str, everything: Everything, generation: str) -> dict[str, tuple[float, str]]:
    """The error on each chip of a generation, predicted from others, and from which."""
    found = {}
    mine = [c for c in GENERATIONS[generation] if c in everything]
    for chip in mine:
        others = [c for c in mine if c != chip] or [c for c in GENERATIONS[DONORS[generation]] if c in everything]
        if others:
            found[chip] = (error_from(kind, dtype, everything, [chip], others), "+".join(others))
    return found


def carried(kind: Kind, dtype: str, everything: Everything, generation: str) -> dict[str, Any]:
    """The error on a generation, predicted from its donor."""
    mine, others = ([c for c in GENERATIONS[g] if c in everything] for g in (generation, DONORS[generation]))
    if not others:
        return {}
    return {"from": DONORS[generation], "error_percent": error_from(kind, dtype, everything, mine, others)}


def entries(root: Path, only: str | None) -> Iterator[dict[str, Any]]:
    for name, dtype, library, values in FITS:
        if only not in (None, name):
            continue
        kind = KINDS[name]
        everything = {c: r for c in CHIPS if has(c, dtype) and (r := read(root, c, kind, library, values)) is not None}
        for generation, chips in GENERATIONS.items():
            data = [(c, everything[c].shapes, everything[c].measured) for c in chips if c in everything]
            if not data:
                continue
            made = fit(kind, dtype, data)
            held = cross_validated(kind, dtype, data)
            errors = 100 * np.abs(np.concatenate(list(held.values())))
            without = left_out(kind, dtype, everything, generation)
            sizes = {n: np.concatenate([s[n] for _, s, _ in data]) for n in data[0][1]}
            versions = sorted({everything[c].version for c, _, _ in data})
            yield {
                "class": name,
                "generation": generation,
                "dtype": dtype,
                "chips": [c for c, _, _ in data],
                "constants": {n: float(f"{v:.4g}") for n, v in made.items()},
                "points": int(sum(len(m) for _, _, m in data)),
                "error_percent": {c: round(100 * float(np.abs(e).mean()), 1) for c, e in held.items()},
                "median_percent": round(float(np.median(errors)), 1),
                "p90_percent": round(float(np.quantile(errors, 0.9)), 1),
                "left_out": {c: e for c, (e, _) in without.items()},
                "left_out_from": {c: f for c, (_, f) in without.items()},
                "carried": carried(kind, dtype, everything, generation),
                "low": {n: float(v.min()) for n, v in sizes.items()},
                "high": {n: float(v.max()) for n, v in sizes.items()},
                "library": f"{LIBRARIES[library]} {', '.join(versions)}",
            }


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, float):
        return f"{value:.10g}" if value != int(value) else f"{value:.1f}"
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=Path, help="the folder systems/data of the package")
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--write", type=Path, help="put the fits into this file, below what stands before them")
    options = parser.parse_args()
    root = options.tables
    if root is None:
        found = importlib.util.find_spec("aiconfigurator_core")
        if found is None or not found.submodule_search_locations:
            parser.error("no aiconfigurator-core: pip install 'trnsim[gpu-tables]', or give --tables")
        root = Path(found.submodule_search_locations[0]) / "systems" / "data"
    made = []
    for entry in entries(root, options.only):
        shown = ", ".join(f"{n} {v}" for n, v in entry["constants"].items())
        print(f"{entry['class']} {entry['generation']} {entry['dtype']} ({entry['library']}), {entry['points']} rows")
        print(f"  {shown}")
        print(f"  five-fold {entry['error_percent']}, median {entry['median_percent']}, p90 {entry['p90_percent']}")
        without = {c: f"{e} from {entry['left_out_from'][c]}" for c, e in entry["left_out"].items()}
        print(f"  chip left out {without}, generation carried {entry['carried']}", flush=True)
        made.append("\n".join(["[[fits]]", *(f"{k} = {_toml(v)}" for k, v in entry.items())]) + "\n")
    if options.write:
        before = options.write.read_text(encoding="utf-8").split("[[fits]]")[0]
        options.write.write_text(before + "\n".join(made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
