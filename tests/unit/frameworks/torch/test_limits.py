"""What the chip cannot do: errors that name module and operator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trnsim.torch
from trnsim.errors import HardwareError, UnsupportedError


class Named(nn.Module):
    """``inner`` runs as ``part``."""

    def __init__(self, inner):
        super().__init__()
        self.part = inner

    def forward(self, x):
        return self.part(x)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(function, depth="fast", inputs=(8, 16)):
    model = Named(Function(function))
    with trnsim.torch.device("trn2", depth=depth) as chip:
        model(torch.randn(inputs))
    return chip.report()


@pytest.mark.parametrize(
    ("function", "depth", "message"),
    [
        (lambda x: x @ x, "fast", r"part: aten.mm.default failed: mat1 and mat2 shapes"),
        (lambda x: x.double() + 1, "fast", r"part: aten.add.Tensor on float64.*float32"),
        (lambda x: torch.view_as_complex(x.view(8, 8, 2)) * 2, "fast", r"part: aten.mul.Tensor on complex64"),
        (lambda x: x[x > 0].sum(), "shape", r"part: aten.index.Tensor depends on data"),
        (lambda x: x if x.sum() > 0 else -x, "shape", r"part: aten._local_scalar_dense.default depends on data"),
        (lambda x: x.nonzero(), "shape", r"part: aten.nonzero.default depends on data"),
    ],
)
def test_errors_name_module_and_operator(function, depth, message):
    expected = UnsupportedError if "64" in message else trnsim.torch.OperatorError
    with pytest.raises(expected, match=message):
        run(function, depth)


def test_a_step_for_the_host_is_counted_and_priced():
    report = run(lambda x: x[x > 0].sum())
    (fallback,) = report.fallbacks
    assert (fallback.operator, fallback.place, fallback.count, fallback.module) == (
        "aten.index.Tensor",
        "host",
        1,
        "part",
    )
    assert fallback.time_ps > 100e6
    assert report.times("operator")["fallback aten.index.Tensor"] == fallback.time_ps
    assert "assumed" in report.times("support")


def test_an_operator_without_a_kernel_is_counted_and_priced():
    report = run(lambda x: torch.cumsum(x, 1).sort(dim=1).values * 2)
    assert {(f.operator, f.place) for f in report.fallbacks} == {
        ("aten.cumsum.default", "device"),
        ("aten.sort.default", "device"),
    }
    assert all(f.time_ps > 0 and f.reason for f in report.fallbacks)


def layers(width, count):
    return Named(nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count))))


def test_weights_larger_than_hbm():
    with pytest.raises(HardwareError, match=r"weights of 4.0 MiB do not fit into 2.5 MiB.*1.5 MiB too much.*part.2"):
        with trnsim.torch.device("trn2[hbm.capacity=10MiB]"):
            layers(512, 4)(torch.randn(1, 512))


def test_activations_larger_than_hbm():
    model = layers(512, 4)
    with pytest.raises(HardwareError, match=r"part\.\d: aten.mm.default does not fit into 12.0 MiB") as caught:
        with trnsim.torch.device("trn2[hbm.capacity=48MiB]") as chip, chip.step():
            model(torch.randn(2048, 512)).sum().backward()
    assert caught.value.value > caught.value.limit == 12 * 2**20


def test_without_data_what_does_not_fit_is_reported():
    model = layers(512, 4)
    with trnsim.torch.device("trn2[hbm.capacity=48MiB]", depth="shape") as chip, chip.step():
        model(torch.randn(2048, 512)).sum().backward()
    memory = chip.report().memory
    assert memory.over_bytes == memory.peak_bytes - memory.capacity_bytes > 0
    assert memory.scope == "2 of 8 cores of trn2[hbm.capacity=48MiB]"
