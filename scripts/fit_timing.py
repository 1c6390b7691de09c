"""Fit the constants of ``hardware/timing/v3.toml`` to the published timings of trn2 and print them with residuals.

    python scripts/fit_timing.py <trn2_instr_timing.csv> [<trn2_dma_timing.csv>]

A class of instruction (engine, opcode, memory, shape) is one case; its median is what is fitted. Every constant is a
mean or a least-squares solution over its cases, none is set to one case.
"""

import csv
import sys
from pathlib import Path

import numpy as np

CLOCK = {"Tensor": 2.4, "Vector": 0.96, "Scalar": 1.2, "GpSimd": 1.2}


def number(text):
    return float(text) if text else None


def read(path):
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    for row in rows:
        row["source"] = row["src0(dtype:mem:free_elems[:stride])"]
        parts = row["source"].split(":")
        row["elements"] = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else None
        row["memory"] = parts[1] if len(parts) > 1 else ""
        row["duration"], row["interval"] = number(row["dur_median_ns"]), number(row["ii_median_ns"])
    return rows


def show(name, values, unit="ns"):
    values = np.asarray(values, float)
    mean = values.mean()
    spread = np.abs(values - mean).max()
    print(
        f"{name:48s} {mean:8.2f} {unit}   residual max {spread:5.1f} "
        f"({spread / max(mean, 1e-9) * 100:4.1f} %), {len(values)} classes"
    )
    return mean


def tensor(rows):
    full = [r for r in rows if r["engine"] == "Tensor" and r["opcode"] == "MATMUL" and "util_limit=1.0" in r["detail"]]
    issue, tail = [], []
    for r in full:
        streamed = r["elements"] * (2 if "LOW_HIGH" in r["detail"] else 1) / CLOCK["Tensor"]
        issue.append(r["interval"] - streamed)
        tail.append(r["duration"] - r["interval"])
    show("tensor.issue", issue)
    show("tensor.tail", tail)


def loads(rows):
    """LDWEIGHTS: cycles a column and a tail that all ten classes share.

    A float32 transpose loads twice as long, a float32 product three times.
    """
    found = [r for r in rows if r["engine"] == "Tensor" and r["opcode"] == "LDWEIGHTS"]
    columns = []
    for r in found:
        wide = r["source"].startswith("fp32")
        times = (2 if "T=ENABLED" in r["detail"] else 3) if wide else 1
        columns.append(128 * times / CLOCK["Tensor"] * (2 if "util_limit=0.5" in r["detail"] else 1))
    time = np.array([r["duration"] for r in found])
    design = np.stack([np.array(columns), np.ones(len(found))], 1)
    (slope, tail), *_ = np.linalg.lstsq(design / time[:, None], np.ones_like(time), rcond=None)
    error = np.abs(design @ [slope, tail] / time - 1).max()
    print(
        f"tensor.load_cycles_per_column {slope:.3f}, load_tail {tail:.1f} ns   "
        f"residual max {error:.1%}, {len(found)} classes"
    )


def throttled_tail(rows):
    found = [r for r in rows if r["engine"] == "Tensor" and r["opcode"] == "MATMUL"]
    tails = {
        limit: [r["duration"] - r["interval"] for r in found if f"util_limit={limit}" in r["detail"]]
        for limit in (1.0, 0.5)
    }
    show("tensor.tail_streamed", [t - np.mean(tails[1.0]) for t in tails[0.5]])


def stream(rows, engine, opcodes, cycles, label):
    cases = [r for r in rows if r["engine"] == engine and r["opcode"] in opcodes and r["elements"]]
    show(label, [r["duration"] - cycles(r) / CLOCK[engine] for r in cases])


def overlaps(rows, engine, label):
    cases = [r for r in rows if r["engine"] == engine and r["interval"] and r["duration"] > r["interval"] > 0]
    show(label, [r["duration"] - r["interval"] for r in cases])


def dma(path):
    sections, header = {}, None
    for line in csv.reader(Path(path).read_text().splitlines()):
        if line and line[0] == "section":
            header = line
        elif line:
            sections.setdefault(line[0], []).append(dict(zip(header, line, strict=False)))
    packets = [p for p in sections["packet"] if p["queue_type"] == "hardware_dynamic"]
    size = np.array([int(p["packet_bytes"]) for p in packets], float)
    time = np.array([float(p["median_ns"]) for p in packets])
    (fixed, slope), *_ = np.linalg.lstsq(
        np.stack([np.ones_like(size), size], 1) / time[:, None], np.ones_like(time), rcond=None
    )
    error = np.abs(fixed + slope * size - time).max()
    print(
        f"dma.packet {fixed:.2f} ns, dma.bytes_per_ns {1 / slope:.2f}   residual max {error:.1f} ns, {len(size)} sizes"
    )
    isolated = [t for t in sections["trigger"] if t["trigger_engine"] in ("Scalar", "Sync")]
    free = [
        t
        for t in isolated
        if float(t["trigger_instr_duration_ns"]) < 630 and float(t["trigger_to_first_packet_ns"]) < 1400
    ]
    first = lambda t: float(t["trigger_to_first_packet_ns"]) - float(t["trigger_instr_duration_ns"])  # noqa: E731
    # The first trigger of an engine in a kernel takes longer: it fetches what the others find.
    later = [t for t in free if t["trigger_engine"] == "Scalar" and t["index"] != "0"]
    count = np.array([int(t["total_bytes"]) / int(t["elem_size_bytes"]) for t in later])
    issue = np.array([float(t["trigger_instr_duration_ns"]) for t in later])
    (each, base), *_ = np.linalg.lstsq(np.stack([count, np.ones_like(count)], 1), issue, rcond=None)
    error = np.abs(base + each * count - issue).max()
    print(
        f"dma.hardware_issue {base:.0f} ns, hardware_issue_descriptor {each:.3f} ns   "
        f"residual max {error:.0f} ns, {len(later)} triggers"
    )
    show("dma.hardware_first_packet (store, after issue)", [first(t) for t in free if t["trigger_engine"] == "Scalar"])
    show(
        "  and read_latency (load, after issue)",
        [first(t) for t in free if t["trigger_engine"] == "Sync" and t["index"] == "0"],
    )
    rate = [
        float(t["total_bytes"]) / 16 / (float(t["trigger_to_last_packet_ns"]) - float(t["trigger_to_first_packet_ns"]))
        for t in free
        if int(t["total_bytes"]) >= 524288
    ]
    show("dma rate of an engine within a transfer", rate, "B/ns")
    software = [t for t in sections["trigger"] if t["trigger_engine"] == "GpSimd"]
    stores = [t for t in software if int(t["index"]) >= 3 and float(t["trigger_to_first_packet_ns"]) < 1000]
    opening = [t for t in software if t["index"] == "0" and float(t["trigger_to_first_packet_ns"]) < 800]
    show("dma.software_issue (none under way)", [float(t["trigger_instr_duration_ns"]) for t in stores + opening])
    for pending in (1, 2):
        times = [float(t["trigger_instr_duration_ns"]) for t in software if int(t["index"]) == pending]
        show(f"  with {pending} under way", times)
    show("dma.software_first_packet (store, after issue)", [first(t) for t in stores])
    show("  and read_latency (load, after issue)", [first(t) for t in opening])
    # Transfers of 128 elements one after another: what an engine is busy beyond its packets. The how-to matmul of the
    # NKI documentation, [4096,8192]@[8192,8192] float32: time with DMA active, and bytes and transfers of its two
    # DMA-bound versions.
    sustained = 23.0
    cases = [
        ("how-to matmul v2", 39.87e6, 32768 * 8, 32768 * 8 + 512 * 8, 32768 * 2 + 512),
        ("how-to matmul v3", 28.12e6, 2048 * 8, 32768 * 8 + 512 * 8, 2048 + 32768 + 512),
    ]
    extra = []
    for _, active, short, long, transfers in cases:
        packets_ns = short * max(fixed + 512 * slope, 512 / sustained) + long * max(
            fixed + 2048 * slope, 2048 / sustained
        )
        extra.append((active - packets_ns) / transfers)
    show("dma.transfer", extra)


def main():
    rows = read(sys.argv[1])
    tensor(rows)
    loads(rows)
    throttled_tail(rows)
    n = lambda r: r["elements"]  # noqa: E731
    stream(rows, "Vector", ("COPY", "CAST"), n, "vector.fixed (copy)")
    stream(rows, "Vector", ("TENSOR_REDUCE",), n, "vector fixed of reduce")
    stream(
        rows,
        "Vector",
        ("TENSOR_SCALAR",),
        lambda r: r["elements"] / (2 if r["memory"] == "SBUF" else 1),
        "vector.fixed + arithmetic",
    )
    overlaps(rows, "Vector", "vector.overlap")
    stream(rows, "Vector", ("RECIPROCAL",), lambda r: 8 * r["elements"], "vector fixed of reciprocal at 8 cycles")
    stream(rows, "Scalar", ("COPY", "CAST"), n, "scalar.fixed (copy)")
    stream(rows, "Scalar", ("ACTIVATE",), n, "scalar.fixed + activate")
    overlaps(rows, "Scalar", "scalar.overlap")
    if len(sys.argv) > 2:
        dma(sys.argv[2])


main()
