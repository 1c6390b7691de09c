"""Write the tables of docs/kernels.md: how right our kernels are, what they reach, and how they stand beside others.

    TRNSIM_LIBRARY=... python scripts/kernel_tables.py [correct] [peak] [bandwidth] [library]

Without names all of them. ``correct`` takes minutes and does not depend on timing: ``--examples`` draws so many times
the cases of the tests (as many as are on the page by default). ``library`` needs a checkout of nki-library, repaired as
``tests/conformance/repair_nki_library.py`` does. Tables are replaced in place; what else the page says stays.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/kernels.md"
TESTS = ROOT / "tests/unit/kernels"
FORMATS = ("bfloat16", "float16", "float32")
PARTS = ("correct", "peak", "bandwidth", "library")

# Rows of the table of errors: kernels of the tests, and how they are called.
KERNELS = {
    "matmul": "`matmul`, either side transposed",
    "matmul_fp8": "`matmul_fp8`, either side transposed",
    "matmul_mx": "`matmul_mx`",
    "attention": "`attention` (causal, window, GQA)",
    "attention_backward": "`attention_backward`",
    "decode_attention": "`decode_attention`, paged (MHA, GQA, MLA, window)",
    "rmsnorm": "`rmsnorm`",
    "rmsnorm_backward": "`rmsnorm_backward`",
    "layernorm": "`layernorm`",
    "layernorm_backward": "`layernorm_backward`",
    "rope": "`rope`, and its inverse (the gradient)",
    "gated_mlp": "`gated_mlp`",
    "mlp": "`mlp`",
    "elementwise": "`elementwise`",
    "activation_backward": "`activation_backward`",
    "gated_activation": "`gated_activation`",
    "gated_activation_backward": "`gated_activation_backward`",
    "router": "`router` (weights, float32)",
    "grouped_matmul": "`grouped_matmul`",
    "grouped_weight_gradient": "`grouped_weight_gradient`",
    "softmax": "`softmax`",
    "softmax_backward": "`softmax_backward`",
    "cross_entropy": "`cross_entropy` (float32)",
    "cross_entropy_backward": "`cross_entropy_backward`",
    "embedding": "`embedding`",
    "embedding_backward": "`embedding_backward` (float32)",
    "adam_step": "`adam_step` (bfloat16: weights of the model)",
    "reduce_rows": "`reduce_rows`",
    "reduce_columns": "`reduce_columns`",
    "reduce_all": "`reduce_all`",
}
# Formats of operands, for kernels whose results are bfloat16 whatever they take.
OPERANDS = {"matmul_fp8": "e4m3, e5m2, e4m3fn", "matmul_mx": "MXFP8, MXFP4"}

# Rows of the table of bandwidth: kernels of ``test_bandwidth.py`` that stand together. Of those that are tested in
# two ways the first counts.
TOGETHER = {
    "`rmsnorm`; backward": ("rmsnorm", "rmsnorm_backward"),
    "`layernorm`; backward": ("layernorm", "layernorm_backward"),
    "`softmax`; backward": ("softmax", "softmax_backward"),
    "`cross_entropy`; backward (512 x 64,000)": ("cross_entropy", "cross_entropy_backward"),
    "`elementwise`, residual": ("elementwise",),
    "`activation_backward`": ("activation_backward",),
    "`gated_activation`; backward": ("gated_activation", "gated_activation_backward"),
    "`rope`": ("rope",),
    "`adam_step`": ("adam_step",),
    "`embedding`; backward": ("embedding", "embedding_backward"),
    "`reduce_rows`; `reduce_columns`; `reduce_all`": ("reduce_rows", "reduce_columns", "reduce_all"),
    "`quantize_rows`; `quantize_tensor`": ("quantize_rows", "quantize_tensor"),
}
PLACES = {
    "trn1": ("trn1", 1), "trn2": ("trn2", 1), "trn2, 2 cores": ("trn2", 2), "trn3": ("trn3", 1),
    "trn3, 2 cores": ("trn3", 2),
}  # fmt: skip
# Rows of the table beside nki-library: families of ``bench/library.py``.
FAMILIES = {
    "attention": "attention (`attention_cte`)",
    "attention backward": "attention backward (`attention_bwd`)",
    "decode attention": "decode attention, paged (`attention_tkg`)",
    "mlp, context": "MLP, 1,024 tokens and more (`mlp`)",
    "mlp, token": "MLP, 1 to 128 tokens (`mlp`)",
    "rmsnorm": "RMSNorm, 1 to 512 tokens (`rmsnorm_tkg`)",
    "layernorm": "LayerNorm, 1 to 512 tokens (`layernorm_tkg`)",
    "qkv": "projection of tokens (`qkv`)",
    "output projection": "output projection (`output_projection_cte`)",
    "rope": "rotary embedding (`rope_hf`)",
    "cross-entropy backward": "cross-entropy backward",
    "router": "router (`router_topk`)",
}


def table(head: str, rows: list[list[str]]) -> str:
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def replaced(text: str, new: str) -> str:
    """``text`` with the table whose header's first cells ``new`` begins with replaced by ``new``."""
    start = " | ".join(new.split(" | ")[:2])
    found = re.search(rf"^{re.escape(start)}[^\n]*\n(\|[^\n]*\n)*", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{PAGE} has no table that begins with {start}")
    return text[: found.start()] + new + text[found.end() :]


def correct(text: str, examples: int | None) -> str:
    """Errors over drawn cases, by the tests themselves."""
    shown = re.search(r"TRNSIM_KERNEL_EXAMPLES=(\d+)", text)
    times = examples or int(shown[1] if shown else 1)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        more = {"TRNSIM_KERNEL_EXAMPLES": str(times), "TRNSIM_KERNEL_RESULTS": str(results)}
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TESTS), "-k", "not share and not contracts"]
        subprocess.run(command, env={**os.environ, **more}, check=True)
        rows = json.loads(results.read_text())
    return with_errors(text, rows, times)


def with_errors(text: str, rows: list[list[Any]], times: int) -> str:
    """The page with [kernel, format, results, error] each."""
    by_kernel: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
    for kernel, dtype, count, error in rows:
        by_kernel[kernel][dtype] = count, error
    lines = []
    for kernel, name in KERNELS.items():
        found = by_kernel[kernel]
        total = sum(count for count, _ in found.values())
        if kernel in OPERANDS:
            cells = [f"{max(error for _, error in found.values()):.1e} ({OPERANDS[kernel]} in)", "", ""]
        else:
            cells = [_error(found[dtype][1]) if dtype in found else "" for dtype in FORMATS]
        lines.append([name, *cells, f"{total:,}"])
    text = replaced(text, table("| kernel | bfloat16 | float16 | float32 | results |", lines))
    total = sum(count for _, _, count, _ in rows)
    text = re.sub(r"TRNSIM_KERNEL_EXAMPLES=\d+", f"TRNSIM_KERNEL_EXAMPLES={times}", text)
    return re.sub(r"[\d,]+ results of \d+ kernels", f"{total:,} results of {len(by_kernel)} kernels", text)


def _error(error: float) -> str:
    return f"{error:.1e}" if error else "bit for bit"


def peak(text: str) -> str:
    """Shares of TensorE's peak at 4096^3."""
    from kernel_harness import share_of_peak

    from trnsim.kernels.matmul import matmul
    from trnsim.kernels.matmul_fp8 import matmul_fp8
    from trnsim.kernels.matmul_mx import matmul_mx

    size = 4096
    flops = 2 * size**3
    plain, small = np.zeros((size, size), ml_dtypes.bfloat16), np.zeros((size, size), ml_dtypes.float8_e4m3)
    rows: list[list[str]] = [["`matmul`, bfloat16"], ["`matmul_fp8`, float8_e4m3"], ["`matmul_mx`, MXFP8; MXFP4"]]
    for chip, cores in PLACES.values():
        where = chip, cores
        both = [share_of_peak(matmul, where, "bfloat16", flops, plain, plain, *turned) for turned in ((0, 0), (1, 1))]
        rows[0].append(_percent(both, ", "))
        both = []
        if chip != "trn1":
            for turned in ((0, 0), (1, 1)):
                named = dict(zip(("contract_lhs", "contract_rhs"), turned, strict=True))
                both.append(share_of_peak(matmul_fp8, where, "float8_e4m3", flops, small, small, **named))
        rows[1].append(_percent(both, ", "))
        both = []
        if chip == "trn3":
            for name, integer in (("float8_e4m3fn_x4", np.uint32), ("float4_e2m1fn_x4", np.uint16)):
                operand = np.zeros((size // 4, size), integer), np.zeros((size // 32, size), np.uint8)
                both.append(share_of_peak(matmul_mx, where, name, flops, *operand, *operand, name, name))
        rows[2].append(_percent(both, "; "))
    return replaced(text, table(f"| share of peak | {' | '.join(PLACES)} |", rows))


def _percent(shares: list[float], between: str) -> str:
    return between.join(f"{100 * share:.1f}" for share in shares) + " %" if shares else ""


def bandwidth(text: str) -> str:
    """Shares of what DMA or HBM allows."""
    import test_bandwidth
    from kernel_harness import share_of_bandwidth

    cases: dict[str, Any] = {}
    for kernel, _, moved, arguments in test_bandwidth.CASES:
        cases.setdefault(kernel.__name__, (kernel, moved, arguments))
    rows = []
    for name, kernels in TOGETHER.items():
        row = [name]
        for where in PLACES.values():
            shares = []
            for kernel, moved, arguments in (cases[one] for one in kernels):
                shares.append(f"{share_of_bandwidth(kernel, where, moved, *arguments()):.2f}")
            row.append("; ".join(shares))
        rows.append(row)
    return replaced(text, table(f"| share of bandwidth | {' | '.join(PLACES)} |", rows))


def library(text: str) -> str:
    """Ratios to nki-library's kernels; names those that take more than 15 % longer."""
    if "TRNSIM_LIBRARY" not in os.environ:
        raise SystemExit("library: TRNSIM_LIBRARY names no checkout of nki-library")
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for chip in ("trn2", "trn3"):
            file = Path(folder) / f"{chip}.json"
            command = [sys.executable, str(ROOT / "bench/library.py"), "--chip", chip, "--json", str(file)]
            subprocess.run(command, check=True)
            found[chip] = json.loads(file.read_text())
    unknown = {family for ratios in found.values() for family in ratios} - set(FAMILIES)
    if unknown:
        raise SystemExit(f"library: families that the page does not name: {', '.join(sorted(unknown))}")
    rows = [[name, *_ratios(found, family)] for family, name in FAMILIES.items()]
    head = "| operator | cases | trn2: geometric mean, longest | trn3: geometric mean, longest |"
    return replaced(text, table(head, rows))


def _ratios(found: dict[str, dict[str, list[float]]], family: str) -> Iterator[str]:
    yield str(len(found["trn2"][family]))
    for ratios in (by_family[family] for by_family in found.values()):
        yield f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, {max(ratios):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--examples", type=int, help="times as many cases as the tests draw")
    given = parser.parse_args()
    wrong = set(given.parts) - set(PARTS)
    if wrong:
        parser.error(f"no such tables: {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    sys.path.insert(0, str(TESTS))
    makers = {"correct": lambda text: correct(text, given.examples), "peak": peak, "bandwidth": bandwidth}
    makers["library"] = library
    for part in given.parts or PARTS:
        PAGE.write_text(makers[part](PAGE.read_text()))  # each as soon as it is there
        print(f"{part}: written", flush=True)


if __name__ == "__main__":
    main()
