"""A report made up of known figures, for tests of what is shown."""

from __future__ import annotations

from trnsim.frameworks.torch.report import Fallback, Holder, MemoryUse, RegionCost, Report, StepTime

US = 1_000_000
KINDS = (("norm_matmul", 30, "attention.qkv"), ("attention", 50, "attention"), ("matmul", 20, "attention.out"),
         ("gated_mlp", 90, "mlp"), ("elementwise", 10, ""))  # fmt: skip


def region(kind, module, phase, start, time, **changes):
    """A region of ``time`` us from ``start`` us on; TensorE is busy for half of it."""
    given = {
        "operators": ("matmul m=128 k=128 n=128",),
        "aten": ("aten.mm.default",),
        "line": "model.py:12",
        "unfused_ps": 1.25 * time * US,
        "hbm_bytes": 1 << 20,
        "flops": 10**9,
        "busy_ps": {"tensor": 0.5 * time * US, "vector": 0.2 * time * US, "dma": 0.75 * time * US},
        "support": "interpolated",
    } | changes
    return RegionCost(kind=kind, module=module, phase=phase, start_ps=start * US, time_ps=time * US, **given)


def step_of(layers, phases=("forward", "backward")):
    """Regions of a step, and how long it takes in us."""
    found, at = [], 0.0
    for phase in phases:
        for layer in range(layers) if phase == "forward" else reversed(range(layers)):
            for kind, forward, where in KINDS:
                time = forward * (2 if phase == "backward" else 1)
                found.append(region(kind, f"model.layers.{layer}.{where}".rstrip("."), phase, at, time))
                at += time
    if "backward" in phases:
        found.append(region("adam", "optimizer", "optimizer", at, 60, support="assumed"))
        found.append(
            region("fallback", "model.head", "forward", at + 60, 40, aten=("aten.cumsum.default",), busy_ps={})
        )
        at += 100
    return tuple(found), at


def made_report(layers=4, steps=3, *, over=False, **changes):
    """Training steps alike, 1 GiB of weights, gradients and optimiser, and activations that rise and fall."""
    regions, long = step_of(layers)
    times, held = [], {"weight": [], "gradient": [], "activation": []}
    for i in range(steps):
        for j, part in enumerate((0, 0.2, 0.4, 0.6, 0.8)):
            times.append((i + part) * long * US)
            held["weight"].append(1 << 30)
            held["gradient"].append((0, 0, 1 << 28, 1 << 29, 1 << 30)[j])
            held["activation"].append((0, 1 << 29, 1 << 30, 1 << 29, 0)[j])
    at_peak = {"weight": 1 << 30, "gradient": 1 << 28, "activation": 1 << 30}
    layer_names = [f"model.layers.{i}.mlp" for i in range(layers)]
    memory = MemoryUse(
        capacity_bytes=1 << 31 if over else 24 << 30,
        scope="a logical core",
        times_ps=tuple(times),
        bytes={k: tuple(v) for k, v in held.items()},
        peak_bytes=sum(at_peak.values()),
        peak_ps=times[2],
        at_peak=at_peak,
        holders=tuple(Holder("weight", name, "", (1 << 30) // layers) for name in layer_names),
    )
    given = {
        "chip": "trn2",
        "lnc": 2,
        "depth": "fast",
        "format": "bf16",
        "implementation": "kernel",
        "total_ps": steps * long * US,
        "unfused_ps": 1.25 * steps * long * US,
        "steps": tuple(StepTime("step", 0, i * long * US, long * US) for i in range(steps)),
        "regions": (regions,),
        "runs": (steps,),
        "fallbacks": (
            Fallback(
                "aten.cumsum.default", "device", steps, 40 * steps * US, "no kernel scans", "model.head", "model.py:9"
            ),
        ),
        "memory": memory,
    }
    return Report(**(given | changes))
