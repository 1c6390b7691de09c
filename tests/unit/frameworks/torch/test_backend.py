"""Graphs of ``torch.compile`` beside dispatch: the same numbers, the same regions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import trnsim.torch
from trnsim.errors import InputError
from trnsim.frameworks.torch import settings

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.compile's own


class Block(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = (nn.Linear(*sides, bias=False) for sides in ((64, 96), (64, 96), (96, 64)))

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(64, 11)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(settings, "_default", None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 64, generator=generator), torch.randint(0, 11, (16,), generator=generator)


def kinds(report, graph):
    """Regions with a kernel of their own; element-wise work is cut otherwise where autograd adds gradients up."""
    return sorted(
        (r.kind, r.phase, r.module)
        for r in report.regions[graph]
        if r.kind not in ("elementwise", "elementwise_backward")
    )


def train(model, optimizer, inputs, targets):
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def losses(compiled, steps=3):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs, targets = batch()
    step = trnsim.torch.step(lambda: train(model, optimizer, inputs, targets), compiled=compiled, format="float32")
    return [float(step()) for _ in range(steps)], step.report()


def test_a_step_as_graphs_is_the_step_by_dispatch():
    (graphs, compiled), (calls, dispatched) = losses(True), losses(False)
    assert graphs == pytest.approx(calls, rel=1e-4)  # sums in another order, three updates long
    assert graphs[-1] < graphs[0]
    assert len(compiled.steps) == len(dispatched.steps) == 3
    ours, theirs = (r.times("phase") for r in (compiled, dispatched))
    assert set(ours) == {"forward", "backward", "optimizer"}
    assert kinds(compiled, compiled.steps[-1].graph) == kinds(dispatched, dispatched.steps[-1].graph)
    for phase, time in theirs.items():
        assert ours[phase] == pytest.approx(time, rel=0.1), phase


def test_an_unmodified_script_runs_on_the_default_chip(monkeypatch):
    monkeypatch.setenv("TRNSIM_CHIP", "trn1")
    model, (inputs, targets) = Model(), batch()
    expected = model(inputs)
    compiled = torch.compile(model, backend="trnsim")
    for _ in range(2):
        result = compiled(inputs)
        nn.functional.cross_entropy(result, targets).backward()
    assert torch.allclose(result, expected, rtol=2e-2, atol=2e-2)
    report = trnsim.torch.report()
    assert (report.chip, report.depth, report.format) == ("trn1", "fast", "bf16")
    assert len(report.steps) == 2
    assert report.steps[0].graph == report.steps[1].graph
    assert {"layers.0", "layers.1", "head"} <= set(report.times("module", 2))
    assert {"forward", "backward"} == set(report.times("phase"))


def test_options_of_the_backend_are_those_of_the_device():
    compiled = torch.compile(Model(), backend="trnsim", options={"chip": "trn3", "format": "float32"})
    with torch.no_grad():
        for _ in range(3):
            compiled(batch()[0])
    report = trnsim.torch.report()
    assert (report.chip, report.format, len(report.steps)) == ("trn3", "float32", 3)
    with pytest.raises(InputError, match=r"torch\.compile run with data"):
        settings.default_chip(depth="shape")


def test_inside_a_device_graphs_run_on_it():
    model, (inputs, _) = Model(), batch()
    compiled = torch.compile(model, backend="trnsim")
    with trnsim.torch.device("trn2") as chip, chip.step(), torch.no_grad():
        compiled(inputs)
    with trnsim.torch.device("trn2") as other, other.step(), torch.no_grad():
        model(inputs)
    ours, theirs = chip.report(), other.report()
    assert kinds(ours, 0) == kinds(theirs, 0)
    assert ours.total_ps == pytest.approx(theirs.total_ps)


def test_a_step_without_data():
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    inputs, targets = batch()
    step = trnsim.torch.step(lambda: train(model, optimizer, inputs, targets), depth="shape")
    for _ in range(2):
        step()
    assert [s.time_ps > 0 for s in step.report().steps] == [True, True]


def test_a_script_that_imports_nothing_of_ours_finds_the_entry_point(tmp_path):
    """As an installed package: its entry point is found, and does not meet the name that an import registers."""
    info = tmp_path / "trnsim-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trnsim\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[torch_dynamo_backends]\ntrnsim = trnsim.frameworks.torch.backend:trnsim\n")
    script = (
        "import torch\n"
        "compiled = torch.compile(torch.nn.Linear(8, 4), backend='trnsim')\n"
        "assert compiled(torch.ones(2, 8)).shape == (2, 4)\n"
        "import trnsim.torch\n"
        "assert trnsim.torch.report().total_ps > 0\n"
    )
    source = str(Path(trnsim.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), source))}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
