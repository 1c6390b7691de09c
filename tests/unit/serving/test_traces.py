"""Trace files: Mooncake's JSONL, Azure's CSV, plain CSV."""

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.serving import AffineCost, CacheSettings, Pool, ReplicaSettings, SchedulerSettings, simulate
from trnsim.serving.traces import read_trace

MOONCAKE = """\
{"timestamp": 27000, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30000, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2353]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""


def test_mooncake(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(MOONCAKE)
    load = read_trace(path)
    assert load.arrival_ps.tolist() == [0, 3 * 10**12]
    assert (load.input_tokens.tolist(), load.output_tokens.tolist()) == ([1100, 1030], [52, 26])
    assert load.prefix_keys == [[46, 47], [46, 47]]  # full blocks of 512
    assert read_trace(path, speed=3.0).arrival_ps.tolist() == [0, 10**12]
    assert len(read_trace(path, limit=1)) == 1
    spec = ReplicaSettings(
        cache=CacheSettings(capacity_bytes=10**6, elements_per_token=1, prefix_reuse=True),
        scheduler=SchedulerSettings(),
    )
    assert simulate(load, Pool(cost=AffineCost(fixed_ps=10), settings=spec)).cached_tokens.tolist() == [0, 1024]


def test_azure(tmp_path):
    path = tmp_path / "trace.csv"
    for text in (AZURE, AZURE.replace("00,4", "00+00:00,4").replace("00,3", "00+00:00,3")):
        path.write_text(text)
        load = read_trace(path)
        np.testing.assert_allclose(load.arrival_ps, [0, 52 * 10**9], atol=10**6)
        assert (load.input_tokens.tolist(), load.output_tokens.tolist()) == ([4808, 3180], [10, 8])


def test_plain_csv_is_sorted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("output_tokens,arrival_s,input_tokens\n5,2.5,10\n6,1,11\n")
    load = read_trace(path)
    assert load.arrival_ps.tolist() == [0, 1_500_000_000_000]
    assert load.output_tokens.tolist() == [6, 5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown columns"),
        ("a,b\n1,2\n", "unknown columns.*a, b.*ContextTokens"),
        ("arrival_s,input_tokens,output_tokens\n", "no requests"),
        ("arrival_s,input_tokens,output_tokens\n-1,3,4\n", r"trace:2: arrival_s: must be a time"),
        ("arrival_s,input_tokens,output_tokens\n1,3,4\n1,3.5,4\n", r"trace:3: input_tokens: must be a whole number"),
        ("arrival_s,input_tokens,output_tokens\n1,3\n", r"trace:2: output_tokens: missing"),
        (AZURE.replace("2023-11-16 18:17:04.0319600", "yesterday"), r"trace:3: TIMESTAMP"),
        (MOONCAKE + "{]", r"trace:3: not JSON"),
        (MOONCAKE.replace('"input_length": 1030', '"input_length": 0'), r"trace:2: input_length: must be"),
        (MOONCAKE.replace('"timestamp": 30000, ', ""), r"trace:2: timestamp: missing"),
        (MOONCAKE.replace("[46, 47, 2353]", '["a"]'), "hash_ids"),
    ],
)
def test_bad_traces(tmp_path, text, words):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_trace(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "none")
    with pytest.raises(InputError, match="speed"):
        read_trace(tmp_path / "none", speed=0)
