"""Files of other tools: what they say, what is left unread, and which key is wrong."""

import json

import pytest

from trnsim.errors import InputError
from trnsim.planner.benchmarks import read_guidellm, read_vllm_bench
from trnsim.planner.exchange import ServingLayout, read_nxdi, read_training_yaml, read_vllm_arguments

NXDI = {
    "tp_degree": 32,
    "batch_size": 4,
    "seq_len": 2048,
    "max_context_length": 1024,
    "torch_dtype": "torch.bfloat16",
    "logical_nc_config": 2,
    "enable_bucketing": True,
    "token_generation_buckets": [2048, 512],
    "is_continuous_batching": True,
    "kv_cache_quant": True,
    "speculation_length": 0,
    "pa_num_blocks": None,
}


@pytest.fixture
def file(tmp_path):
    def write(content, name="file"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: {"neuron_config": c, "hidden_size": 8192, "_name_or_path": "m"}]
)
def test_nxdi(file, wrap):
    found = read_nxdi(file(wrap(NXDI)))
    assert (found.tensor, found.lnc, found.ranks) == (32, 2, 32)
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.max_model_len) == (4, 1024, 2048)
    assert found.prefill_buckets == (128, 256, 512, 1024)
    assert (found.decode_batch_buckets, found.decode_context_buckets) == ((4,), (512, 2048))
    assert (found.dtype, found.cache_dtype, found.paged, found.asynchronous) == (
        "bfloat16",
        "float8_e4m3fn",
        False,
        False,
    )
    assert found.unread == ("is_continuous_batching",)


def test_nxdi_without_buckets(file):
    found = read_nxdi(file({"seq_len": 640}))
    assert (found.prefill_buckets, found.decode_context_buckets, found.max_num_seqs) == ((640,), (640,), 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seq_len": None}, "seq_len: missing"),
        ({"tp_degree": "many"}, "tp_degree: must be a whole number"),
        ({"tp_degree": 0}, "tp_degree: must be 1 or more"),
        ({"enable_bucketing": 1}, "enable_bucketing: must be true or false"),
        ({"token_generation_buckets": [0]}, "token_generation_buckets: must be a list"),
        ({"max_context_length": 4096}, "max_context_length: must not be more than seq_len 2048"),
    ],
)
def test_bad_nxdi(file, change, words):
    with pytest.raises(InputError, match=words):
        read_nxdi(file(NXDI | change))


def test_vllm_arguments():
    found = read_vllm_arguments(
        "vllm serve meta-llama/Llama-3.3-70B-Instruct -tp 8 --pipeline_parallel_size=2 --max-model-len 8k"
        " --max-num-seqs 64 --max-num-batched-tokens 2048 --gpu-memory-utilization 0.92 --kv-cache-dtype fp8"
        " --no-enable-prefix-caching --dtype auto --port 8000 --disable-log-requests"
        """ --speculative-config '{"method": "eagle3", "num_speculative_tokens": 3}'"""
    )
    assert found == ServingLayout(
        source="vllm arguments",
        model="meta-llama/Llama-3.3-70B-Instruct",
        tensor=8,
        pipeline=2,
        max_model_len=8000,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        memory_utilization=0.92,
        cache_dtype="float8_e4m3fn",
        paged=True,
        prefix_reuse=False,
        speculation_length=3,
        unread=("--port", "--disable-log-requests"),
    )
    assert found.ranks == 16
    moe = read_vllm_arguments(["--model", "m", "-tp", "4", "-dp", "2", "--enable-expert-parallel"])
    assert (moe.model, moe.expert, moe.ranks) == ("m", 8, 8)


def test_vllm_neuron_arguments():
    config = {"num_batched_tokens_buckets": [256, 1024], "num_seqs_buckets": [1, 8], "fancy": 1}
    found = read_vllm_arguments(["serve", "m", "--additional-config", json.dumps({"neuron_config": config})])
    assert (found.prefill_buckets, found.decode_batch_buckets) == ((256, 1024), (1, 8))
    assert found.unread == ("neuron_config.fancy",)
    older = read_vllm_arguments(["serve", "m", "--override-neuron-config", json.dumps({"pa_block_size": 32})])
    assert older.block_tokens == 32


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vllm serve m --tensor-parallel-size eight", "--tensor-parallel-size: must be a whole number"),
        ("vllm serve m --tensor-parallel-size", "--tensor-parallel-size: missing"),
        ("vllm serve m --max-num-seqs -1", "--max-num-seqs: must be 1 or more"),
        ("vllm serve m --gpu-memory-utilization 1.5", "--gpu-memory-utilization: must be a number above 0"),
        ("vllm serve m --additional-config {", "--additional-config: not JSON"),
        ("vllm serve m extra", "extra: not an option"),
        ("vllm serve m --enable-prefix-caching yes", "--enable-prefix-caching: takes no value"),
    ],
)
def test_bad_vllm_arguments(line, words):
    with pytest.raises(InputError, match=words):
        read_vllm_arguments(line)


NEMO = """
trainer: {devices: 8, num_nodes: 4, precision: bf16}
model:
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 2
  virtual_pipeline_model_parallel_size: 5
  context_parallel_size: 1
  sequence_parallel: true
  micro_batch_size: 1
  global_batch_size: 128
  encoder_seq_length: 4096
  activations_checkpoint_granularity: selective
  ub_tp_comm_parallel: true
  optim: {name: distributed_fused_adam}
"""
NXDT = """
trainer: {devices: 32, num_nodes: 1}
data: {micro_batch_size: 1, global_batch_size: 64, seq_length: 8192}
distributed_strategy:
  tensor_model_parallel_size: 8
  pipeline_model_parallel_size: 1
  virtual_pipeline_model_parallel_size: null
  zero1: true
  sequence_parallel: true
model: {encoder_seq_length: 8192}
"""
MEGATRON = """
model_parallel: {tensor_model_parallel_size: 8, pipeline_model_parallel_size: 4, expert_model_parallel_size: 2}
micro_batch_size: 2
global_batch_size: 512
seq_length: 2048
recompute_granularity: full
"""


def test_training_layouts(file):
    pytest.importorskip("yaml")
    nemo = read_training_yaml(file(NEMO))
    assert (nemo.tensor, nemo.pipeline, nemo.chunks, nemo.data, nemo.microbatches) == (4, 2, 5, 4, 32)
    assert (nemo.zero, nemo.recompute, nemo.sequence_parallel, nemo.precision) == (1, "selective", True, "bf16")
    assert nemo.unread == ("model.ub_tp_comm_parallel",)
    nxdt = read_training_yaml(file(NXDT))
    assert (nxdt.tensor, nxdt.data, nxdt.zero, nxdt.sequence_length, nxdt.chunks) == (8, 4, 1, 8192, 1)
    megatron = read_training_yaml(file(MEGATRON))
    assert (megatron.expert, megatron.data, megatron.recompute, megatron.microbatches) == (2, None, "full", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NEMO.replace("devices: 8", "devices: 7"), "does not divide the devices.*8.*28"),
        (NEMO.replace("128", "127"), "global_batch_size: not a multiple.*127.*1 x 4"),
        (NEMO.replace("size: 4\n", "size: four\n", 1), "model.tensor_model_parallel_size: must be a whole number"),
        (NEMO.replace("4096", "${data.seq_length}"), "model.encoder_seq_length: an interpolation"),
        (NXDT.replace("encoder_seq_length: 8192", "encoder_seq_length: 4096"), "contradicts data.seq_length"),
        (MEGATRON.replace("full", "some"), "recompute_granularity: must be selective or full"),
        ("trainer: {devices: 8}\n", "tensor_model_parallel_size: missing"),
        ("- 1\n", "must be a table"),
        ("a: [\n", "not a YAML file"),
    ],
)
def test_bad_training_layouts(file, text, words):
    pytest.importorskip("yaml")
    with pytest.raises(InputError, match=words):
        read_training_yaml(file(text))


VLLM_BENCH = {
    "model_id": "Qwen/Qwen3-8B",
    "num_prompts": 4,
    "request_rate": "inf",
    "max_concurrency": 2,
    "duration": 10.0,
    "completed": 4,
    "total_input_tokens": 288,
    "total_output_tokens": 64,
    "request_throughput": 0.4,
    "output_throughput": 6.4,
    "mean_ttft_ms": 20.0,
    "p99_ttft_ms": 30.0,
    "mean_tpot_ms": 10.5,
    "std_itl_ms": 2.5,
    "median_e2el_ms": 189.0,
}


def test_vllm_bench(file):
    found = read_vllm_bench(file(VLLM_BENCH))
    assert (found.model, found.requests, found.concurrency, found.rate) == ("Qwen/Qwen3-8B", 4, 2, None)
    assert (found.ttft, found.tpot) == ({"mean": 0.02, "p99": 0.03}, {"mean": 0.0105})
    assert (found.itl, found.e2e) == ({"std": 0.0025}, {"median": 0.189})
    opened = read_vllm_bench(file(VLLM_BENCH | {"max_concurrency": None}))
    assert (opened.concurrency, opened.rate) == (None, float("inf"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"duration": None}, "duration: missing"),
        ({"mean_ttft_ms": None, "p99_ttft_ms": None}, "mean_ttft_ms: missing"),
        ({"output_throughput": "fast"}, "output_throughput: must be a number"),
        ({"request_rate": "soon"}, "request_rate: must be a number or inf"),
    ],
)
def test_bad_vllm_bench(file, change, words):
    with pytest.raises(InputError, match=words):
        read_vllm_bench(file(VLLM_BENCH | change))


def _guidellm():
    def mean(value):
        return {"successful": {"mean": value, "median": value, "percentiles": {"p50": value, "p99": 2 * value}}}

    metrics = {
        "request_totals": {"successful": 95, "errored": 5},
        "requests_per_second": mean(1.5),
        "output_tokens_per_second": mean(150.0),
        "time_to_first_token_ms": mean(100.0),
        "inter_token_latency_ms": mean(10.0),
        "request_latency": mean(2.0),
    }
    strategy = {"type_": "concurrent", "streams": 8}
    return {"benchmarks": [{"duration": 60.0, "config": {"strategy": strategy}, "metrics": metrics}]}


def test_guidellm(file):
    (found,) = read_guidellm(file(_guidellm()))
    assert (found.requests, found.concurrency, found.duration) == (95, 8, 60)
    assert found.ttft == {"mean": 0.1, "median": 0.1, "p50": 0.1, "p99": 0.2}
    assert (found.tpot["mean"], found.e2e["mean"], found.output_tokens_per_second) == (0.01, 2.0, 150)
    bad = _guidellm()
    del bad["benchmarks"][0]["metrics"]["time_to_first_token_ms"]
    with pytest.raises(InputError, match=r"benchmarks\[0\]: metrics: time_to_first_token_ms: missing"):
        read_guidellm(file(bad))
    with pytest.raises(InputError, match="benchmarks: must be a list"):
        read_guidellm(file({"benchmarks": []}))


def test_unreadable_files(tmp_path, file):
    with pytest.raises(InputError, match="cannot be read"):
        read_nxdi(tmp_path / "none.json")
    with pytest.raises(InputError, match="not a JSON file"):
        read_vllm_bench(file("{"))
