"""Layouts of other tools become replicas that serve."""

import json

import pytest

from trnsim.errors import InputError
from trnsim.hardware.stack import load_stack
from trnsim.planner.exchange import ServingLayout, read_nxdi, read_vllm_arguments
from trnsim.planner.replica import settings_of
from trnsim.serving import AffineCost, Pool, closed_loop, lengths, simulate

SIZES = {"capacity_bytes": 10**6, "elements_per_token": 4}


def serves(settings, prompt=100, output=20):
    load = closed_loop(4, lengths(prompt, 12), lengths(output, 12))
    return simulate(load, Pool(cost=AffineCost(fixed_ps=1e9), settings=settings))


def test_nxdi(tmp_path):
    path = tmp_path / "neuron_config.json"
    config = {
        "seq_len": 2048,
        "max_context_length": 1024,
        "batch_size": 2,
        "enable_bucketing": True,
        "async_mode": True,
    }
    path.write_text(json.dumps(config | {"token_generation_buckets": [512]}))
    settings = settings_of(read_nxdi(path), load_stack("nxdi"), **SIZES)
    assert settings.cache.layout == "contiguous"
    assert settings.host.overlap == "steady-decode"
    assert settings.shapes.prefill == (128, 256, 512, 1024)
    assert (settings.shapes.decode_batch, settings.shapes.decode_context) == ((2,), (512, 2048))
    assert serves(settings).steps["decode_sequences"].max() == 2


def test_vllm():
    line = "vllm serve m --max-model-len 4096 --max-num-seqs 3 --block-size 32"
    line += " --num-gpu-blocks-override 50 --kv-cache-dtype fp8"
    settings = settings_of(read_vllm_arguments(line), load_stack("vllm-gpu"), **SIZES)
    assert settings.cache.units(4096) == 50
    assert settings.cache.bytes_per_token == 4
    assert settings.shapes.graphs == 0
    result = serves(settings)
    assert (result.cache_units, result.steps["decode_sequences"].max()) == ((50,), 3)
    neuron = settings_of(read_vllm_arguments(line), load_stack("vllm-neuron"), **SIZES)
    assert neuron.shapes.decode_batch == (1, 2, 3)


def test_speculation_needs_an_acceptance():
    layout = read_vllm_arguments(
        """vllm serve m --max-model-len 512 --speculative-config '{"num_speculative_tokens": 3}'"""
    )
    with pytest.raises(InputError, match="speculation needs an acceptance rate"):
        settings_of(layout, load_stack("ideal"), **SIZES)
    settings = settings_of(layout, load_stack("ideal"), acceptance=1.0, **SIZES)
    assert serves(settings, output=21).steps["output_tokens"].max() == 4 * 4
    with pytest.raises(InputError, match="max_model_len"):
        settings_of(ServingLayout(source="x"), load_stack("ideal"), **SIZES)
