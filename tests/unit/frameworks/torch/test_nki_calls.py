"""Kernels of the user inside models: numbers, time, gradients and errors, in each depth."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import trnsim  # noqa: E402
from trnsim import nki  # noqa: E402
from trnsim import torch as chips  # noqa: E402
from trnsim.errors import HardwareError, InputError, UnsupportedError  # noqa: E402
from trnsim.nki import isa as nisa  # noqa: E402
from trnsim.nki import language as nl  # noqa: E402


@nki.jit
def scaled_sum(x, y, factor=2.0):
    """factor * (x + y) of matrices, 128 rows at a time."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, x.shape[0], 128):
        rows = min(128, x.shape[0] - first)
        tiles = [nl.ndarray((rows, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf) for _ in range(2)]
        for tile, source in zip(tiles, (x, y), strict=True):
            nisa.dma_copy(dst=tile, src=source[first : first + rows, :])
        nisa.tensor_tensor(dst=tiles[0], data1=tiles[0], data2=tiles[1], op=nl.add)
        nisa.tensor_scalar(dst=tiles[0], data=tiles[0], op0=nl.multiply, operand0=factor)
        nisa.dma_copy(dst=out[first : first + rows, :], src=tiles[0])
    return out


@nki.jit
def halves(x):
    """The rows of x in two tensors."""
    results = []
    for part in range(2):
        out = nl.ndarray((64, x.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x[64 * part : 64 * part + 64, :])
        results.append(out)
    return tuple(results)


@nki.jit
def doubled(x):
    """x, changed in place."""
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=x, src=tile)
    return x


@nki.jit
def too_tall(x):
    tile = nl.ndarray((256, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    return x


@nki.jit
def particular(x):
    assert x.shape[0] == 1, "one row is enough"
    return x


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return scaled_sum(x, y)

    @staticmethod
    def backward(ctx, gradient):
        both = scaled_sum(gradient.contiguous(), torch.zeros_like(gradient))
        return both, both


class Net(torch.nn.Module):
    def __init__(self, function=Scaled.apply):
        super().__init__()
        self.left, self.right = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.function = function

    def forward(self, x):
        return self.function(self.left(x), self.right(x))


class Calls(torch.nn.Module):
    """A kernel as a module."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, *args):
        return self.kernel(*args)


def made(function=Scaled.apply):
    torch.manual_seed(0)
    return Net(function), torch.randn(200, 32)


def kernels(chip):
    return [c for g in chip.capture.stream.graphs for c in g.calls if c.operator.startswith("nki.")]


@pytest.mark.parametrize("depth", ["fast", "exact"])
def test_a_kernel_in_a_model_trains(depth):
    net, x = made()
    right, _ = made(lambda a, b: 2 * (a + b))
    with chips.device("trn2", depth=depth, format="float32"):
        y = net(x)
        y.square().mean().backward()
    expected = right(x)
    expected.square().mean().backward()
    torch.testing.assert_close(y, expected)
    for one, other in zip(net.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_time_is_that_of_the_kernel_in_every_depth():
    with trnsim.Session(trnsim.SimulationOptions(chip="trn2", numeric=False)).active() as session:
        scaled_sum(*[trnsim.session.ShapeOnly((200, 32), trnsim.session.as_dtype("float32"))] * 2)
    alone = session.calls[0].timeline.total_ps
    totals = set()
    for depth in ("fast", "exact", "shape"):
        with chips.device("trn2", depth=depth) as chip:
            net, x = made()
            net(x).sum().backward()
        forward, backward = kernels(chip)
        assert forward.operator == backward.operator == "nki.scaled_sum"
        assert (forward.phase, backward.phase) == ("forward", "backward")
        assert [v.shape for v in forward.inputs + forward.outputs] == [(200, 32)] * 3
        assert forward.cost.time_ps == backward.cost.time_ps == alone
        assert forward.cost.busy_ps["vector"] > 0
        report = chip.report()
        assert report.times("operator")["nki.scaled_sum"] == pytest.approx(2 * alone)
        assert [r.aten for r, _ in report.every_region() if "nki.scaled_sum" in r.aten] == [("nki.scaled_sum",)] * 2
        totals.add(report.total_ps)
    assert len(totals) == 1
    assert next(iter(totals)) > 2 * alone


def test_several_results_and_arguments_changed_in_place():
    x = torch.randn(128, 16)
    for depth in ("fast", "shape"):
        with chips.device("trn2", depth=depth):
            data = torch.zeros(128, 16) if depth == "shape" else x
            first, second = halves(data)
            assert first.shape == second.shape == (64, 16)
        if depth == "fast":
            assert torch.equal(torch.cat([first, second]), x)
    weight = torch.randn(16, 16)
    before = weight.clone()
    with chips.device("trn2"), torch.no_grad():
        one = torch.eye(16) @ weight
        doubled(weight)
        two = torch.eye(16) @ weight
    assert torch.equal(weight, 2 * before)
    assert torch.equal(two, 2 * one), "the rounded weight is an old one"


@pytest.mark.parametrize("depth", ["fast", "shape"])
@pytest.mark.parametrize(
    ("kernel", "rows", "error", "message"),
    [
        (too_tall, 256, HardwareError, r"^layer: kernel too_tall: partition size 256 exceeds 128"),
        (particular, 2, InputError, r"^layer: kernel particular: one row is enough"),
        (scaled_sum[2], 2, InputError, r"^layer: kernel scaled_sum is launched on 2 cores"),
    ],
)
def test_errors_name_module_kernel_and_limit(depth, kernel, rows, error, message):
    with chips.device("trn2", depth=depth, lnc=1):
        net = torch.nn.Sequential()
        net.add_module("layer", Calls(kernel))
        with pytest.raises(error, match=message):
            net(torch.zeros(rows, 16))


def test_a_kernel_has_no_gradient_of_its_own():
    with chips.device("trn2"):
        x = torch.ones(8, 8, requires_grad=True)
        y = scaled_sum(x, x)
        with pytest.raises(UnsupportedError, match=r"kernel scaled_sum has no gradient.*autograd\.Function"):
            y.sum().backward()


def test_outside_of_a_chip_kernels_run_as_ever():
    x = torch.ones(8, 8)
    assert torch.equal(scaled_sum(x, x), torch.full((8, 8), 4.0))


@pytest.mark.filterwarnings("ignore")  # Dynamo warns of what it does itself
def test_compiled_models_end_graphs_at_kernels():
    net, x = made()
    right, _ = made(lambda a, b: 2 * (a + b))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with chips.device("trn2", format="float32") as chip:
        net.compile(backend=backend)
        y = net(x)
    torch.testing.assert_close(y, right(x))
    assert len(kernels(chip)) == 1
    assert graphs


@pytest.mark.filterwarnings("ignore")  # Dynamo warns of what it does itself
def test_compiled_models_without_a_chip_run_kernels_on_the_default_one():
    net, x = made()
    right, _ = made(lambda a, b: 2 * (a + b))
    chip = chips.default_chip(chip="trn3", format="float32")
    net.compile(backend="trnsim")
    y = net(x)
    y.sum().backward()
    torch.testing.assert_close(y, right(x))
    chip.report()
    called = kernels(chip)
    assert [c.operator for c in called] == ["nki.scaled_sum"] * 2
    assert [c.phase for c in called] == ["forward", "backward"]
