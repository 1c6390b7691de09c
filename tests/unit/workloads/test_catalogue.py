"""Shipped models against transformers and published counts; names; configs that do not hold."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from reference import count

from trnsim.errors import InputError, UnsupportedError
from trnsim.workloads import build, entry, load_model, model_names
from trnsim.workloads.catalogue import weight_formats

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.mark.parametrize("name", model_names())
def test_parameters_equal_those_of_transformers(name):
    assert load_model(name).parameters == count(entry(name).config)


@pytest.mark.parametrize("name", [n for n in model_names() if entry(n).published])
def test_published_counts(name):
    model, published = load_model(name), entry(name).published
    # Counts of weight files are exact; cards round to two digits, and some count vision or multi-token prediction.
    tolerance = 0 if "safetensors" in published["source"] and published["parameters"] % 10**7 else 0.1
    assert abs(model.parameters - published["parameters"]) <= tolerance * published["parameters"]
    if "active" in published and model.mixture:
        # Some cards leave out the embedding, some round down.
        low = model.active_parameters - model.embedding_parameters
        assert low * 0.8 <= published["active"] <= model.active_parameters * 1.05


@pytest.mark.parametrize("name", model_names())
def test_every_model_says_where_it_is_from(name):
    about = entry(name)
    assert about.title
    assert about.source
    assert about.date[:2] == "20"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("meta-llama/Llama-3.1-70B", "llama-3.1-70b"),
        ("LLAMA3_70B (Pre-Training)", "llama-3.1-70b"),
        ("Llama-3.3-70B-Instruct + Llama-3.2-1B draft", "llama-3.1-70b"),
        ("llama2-70b-99.9", "llama-2-70b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-v3"),
        ("Qwen3_235B_a22B (tokendrop) (Pre-Training)", "qwen3-235b-a22b"),
        ("GPT OSS 120B (Pre-Training)", "gpt-oss-120b"),
        ("HuggingFace BERT-Large Ph1 pre-training", "bert-large"),
        ("Trinity (Arcee) Nano (6B/1B active)", "trinity-nano"),
        ("gpt3-175B", "gpt-3-175b"),
    ],
)
def test_published_names(spelling, name):
    assert entry(spelling).name == name


def test_layers_and_hidden_tell_models_of_one_name_apart():
    with pytest.raises(InputError, match=r"megatron-gpt-1\.7b .*megatron-core-gpt-1\.7b"):
        load_model("GPT 1.7B")
    assert load_model("GPT 1.7B", layers=24, hidden=2304).name == "megatron-gpt-1.7b"
    assert load_model("GPT 1.7B", layers=24, hidden=2048).name == "megatron-core-gpt-1.7b"


def test_a_proxy_has_fewer_layers():
    proxy, whole = load_model("Grok-1 314B (4-layer proxy)", layers=4), load_model("grok-1")
    assert len(proxy.layers) == 4
    assert whole.parameters - proxy.parameters == 60 * whole.layers[0].parameters
    with pytest.raises(InputError, match="cannot have 200 layers"):
        load_model("grok-1", layers=200)


@pytest.mark.parametrize("data", ["training.csv", "inference.csv"])
def test_every_name_in_the_tables_resolves_or_says_why(data):
    folder = os.environ.get("TRNSIM_DATA")
    if not folder or not (Path(folder) / data).exists():
        pytest.skip("TRNSIM_DATA names no folder of published facts")
    with (Path(folder) / data).open(newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = set()
    for row in rows:
        try:
            load_model(row["model"], *(int(row[c]) if row.get(c) else None for c in ("layers", "hidden")))
        except UnsupportedError:
            continue
        except InputError as error:
            unknown.add(str(error))
    assert not unknown


# Printed by the runs themselves: tokens and TFLOPS a second of a chip, model FLOPs without recomputation.
PRINTED = {
    "LLAMA3_70B (Pre-Training)",
    "LLAMA3_70B (SFT)",
    "LLAMA3_8B (Pre-Training)",
    "LLAMA3.1_405B (Pre-Training)",
} | {
    "Qwen3_30B_a3B (Pre-Training)",
    "Qwen3_235B_a22B (Pre-Training)",
    "DeepSeekV3 (w/o MTP) (Pre-Training)",
    "DeepSeekV3 (w/ MTP) (Pre-Training)",
    "DeepSeekV3 (Pre-Training)",
}


def test_model_flops_are_those_that_published_runs_print():
    folder = os.environ.get("TRNSIM_DATA")
    if not folder or not (Path(folder) / "training.csv").exists():
        pytest.skip("TRNSIM_DATA names no folder of published facts")
    with (Path(folder) / "training.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"] in PRINTED and "Megatron-Bridge" in r["source"]]
    assert len(rows) > 50
    for row in rows:
        model, sequence = load_model(row["model"]), int(row["seq_len"])
        # DeepSeek's runs train multi-token prediction unless they say otherwise.
        further = int(model.next_token > 0 and "w/o" not in row["model"])
        printed = float(row["model_tflops_per_chip"]) * 1e12 / float(row["tokens_per_s_per_chip"])
        # Rates are printed with three to four digits.
        assert model.training_flops(sequence, further) / sequence == pytest.approx(printed, rel=0.015), row["id"]


def test_a_config_file_works(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert load_model(path).parameters == load_model(str(tmp_path)).parameters == build(LLAMA, "small").parameters


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_field_is_named(field):
    with pytest.raises(InputError, match=f"has no field '{field}'"):
        build({name: value for name, value in LLAMA.items() if name != field}, "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "unknown architecture 'lama'; the nearest known: llama"),
        ({"model_type": None}, "no field 'model_type'"),
        ({"num_key_value_heads": 3}, "num_attention_heads is no multiple of num_key_value_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size is no multiple"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 1 entries for 2 layers"),
        ({"layer_types": ["sliding_attention"] * 2}, "has no field 'sliding_window'"),
    ],
)
def test_impossible_fields(change, message):
    with pytest.raises(InputError, match=message):
        build(LLAMA | change, "small")


@pytest.mark.parametrize(("content", "message"), [("[1]", "no JSON object"), ("{", "is no JSON")])
def test_files_that_are_no_config(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_missing_files_and_unknown_names():
    with pytest.raises(InputError, match="No such file"):
        load_model("nowhere/config.json")
    with pytest.raises(InputError, match="the nearest: llama-3"):
        load_model("llma-3.1-70b")


def test_models_that_are_out_of_reach_say_why():
    with pytest.raises(UnsupportedError, match="feed-forward"):
        load_model("Carbon-3B")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"default": "bfloat16"}),
        ({"torch_dtype": "float16"}, {"default": "float16"}),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {"default": "bfloat16", "experts": "mxfp4"}),
        (
            {"quantization_config": {"quant_method": "fp8"}, "expert_dtype": "fp4"},
            {"default": "fp8", "embedding": "bfloat16", "head": "bfloat16", "router": "bfloat16", "experts": "mxfp4"},
        ),
    ],
)
def test_formats_of_stored_weights(fields, expected):
    assert weight_formats(LLAMA | fields) == expected


def test_unknown_formats_are_refused():
    with pytest.raises(UnsupportedError, match="'gptq'"):
        weight_formats({"quantization_config": {"quant_method": "gptq"}})
