"""Fits the constants of collectives (``nccl.toml``, ``links.toml``, ``skew.toml`` of ``fabric``), with their errors.

    python scripts/fit_collectives.py collectives.csv [--check]

Writes the files; ``--check`` only says whether they are what the data gives (exit status 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from trnsim.fabric.group import group
from trnsim.fabric.nccl import COSTS, LATENCIES
from trnsim.fabric.predict import predict
from trnsim.validation.collectives import fit, neuron
from trnsim.validation.collectives.rows import Row, excluded, read_rows

FABRIC = Path(__file__).parents[1] / "src" / "trnsim" / "fabric"
SOURCE = "NVIDIA/nccl src/graph/tuning.cc at 5067397c"

TUNER = f"""\
# NCCL's constants; see nccl.py and selection.py. Made by scripts/fit_collectives.py.

# NCCL's own estimate, by which it chooses (no measurement). source = "{SOURCE}"
[tuner]
ring_share = 0.8       # 20.0, 20.6, 40.1 GB/s (src/graph/topo.h) a link of 25, 25, 50: over the catalogue's rate
nvls_us = 25.0
base_us = {{ LL = 6.6, LL128 = 14.0, Simple = 8.4 }}
step_us = {{ LL = 0.6, LL128 = 1.9, Simple = 3.4 }}

# GB/s. nvls_head_max: the fastest speed its search tries (src/graph/search.cc); 0: the switch cannot reduce.
[tuner.generations]
"NVLink 3" = {{ ll_max = 87.7, nvls_head_max = 0.0, nvls_efficiency = 0.0 }}
"NVLink 4" = {{ ll_max = 141.0, nvls_head_max = 60.0, nvls_efficiency = 0.85 }}
"NVLink 5" = {{ ll_max = 282.0, nvls_head_max = 90.0, nvls_efficiency = 0.74 }}
"""
NODE_SOURCE = "PyPI aiconfigurator-core 0.12.0 systems/data/*/comm/nccl/*/nccl_perf.parquet, 2026-09"
NODE_NOTE = f"""\
# Fitted by generation of links. Efficiencies are shares of the catalogue's one-way rate; the efficiency of copies is of
# a rank's own part of an all_to_all. Errors are mean absolute relative errors in percent, from 1 MiB on and below:
# fit: of the points fitted; held_out: four ranks from a fit on two and eight; chip_left_out: each chip from a fit on
# the others (of other generations, where no other chip has these links).
# source = "{NODE_SOURCE}"
"""
NETWORK_NOTE = """\
# Between two nodes over EFA, all_reduce. latency: up and down; efficiency: of the rate of a node's adapters; fill and
# window: see nccl.py; ll_share: latency of LL over that of Simple. Errors as above; held_out: every other size.
# source = aws-samples/awsome-distributed-training micro-benchmarks/nccl-tests (p4de, p5); NVIDIA/nccl issue 527
"""


def node_text(points: list[fit.Point]) -> list[str]:
    """``[nvlink.*]``."""
    constants = fit.fit_node(points)
    fitted = fit.predict_node(constants, points)
    held, left = fit.held_out_ranks(points), fit.left_out_chips(points)
    lines = [NODE_NOTE.rstrip()]
    for technology, values in constants.items():
        mine = [p for p in points if p.technology == technology]
        lines += [f'[nvlink."{technology}"]']
        lines += [f'{name} = "{values[name] / 1e6:.4g} us"' for name in LATENCIES if name in values]
        lines += [
            f"{name.replace('_cost', '_efficiency')} = {1 / values[name]:.4g}" for name in COSTS if name in values
        ]
        folds = {
            "fit": {p: fitted[p] for p in mine},
            "held_out": _only(held.predicted, mine),
            "chip_left_out": _only(left.predicted, mine),
        }
        lines += [_errors(folds), _chips(mine), f"points = {len(mine)}",
                  f'largest = "{max(p.nbytes for p in mine) >> 20} MiB"', ""]  # fmt: skip
    return lines


# Not fitted: no table of these adapters is among the data.
STATED = """\
[network.kinds.infiniband]
technology = "InfiniBand"
latency = "73 us"
efficiency = 0.95
reason = "NCCL over InfiniBand as its makers state it: 192 of 200 GB/s on DGX A100, 46 to 48 of 50 GB/s on NDR"
# source = "NVIDIA/nccl issue 812 (2023-03-31), NVIDIA/nccl-tests issue 290 (2025-03-03)"; latency: 46.5 us of an
# all_reduce of two nodes below 1 KiB (NVIDIA/nccl issue 1244, 2024-04-09, NDR) over ll_share
"""


def network_text(points: list[fit.Point]) -> list[str]:
    """``[network]``."""
    network = fit.fit_network(points)
    fitted, held = fit.predict_network(network, points), fit.held_out_sizes(points)
    shape = network.shape
    lines = [
        NETWORK_NOTE.rstrip(),
        "[network]",
        f"fill = {shape.fill:.4g}",
        f"window = {shape.window:.4g}",
        f"ll_share = {shape.ll_share:.4g}",
        f'll_rate = "{shape.ll_bytes_per_second / 1e6:.4g} MB/s"',
        "",
    ]
    for kind, values in network.kinds.items():
        mine = [p for p in points if fit.kind_of(p.system) == kind]
        lines += [
            f"[network.kinds.{kind}]",
            f'latency = "{values.latency_ps / 1e6:.4g} us"',
            f"efficiency = {values.efficiency:.4g}",
            _errors({"fit": _only(fitted, mine), "held_out": _only(held.predicted, mine)}),
            f"systems = {_list(dict.fromkeys(p.system for p in mine))}",
            f"points = {len(mine)}",
            f'largest = "{max(p.nbytes for p in mine) >> 20} MiB"',
            "",
        ]
    return [*lines, STATED.rstrip()]


LINKS = """\
# How much of a link's rate a transfer reaches and what a step costs beside, by link technology: named constants with
# their source or fit. A technology that is not listed has the latency of the catalogue and its whole rate.
# Made by scripts/fit_collectives.py. NCCL's protocols are in nccl.toml.
#
# [technologies."NAME"]              the name of the links in the catalogue (NeuronLink-v3, EFA, DMA v3)
# launch = "10 us"                   once a collective
# hop = "0 us"                       for each link of a route beyond the first
# support = "calibrated"             or interpolated, extrapolated, assumed
# reason = "..."                     fit, its error, source
# [[technologies."NAME".protocols]]  in order of size; the last has no limit
# name = "simple"
# step_latency = "1.5 us"
# efficiency = 0.9                   share of the link's rate that payload reaches
# up_to = "1 MiB"                    largest collective (bytes as its size is counted) that uses it
"""
DOCUMENTED = "aws-neuron-sdk neuron-runtime/explore/intranode-collective-comm.rst"
NETWORK_DOCUMENTED = "aws-neuron-sdk neuron-runtime/explore/internode-collective-comm.rst"
STEP = "1.5 us"  # about 1 to 2 us: DOCUMENTED
NETWORK_STEP = "15 us"  # about 15 us: NETWORK_DOCUMENTED


def links_text(rows: list[Row]) -> str:
    """``links.toml``."""
    gathers = neuron.series(rows)
    v2, (efa, efa_error) = neuron.fit_link(gathers), neuron.fit_efa(rows)
    v3 = neuron.fit_v3_efficiency(rows)
    launch = f"{v2.launch_ps / 1e6:.3g} us"
    carried = "launch as fitted on trn1"
    gather = f"fitted on {len(gathers)} all-gathers of 32 ranks of trn1.32xlarge"
    writes = "two writes from HBM to HBM of trn2 (kvcache-ai/Mooncake#3888)"
    writes += f", of each from the other {100 * efa_error:.0f} % off"
    entries = [
        ("NeuronLink-v2", launch, STEP, v2.efficiency, "calibrated",
         f"{gather}; error {100 * v2.error:.1f} %, of sizes left out one by one {100 * v2.held_out:.1f} %"),
        ("NeuronLink-v3", launch, STEP, v3, "extrapolated",
         f"efficiency from a published fit of 64 ranks of trn2 (17.5 us + bytes/100 GB/s); {carried}"),
        ("NeuronLink-v4", launch, STEP, v3, "assumed", f"efficiency as NeuronLink-v3; {carried}"),
        *((f"DMA {v}", launch, STEP, 1.0, "assumed", f"whole rate of the engines; {carried}")
          for v in ("v2", "v3", "v4")),
        ("EFAv3", launch, NETWORK_STEP, efa, "extrapolated",
         f"efficiency from {writes}"),
        ("EFA", launch, NETWORK_STEP, efa, "extrapolated", "efficiency and step as EFAv3"),
    ]  # fmt: skip
    lines = [LINKS.rstrip(), ""]
    for name, start, step, efficiency, support, reason in entries:
        lines += [
            f'[technologies."{name}"]',
            f'launch = "{start}"',
            f'support = "{support}"',
            f'reason = "{reason}"',
            f'source = "step: {NETWORK_DOCUMENTED if step == NETWORK_STEP else DOCUMENTED}"',
            f'[[technologies."{name}".protocols]]',
            'name = ""',
            f'step_latency = "{step}"',
            f"efficiency = {efficiency:.3g}",
            "",
        ]
    lines += [
        "# Published collectives of Neuron devices on which constants above were fitted.",
        "[[measured]]",
        'system = "trn1.32xlarge"',
        "ranks = 32",
        'collective = "all_gather"',
        f'largest = "{max(r.nbytes or 0 for r in gathers) >> 10} KiB"',
        f"points = {len(gathers)}",
        f"fit_percent = {100 * v2.error:.1f}",
        f"held_out_percent = {100 * v2.held_out:.1f}",
    ]
    return "\n".join(lines) + "\n"


SKEW = """\
# How late ranks come to a collective; see skew.py. Made by scripts/fit_collectives.py.
# Fitted on median and 90th percentile of 630 all-reduces of 8 KiB of 64 ranks of trn2 in a decode step, beyond the time
# without skew. The least and the largest of the 630 were not fitted.
"""


def skew_text(rows: list[Row]) -> str:
    """``skew.toml``."""
    where = group("trn2.48xlarge", 64)
    found = neuron.fit_skew(rows, predict(where, "all_reduce", 8192).time_ps)
    return (
        f'{SKEW}probability = {found.probability:.4g}\nmean = "{found.mean_ps / 1e6:.4g} us"\n'
        'reason = "fitted on two quantiles of one published trace of 64 ranks of trn2"\n'
    )


def _only(predicted: Mapping[fit.Point, float], points: Iterable[fit.Point]) -> dict[fit.Point, float]:
    return {p: predicted[p] for p in points if p in predicted}


def _errors(folds: Mapping[str, Mapping[fit.Point, float]]) -> str:
    entries = []
    for name, predicted in folds.items():
        if predicted:
            found = fit.errors(predicted)
            entries += [f"{name}_{size} = {100 * share:.1f}" for size, share in
                        (("large", found.large), ("small", found.small)) if share is not None]  # fmt: skip
    return f"error = {{ {', '.join(entries)} }}"


def _chips(points: list[fit.Point]) -> str:
    """Numbers of ranks by chip."""
    ranks = {c: sorted({p.ranks for p in points if p.chip == c}) for c in dict.fromkeys(p.chip for p in points)}
    return f"chips = {{ {', '.join(f'{chip} = {of}' for chip, of in ranks.items())} }}"


def _list(names: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{n}"' for n in names) + "]"


def made(path: str) -> dict[str, str]:
    """The files as the data gives them."""
    every = read_rows(path)
    rows = [r for r in every if excluded(r) is None]
    nodes, networks = fit.database_points(rows), fit.network_points(rows)
    return {
        "nccl.toml": "\n".join([TUNER, *node_text(nodes), *network_text(networks)]).rstrip() + "\n",
        "links.toml": links_text([*rows, *(r for r in every if "fitted model" in r.stat)]),
        "skew.toml": skew_text(rows),
    }


def main() -> int:
    texts = made(sys.argv[1])
    differ = [name for name, text in texts.items() if _read(FABRIC / name) != text]
    if "--check" in sys.argv:
        print("differs: " + ", ".join(differ) if differ else "as fitted")
        return int(bool(differ))
    for name in differ:
        (FABRIC / name).write_text(texts[name], encoding="utf-8")
        print(f"wrote {name}")
    if "links.toml" in differ:
        print("the skew is fitted beyond the time of links.toml: run again")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(main())
