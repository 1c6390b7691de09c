"""Stacks of the catalogue as settings of a replica."""

import doctest

import numpy as np
import pytest

import trnsim.serving
from trnsim.errors import InputError
from trnsim.hardware.stack import load_stack, stack_names
from trnsim.serving import AffineCost, Pool, closed_loop, lengths, simulate
from trnsim.serving.profile import replica_settings

SIZES = {"max_model_len": 4096, "capacity_bytes": 2 * 65536, "elements_per_token": 1}


@pytest.mark.parametrize(
    ("name", "prefill", "batch", "context", "graphs"),
    [
        ("ideal", (), (), (), 0),
        ("vllm-gpu", (), (), (), 0),
        ("nxdi", (128, 256, 512, 1024, 2048, 4096), (4,), (128, 256, 512, 1024, 2048, 4096), 12),
        ("vllm-neuron", (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8), (4096,), 10),
    ],
)
def test_compiled_sizes(name, prefill, batch, context, graphs):
    shapes = replica_settings(load_stack(name), **SIZES).shapes
    assert (shapes.prefill, shapes.decode_batch, shapes.decode_context, shapes.graphs) == (
        prefill,
        batch,
        context,
        graphs,
    )


@pytest.mark.parametrize("name", stack_names())
def test_every_stack_serves(name):
    cost = AffineCost(fixed_ps=5e9, per_token_ps=2e7, per_context_ps=2e4)
    load = closed_loop(8, lengths(500, 40, spread=0.5), lengths(100, 40, spread=0.5, seed=1))
    spec = replica_settings(load_stack(name), **SIZES)
    result = simulate(load, Pool(cost=cost, settings=spec))
    ideal = simulate(load, Pool(cost=cost, settings=replica_settings(load_stack("ideal"), **SIZES)))
    assert result.output_tokens_per_second <= ideal.output_tokens_per_second
    if name == "nxdi":
        # 65536 tokens of cache are 16 slots, but the batch is 4.
        assert result.steps["decode_sequences"].max() == 4


def test_nxdi_pads_and_waits_by_hand():
    cost = AffineCost(fixed_ps=0, per_token_ps=1e6, per_context_ps=10)
    spec = replica_settings(load_stack("nxdi"), **SIZES)
    result = simulate(closed_loop(1, lengths(100, 1), lengths(3, 1)), Pool(cost=cost, settings=spec))
    overhead = 437_000_000 + 62_000_000
    # Prompt of 100 in a bucket of 128; four sequences of 128 tokens of context, one token each.
    expected = [128_000_000 + overhead, *[4_000_000 + 4 * 128 * 10 + overhead] * 2]
    np.testing.assert_array_equal(result.steps["end_ps"] - result.steps["start_ps"], expected)


def test_listed_sizes(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "nxdi"\n[shapes]\nprefill = "listed"\nprefill_sizes = [512, 1024]\n')
    assert replica_settings(load_stack(path), **SIZES).shapes.prefill == (512, 1024, 4096)
    with pytest.raises(InputError, match="prefill_sizes: larger than is ever needed"):
        replica_settings(load_stack(path), **(SIZES | {"max_model_len": 600}))


def test_the_example_of_the_package():
    assert doctest.testmod(trnsim.serving).failed == 0
