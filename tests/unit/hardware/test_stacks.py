"""Serving stacks of the catalogue and of users' files."""

import pytest

from trnsim.errors import InputError
from trnsim.hardware.stack import load_stack, stack_names


def test_catalogue():
    assert set(stack_names()) >= {"ideal", "vllm-gpu", "nxdi", "vllm-neuron"}
    for name in stack_names():
        stack = load_stack(name)
        assert stack.name == name
        for key, fact in stack.facts.items():
            assert fact.source, key
            # A value without a public source says so, and why it was chosen.
            assert (fact.source == "trnsim") == (fact.confidence == "assumed"), key
            assert fact.confidence != "assumed" or fact.why, key
    assert load_stack("neuronx-distributed-inference") is load_stack("NxDI")
    ideal = load_stack("ideal")
    assert (ideal.host_step_ps, ideal.launch_floor_ps, ideal.assumed) == (0, 0, ())
    assert load_stack("vllm-neuron").launch_floor_ps == 62_000_000
    assert "memory.reserve" in load_stack("nxdi").assumed


def test_memory_for_the_cache():
    ideal, neuron = load_stack("ideal"), load_stack("vllm-neuron")
    assert ideal.cache_bytes(100, 30, 5) == 70
    assert neuron.cache_bytes(1000, 100, 5) == 270  # 0.3 of 0.9, less than the 800 that are left
    assert neuron.cache_bytes(1000, 800, 5) == 100
    assert neuron.cache_bytes(1000, 950, 5) < 0
    # 0.9 of what two reserved GiB and the model leave.
    assert load_stack("trtllm").cache_bytes(12 * 2**30, 5 * 2**30, 0) == int(4.5 * 2**30)


def test_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "nxdi"\n[host]\nstep_time = "1 ms"\noverlap = "steady-decode"\n')
    mine, base = load_stack(path), load_stack("nxdi")
    assert (mine.name, mine.host_step_ps, mine.policy) == ("mine", 10**9, base.policy)
    assert mine.facts["host.step_time"].confidence == "what-if"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "unknown stack 'vlm-neuron'; did you mean 'vllm-neuron'"),
        ('base = "nxdi"\n[host]\nstep_time = 3\n', "host.step_time: must be text with a unit of time"),
        ('base = "nxdi"\n[host]\nfloor = "1 us"\n', "host.floor: unknown key"),
        ('base = "nxdi"\n[scheduler]\npolicy = "greedy"\n', "scheduler.policy: unknown value"),
        ('base = "nxdi"\n[shapes]\nprefill = "listed"\n', "shapes.prefill_sizes: goes with the rule 'listed'"),
        ('base = "nxdi"\n[shapes]\nprefill = "listed"\nprefill_sizes = [512, 256]\n', "must ascend"),
        ('name = "x"\ntitle = "x"\n', "host: missing"),
    ],
)
def test_bad_stacks(tmp_path, text, words):
    name = "vlm-neuron"
    if text is not None:
        name = tmp_path / "mine.toml"
        name.write_text(text)
    with pytest.raises(InputError, match=words):
        load_stack(name)
