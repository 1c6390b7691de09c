"""What is recorded of calls: values, storages, phases, modules, and which gradient a call computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trnsim.torch
from trnsim.errors import InputError


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.into = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width)
        self.out = nn.Linear(width, 8)

    def forward(self, x):
        return self.out(self.norm(torch.relu(self.into(x))))


def trained(steps, depth="fast"):
    torch.manual_seed(0)
    with trnsim.torch.device("trn2", depth=depth) as chip:
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        inputs, targets = torch.randn(16, 32), torch.randint(0, 8, (16,))
        for _ in range(steps):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return chip


def test_equal_steps_share_a_graph():
    chip = trained(5)
    stream = chip.capture.stream
    steps = [step.graph for step in stream.steps if step.name != "setup"]
    assert len(steps) == 5
    assert len(set(steps[1:])) == 1  # the first one makes the optimiser's states
    assert stream.calls == stream.clock


@pytest.mark.parametrize("depth", ["fast", "shape"])
def test_calls_know_module_phase_and_origin(depth):
    chip = trained(2, depth)
    calls = chip.capture.stream.graphs[-1].calls
    products = [call for call in calls if call.name in ("mm", "addmm")]
    assert [call.module for call in products if call.phase == "forward"] == ["into", "out"]
    for call in products:
        if call.phase == "backward":
            origin = calls[call.origin]
            assert origin.name == "addmm"
            assert origin.module == call.module
    updates = [call for call in calls if call.phase == "optimizer"]
    assert {v.kind for call in updates for v in call.outputs if v.shape} == {"weight", "optimizer", "activation"}
    assert all(call.line.split(":")[0].endswith("test_stream.py") for call in calls)


def test_streams_of_all_depths_are_the_same():
    streams = []
    for depth in ("fast", "exact", "shape"):
        graph = trained(2, depth).capture.stream.graphs[-1]
        streams.append([(c.operator, c.module, c.phase, c.origin, [v.shape for v in c.inputs]) for c in graph.calls])
    assert streams[0] == streams[1] == streams[2]


def test_in_place_changes_are_new_values_of_one_storage():
    with trnsim.torch.device("trn2") as chip, chip.step():
        x = torch.rand(4, 4)
        y = x * 2
        y.add_(1)
        y[0].mul_(3)
        z = y + x
    doubled, added, scaled, total = [c for c in chip.capture.stream.graphs[0].calls if c.name != "rand"]
    assert z.shape == (4, 4)
    assert {v.storage.id for v in (*doubled.outputs, *added.outputs, *scaled.outputs)} == {
        doubled.outputs[0].storage.id
    }
    assert [v.producer for v in total.inputs] == [scaled.index, 0]
    assert doubled.outputs[0].root != added.outputs[0].root


def test_views_are_no_calls():
    with trnsim.torch.device("trn2") as chip, chip.step():
        x = torch.rand(4, 6)
        (x.t().reshape(4, 6)[:, 0] + 1).view(2, 2).t()
    assert [c.name for c in chip.capture.stream.graphs[0].calls if c.name != "rand"] == ["clone", "add"]


def test_steps_of_the_user():
    model = Net()
    with trnsim.torch.device("trn2") as chip:
        for name in ("a", "b"):
            with chip.step(name):
                model(torch.rand(2, 32))
    report = chip.report()
    assert [step.name for step in report.steps] == ["a", "b"]
    assert report.steps[1].start_ps == report.steps[0].time_ps
    assert chip.elapsed_ps == pytest.approx(report.total_ps)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"depth": "deep"}, "no depth"),
        ({"format": "int4"}, "no format"),
        ({"lnc": 4}, "no logical cores"),
        ({"over": "ignore"}, "no 'ignore'"),
        ({"implementation": "cuda"}, "no implementation"),
    ],
)
def test_wrong_options_are_named(options, what):
    with pytest.raises(InputError, match=what):
        with trnsim.torch.device("trn2", **options) as chip:
            torch.rand(4) + 1
        chip.report()


def test_a_gpu_is_no_device():
    with pytest.raises(InputError, match="no NeuronCore"):
        trnsim.torch.device("h100")
