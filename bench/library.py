"""Our kernels beside nki-library's, both timed by the simulator at the same shapes.

``python bench/library.py [--chip trn2] [--json FILE] [NAME ...]``; NAME is part of a family's name. The kernels of
nki-library come from a checkout of d2ad3a5 that ``TRNSIM_LIBRARY`` names, repaired as
``tests/conformance/repair_nki_library.py`` does; without it nothing runs, visibly. A ratio above 1 is a kernel of ours
that takes longer.

Where layouts differ (gradients of attention, decode attention, token norms), each kernel has its own, of the same
sizes; what nki-library fuses, its cases here leave out, and what it does besides (scores of a router) it does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trnsim
from trnsim import compat
from trnsim.kernels.attention import attention
from trnsim.kernels.attention_backward import attention_backward
from trnsim.kernels.cross_entropy import cross_entropy, cross_entropy_backward
from trnsim.kernels.decode_attention import decode_attention
from trnsim.kernels.layernorm import layernorm
from trnsim.kernels.matmul import matmul
from trnsim.kernels.mlp import gated_mlp
from trnsim.kernels.rmsnorm import rmsnorm
from trnsim.kernels.rope import rope
from trnsim.kernels.router import router

LIMIT = 1.15


def t(*shape: int, dtype: str = "bf16") -> str:
    """A tensor of a shape, of which only time matters."""
    return f"{dtype}[{','.join(map(str, shape))}]"


def library(module: str, name: str) -> Any:
    """What a module of the checkout has."""
    return getattr(importlib.import_module(f"nkilib_src.nkilib.{module}"), name)


@dataclass
class Case:
    """One problem: their kernel and ours, each with its arguments."""

    family: str
    problem: str
    theirs: Any
    their_arguments: Mapping[str, Any]
    ours: Any
    our_arguments: tuple[Any, ...]


def named(**arguments: Any) -> dict[str, Any]:
    """Arguments by name."""
    return arguments


def attention_cases() -> Iterator[Case]:
    for heads, key_heads, size, depth, causal in (
        (8, 8, 2048, 128, True), (8, 2, 4096, 128, True), (8, 8, 4096, 64, True), (4, 4, 8192, 128, True),
        (2, 1, 16384, 128, True), (8, 8, 4096, 128, False), (16, 16, 512, 64, False),
    ):  # fmt: skip
        q, k, v = t(heads, depth, size), t(key_heads, depth, size), t(key_heads, size, depth)
        yield Case(
            "attention", f"{heads}/{key_heads} heads of {depth}, {size} tokens{', causal' * causal}",
            library("core.attention.attention_cte", "attention_cte"),
            named(q=q, k=k, v=v, scale=0.125, causal_mask=causal, tp_q=False),
            attention, (q, k, v, 0.125, causal),
        )  # fmt: skip


def attention_backward_cases() -> Iterator[Case]:
    for heads, key_heads, size, depth, causal in (
        (4, 4, 2048, 128, True), (4, 2, 4096, 128, True), (4, 4, 4096, 64, True), (2, 2, 4096, 128, False),
    ):  # fmt: skip
        q, k = t(1, heads, depth, size), t(1, key_heads, depth, size)
        theirs = named(
            q_ref=q, k_ref=k, v_ref=k, o_ref=q, dy_ref=q, use_causal_mask=causal, mixed_precision=True,
            lse_ref=t(1, heads, 128, size // 128, dtype="f32"), softmax_scale=0.125,
        )  # fmt: skip
        mine, keys, rows = t(heads, depth, size), t(key_heads, depth, size), t(heads, size, depth)
        yield Case(
            "attention backward", f"{heads}/{key_heads} heads of {depth}, {size} tokens{', causal' * causal}",
            library("core.attention.attention_bwd", "attention_bwd"), theirs,
            attention_backward,
            (mine, keys, t(key_heads, size, depth), rows, t(heads, size, dtype="f32"), rows, 0.125, causal),
        )  # fmt: skip


def decode_cases() -> Iterator[Case]:
    for batch, heads, context, block in ((4, 8, 2048, 16), (16, 8, 4096, 16), (8, 1, 8192, 32), (4, 8, 8192, 32)):
        depth, blocks = 128, batch * context // block
        pages = t(blocks, block, depth)
        theirs = named(
            q=t(depth, batch * heads), k_active=t(depth, batch), v_active=t(batch, 1, 1, depth), k_prior=pages,
            v_prior=pages, mask=t(context, batch, heads, 1, dtype="u8"),
            active_blocks_table=t(batch, context // block, dtype="u32"), sizes=(batch, heads, context, depth, block),
        )  # fmt: skip
        cache = t(blocks, block, 1, depth)
        yield Case(
            "decode attention", f"{batch} sequences, {heads} heads of {depth}, {context} tokens by {block}",
            decode_wrapper(), theirs, decode_attention,
            (
                t(batch, depth, heads), cache, t(batch, context // block, dtype="i32"), t(batch, 1, dtype="i32"), cache,
                0.125,
            ),
        )  # fmt: skip


def decode_wrapper() -> Any:
    """``attention_tkg`` with queries and keys from HBM: it wants them, and where it may allocate, in SBUF."""
    import nki
    import nki.isa as nisa
    import nki.language as nl

    attend, config, manager, logger = (
        library("core.attention.attention_tkg", "attention_tkg"),
        library("core.attention.attention_tkg_utils", "AttnTKGConfig"),
        library("core.utils.allocator", "SbufManager"),
        library("core.utils.logging", "Logger"),
    )

    @nki.jit
    def decode(q, k_active, v_active, k_prior, v_prior, mask, active_blocks_table, sizes):
        batch, heads, context, depth, block = sizes
        cfg = config(
            bs=batch, q_head=heads, s_active=1, curr_sprior=context, full_sprior=context, d_head=depth,
            block_len=block, tp_k_prior=True, strided_mm1=False, qk_in_sb=True,
        )  # fmt: skip
        sbm = manager(0, nl.tile_size.total_available_sbuf_size - 16 * 1024, logger("SBM"))
        sbm.open_scope()
        out = nl.ndarray((batch, heads, depth, 1), dtype=q.dtype, buffer=nl.shared_hbm)
        queries = sbm.alloc_stack(q.shape, dtype=q.dtype, buffer=nl.sbuf)
        keys = sbm.alloc_stack(k_active.shape, dtype=k_active.dtype, buffer=nl.sbuf)
        nisa.dma_copy(queries, q)
        nisa.dma_copy(keys, k_active)
        found, _ = attend(
            queries, keys, v_active, k_prior, v_prior, mask, out, cfg, sbm, active_blocks_table=active_blocks_table
        )
        sbm.close_scope()
        return found

    return decode


def mlp_cases() -> Iterator[Case]:
    for tokens, width, hidden in (
        (1024, 1024, 448), (2048, 4096, 1792), (4096, 4096, 3584), (1024, 8192, 3584), (1024, 16384, 832),
        (1, 4096, 1792), (16, 8192, 3584), (64, 4096, 3584), (128, 5120, 1024),
    ):  # fmt: skip
        x, up, down = t(tokens, width), t(width, hidden), t(hidden, width)
        form = "context" if tokens > 128 else "token"
        yield Case(
            f"mlp, {form}", f"{tokens} tokens, {width} x {hidden}", library("core.mlp.mlp", "mlp"),
            mlp_arguments(t(1, tokens, width), up, down), gated_mlp, (x, up, up, down),
        )  # fmt: skip


def mlp_arguments(x: str, up: str, down: str) -> dict[str, Any]:
    import nki.language as nl

    types = "core.utils.common_types"
    return named(
        hidden_tensor=x, gate_proj_weights_tensor=up, up_proj_weights_tensor=up, down_proj_weights_tensor=down,
        activation_fn=library(types, "ActFnType").SiLU, normalization_type=library(types, "NormType").NO_NORM,
        output_dtype=nl.bfloat16,
    )  # fmt: skip


def norm_cases() -> Iterator[Case]:
    """nki-library's norms are for tokens, and leave their result with the width in partitions."""
    for name, ours in (("rmsnorm_tkg", rmsnorm), ("layernorm_tkg", layernorm)):
        for tokens, width in ((1, 8192), (8, 8192), (64, 4096), (128, 8192), (512, 4096)):
            row, both = t(1, width), name == "layernorm_tkg"
            theirs = named(input=t(1, tokens, width), gamma=row, output=t(128, tokens, width // 128))
            theirs |= {"beta": row} if both else {}
            yield Case(
                name.removesuffix("_tkg"), f"{tokens} x {width}", token_norm(name),
                theirs, ours, (t(tokens, width), *(t(width),) * (1 + both)),
            )  # fmt: skip


def token_norm(name: str) -> Any:
    """Their function as a kernel."""
    import nki

    return nki.jit(library(f"core.subkernels.{name}", name))


def projection_cases() -> Iterator[Case]:
    for tokens, width, outputs in ((2048, 4096, 1536), (4096, 8192, 1280), (1024, 16384, 512)):
        x, weight = t(1, tokens, width), t(width, outputs)
        yield Case(
            "qkv", f"{tokens} tokens, {width} x {outputs}", library("core.qkv.qkv", "qkv"),
            named(input=x, fused_qkv_weights=weight), matmul,
            (t(tokens, width), weight, 1, 0),
        )  # fmt: skip
    for tokens, heads, outputs in ((2048, 8, 4096), (4096, 16, 8192)):
        weight = t(heads * 128, outputs)
        path = "core.output_projection.output_projection_cte"
        yield Case(
            "output projection", f"{tokens} tokens, {heads * 128} x {outputs}",
            library(f"{path}.output_projection_cte", "output_projection_cte"),
            named(attention=t(1, heads, 128, tokens), weight=weight), matmul,
            (t(heads * 128, tokens), weight),
        )  # fmt: skip


def other_cases() -> Iterator[Case]:
    for tokens, heads, key_heads in ((2048, 8, 2), (4096, 32, 8)):
        q, k, table = t(1, heads, tokens, 128), t(1, key_heads, tokens, 128), t(tokens, 128)
        every = t(tokens, heads + key_heads, 128)
        yield Case(
            "rope", f"{tokens} tokens, {heads + key_heads} heads of 128",
            library("core.embeddings.rope_hf", "rope_hf"),
            named(q=q, k=k, q_out=q, k_out=k, cos=table, sin=table), rope,
            (every, t(tokens, 64), t(tokens, 64)),
        )  # fmt: skip
    for rows, width in ((512, 32768), (1024, 131072)):
        logits, targets = t(rows, width), t(rows, dtype="i32")
        path = "experimental.loss.cross_entropy"
        yield Case(
            "cross-entropy", f"{rows} x {width}", library(path, "cross_entropy_forward"),
            named(logits_hbm=logits, targets_hbm=targets, positions_per_batch=128),
            cross_entropy, (logits, targets),
        )  # fmt: skip
        logs = t(rows, dtype="f32")
        yield Case(
            "cross-entropy backward", f"{rows} x {width}",
            library(path, "cross_entropy_backward"),
            named(
                logits_hbm=logits, targets_hbm=targets, lse_state_hbm=t(rows), positions_per_batch=128, inplace=False
            ),
            cross_entropy_backward, (logits, targets, logs, logs),
        )  # fmt: skip
    for tokens, width, experts, k in ((128, 4096, 128, 8), (2048, 3072, 128, 4)):
        yield Case(
            "router", f"{tokens} tokens of {width}, {k} of {experts} experts", router_wrapper(),
            named(
                x=t(width, tokens), w=t(width, experts), router_logits=t(tokens, experts),
                expert_affinities=t(tokens, experts), expert_index=t(tokens, k, dtype="u32"), k=k,
            ),
            router, (t(width, tokens), t(width, experts), k),
        )  # fmt: skip


def router_wrapper() -> Any:
    """Their function as a kernel, with softmax."""
    import nki

    find, kinds = library("core.router_topk.router_topk", "router_topk"), "core.utils.common_types"
    softmax = library(kinds, "RouterActFnType").SOFTMAX

    @nki.jit
    def route(x, w, router_logits, expert_affinities, expert_index, k):
        return find(
            x, w, None, router_logits, expert_affinities, expert_index, softmax, k, x_hbm_layout=0, x_sb_layout=0
        )

    return route


def cases() -> Iterator[Case]:
    for make in (
        attention_cases, attention_backward_cases, decode_cases, mlp_cases, norm_cases, projection_cases, other_cases,
    ):  # fmt: skip
        yield from make()


def microseconds(kernel: Any, chip: str, lnc: int, *arguments: Any, **named: Any) -> float | str:
    """What a kernel takes, or why it cannot be timed."""
    options = trnsim.SimulationOptions(chip=chip, numeric=False, lnc=lnc)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return trnsim.profile(kernel, *arguments, options=options, **named).timeline.total_ps / 1e6
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:90]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names of families")
    parser.add_argument("--chip", default="trn2")
    parser.add_argument("--lnc", type=int, choices=(1, 2), help="cores of a logical core; both by default")
    parser.add_argument("--json", type=Path, help="write the ratios by family too")
    given = parser.parse_args()
    checkout = os.environ.get("TRNSIM_LIBRARY")
    if checkout is None:
        print("library: skipped, TRNSIM_LIBRARY does not name a checkout of nki-library")
        return
    sys.path.insert(0, f"{checkout}/src")
    trnsim.install()
    sys.modules.update(compat.modules())
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    ratios: dict[str, list[float]] = {}
    print(f"{'operator':<24}{'problem':<52}{'LNC':>4}{'theirs us':>12}{'ours us':>12}{'ratio':>8}")
    for case in cases():
        if given.names and not any(name in case.family for name in given.names):
            continue
        for lnc in [given.lnc] if given.lnc else [1, 2]:
            theirs = microseconds(case.theirs, given.chip, lnc, **case.their_arguments)
            ours = microseconds(case.ours, given.chip, lnc, *case.our_arguments)
            line = f"{case.family:<24}{case.problem:<52}{lnc:>4}"
            if isinstance(theirs, str) or isinstance(ours, str):
                print(f"{line}  theirs {theirs}; ours {ours}", flush=True)
                continue
            ratio = ours / theirs
            ratios.setdefault(case.family, []).append(ratio)
            late = "  more than 15 % longer" if ratio > LIMIT else ""
            print(f"{line}{theirs:>12.1f}{ours:>12.1f}{ratio:>8.2f}{late}", flush=True)
    print(f"\n{'operator':<24}{'cases':>6}{'geometric mean':>16}{'longest':>9}{'within 15 %':>13}")
    for family, found in ratios.items():
        mean = math.exp(sum(map(math.log, found)) / len(found))
        within = sum(ratio <= LIMIT for ratio in found)
        print(f"{family:<24}{len(found):>6}{mean:>16.2f}{max(found):>9.2f}{within:>13}")
    if given.json:
        given.json.write_text(json.dumps(ratios))


if __name__ == "__main__":
    main()
