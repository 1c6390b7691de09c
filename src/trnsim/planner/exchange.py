"""Configurations of other tools as neutral descriptions of a serving replica or a training layout.

- ``read_nxdi``: ``neuron_config.json`` of NeuronX Distributed Inference;
- ``read_vllm_arguments``: a ``vllm serve`` command line;
- ``read_training_yaml``: YAML of Megatron, NeMo, and NeuronX Distributed Training, which name alike.

What a file does not say stays None. Keys that are not understood are listed in ``unread``, never dropped silently.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trnsim.errors import InputError

from .fields import Fields, read_json, read_yaml


@dataclass(frozen=True, kw_only=True)
class ServingLayout:
    """One serving replica as another tool is told to run it. A rank is a logical core on Trainium, a GPU elsewhere."""

    source: str
    model: str | None = None
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    context: int = 1
    lnc: int | None = None
    dtype: str | None = None
    cache_dtype: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_tokens: int | None = None
    blocks: int | None = None
    paged: bool | None = None
    prefix_reuse: bool | None = None
    chunked_prefill: bool | None = None
    asynchronous: bool | None = None
    memory_utilization: float | None = None
    prefill_buckets: tuple[int, ...] = ()
    decode_batch_buckets: tuple[int, ...] = ()
    decode_context_buckets: tuple[int, ...] = ()
    speculation_length: int = 0
    unread: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks of all data-parallel replicas; expert parallelism uses those there are."""
        return self.tensor * self.pipeline * self.data * self.context


@dataclass(frozen=True, kw_only=True)
class TrainingLayout:
    """How a training run is spread, as another tool is told. ``data`` follows from the devices, None if unknown.

    ``chunks``: pieces of the model a pipeline rank has; ``zero``: stage of sharded optimiser states; ``recompute``:
    ``none``, ``selective`` or ``full``.
    """

    source: str
    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    context: int = 1
    expert: int = 1
    data: int | None = None
    sequence_parallel: bool = False
    micro_batch: int | None = None
    global_batch: int | None = None
    sequence_length: int | None = None
    zero: int = 0
    recompute: str = "none"
    precision: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def microbatches(self) -> int | None:
        """Micro-batches of a step on one replica."""
        if self.data is None or self.micro_batch is None or self.global_batch is None:
            return None
        return self.global_batch // (self.micro_batch * self.data)


# -- NxDI ----------------------------------------------------------------------------------------------------------

_NXDI_READ: Final = frozenset(
    {
        *("tp_degree", "pp_degree", "ep_degree", "logical_nc_config", "logical_neuron_cores"),
        *("batch_size", "max_batch_size", "tkg_batch_size", "seq_len", "max_context_length", "torch_dtype"),
        *("enable_bucketing", "context_encoding_buckets", "token_generation_buckets", "speculation_length"),
        *("kv_cache_quant", "is_block_kv_layout", "pa_num_blocks", "pa_block_size", "is_prefix_caching"),
        *("is_chunked_prefill", "async_mode"),
    }
)


def read_nxdi(path: str | Path) -> ServingLayout:
    """``neuron_config.json`` of a compiled checkpoint: the NeuronConfig itself, or a file that holds it."""
    data = Fields(str(path), read_json(path))
    config = data.table("neuron_config") if data.has("neuron_config") else data
    return _nxdi(config, model=str(data.data["_name_or_path"]) if data.has("_name_or_path") else None)


def _nxdi(config: Fields, model: str | None) -> ServingLayout:
    length = config.count("seq_len")
    context = config.count("max_context_length", length)
    batch = config.count("batch_size", 1)
    batch = config.count("max_batch_size", config.count("tkg_batch_size", batch))
    if context > length:
        config.fail("max_context_length", f"must not be more than seq_len {length}", context)
    paged = config.flag("is_block_kv_layout")
    bucketing = config.flag("enable_bucketing")
    lnc = next((config.count(key) for key in ("logical_nc_config", "logical_neuron_cores") if config.has(key)), None)
    return ServingLayout(
        source=config.where,
        model=model,
        tensor=config.count("tp_degree", 1),
        pipeline=config.count("pp_degree", 1),
        expert=config.count("ep_degree", 1),
        lnc=lnc,
        dtype=config.text("torch_dtype", "bfloat16").removeprefix("torch."),
        cache_dtype="float8_e4m3fn" if config.flag("kv_cache_quant") else None,
        max_num_seqs=batch,
        max_num_batched_tokens=context,
        max_model_len=length,
        block_tokens=config.count("pa_block_size") if config.has("pa_block_size") else None,
        blocks=config.count("pa_num_blocks") if config.has("pa_num_blocks") else None,
        paged=paged,
        prefix_reuse=config.flag("is_prefix_caching"),
        chunked_prefill=config.flag("is_chunked_prefill"),
        asynchronous=config.flag("async_mode"),
        prefill_buckets=_buckets(config, "context_encoding_buckets", context, enabled=bucketing),
        decode_batch_buckets=(batch,),
        decode_context_buckets=_buckets(config, "token_generation_buckets", length, enabled=bucketing),
        speculation_length=config.count("speculation_length", 0, low=0),
        unread=tuple(sorted(set(config.data) - _NXDI_READ)),
    )


def _buckets(config: Fields, key: str, largest: int, *, enabled: bool) -> tuple[int, ...]:
    """Listed buckets, powers of two from 128 where bucketing is on, else one of the largest size (NxDI's rules)."""
    from trnsim.serving.settings import powers_of_two

    listed = config.counts(key)
    if listed:
        return listed
    return powers_of_two(min(128, largest), largest) if enabled else (largest,)


# -- vLLM ----------------------------------------------------------------------------------------------------------

_SHORT: Final = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size"}
_FLAGS: Final = {
    "enable-prefix-caching": ("prefix_reuse", True),
    "no-enable-prefix-caching": ("prefix_reuse", False),
    "enable-chunked-prefill": ("chunked_prefill", True),
    "no-enable-chunked-prefill": ("chunked_prefill", False),
    "async-scheduling": ("asynchronous", True),
    "no-async-scheduling": ("asynchronous", False),
}
_COUNTS: Final = {
    "tensor-parallel-size": "tensor",
    "pipeline-parallel-size": "pipeline",
    "data-parallel-size": "data",
    "decode-context-parallel-size": "context",
    "max-num-seqs": "max_num_seqs",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "max-model-len": "max_model_len",
    "block-size": "block_tokens",
    "num-gpu-blocks-override": "blocks",
}
_DTYPES: Final = {
    "half": "float16",
    "float": "float32",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
_TEXTS: Final = {"model": "model", "dtype": "dtype", "kv-cache-dtype": "cache_dtype"}


def read_vllm_arguments(arguments: str | Sequence[str]) -> ServingLayout:
    """A ``vllm serve`` command line, as one string or a list; ``vllm serve MODEL`` may be left out."""
    words = shlex.split(arguments) if isinstance(arguments, str) else list(arguments)
    where = "vllm arguments"
    found: dict[str, Any] = {}
    unread: list[str] = []
    neuron: Fields | None = None
    words, model = _command(words)
    if model is not None:
        found["model"] = model
    for name, value in _options(words, where):
        key = name.replace("_", "-")
        fields = Fields(where, {f"--{key}": value})
        if key in _FLAGS:
            if value is not None:
                fields.fail(f"--{key}", "takes no value", value)
            attribute, setting = _FLAGS[key]
            found[attribute] = setting
        elif key in _COUNTS:
            found[_COUNTS[key]] = fields.count(f"--{key}") if key != "max-model-len" else _length(fields, f"--{key}")
        elif key in _TEXTS:
            found[_TEXTS[key]] = fields.text(f"--{key}")
        elif key == "gpu-memory-utilization":
            found["memory_utilization"] = _share(fields, f"--{key}")
        elif key == "enable-expert-parallel":
            found["expert"] = -1  # over all ranks: known when all arguments are
        elif key in {"additional-config", "override-neuron-config"}:
            neuron = _neuron_config(fields, f"--{key}")
        elif key == "speculative-config":
            found["speculation_length"] = _json(fields, f"--{key}").count("num_speculative_tokens", low=1)
        else:
            unread.append(f"--{key}")
    if neuron is not None:
        unread += _vllm_neuron(neuron, found)
    if found.get("expert") == -1:
        found["expert"] = found.get("tensor", 1) * found.get("data", 1)
    for key in ("dtype", "cache_dtype"):
        if key in found:
            found[key] = None if found[key] == "auto" else _DTYPES.get(found[key], found[key])
    return ServingLayout(source=where, paged=True, unread=tuple(unread), **found)


def _command(words: list[str]) -> tuple[list[str], str | None]:
    if len(words) > 2 and words[0].startswith("python") and words[1] == "-m" and words[2].startswith("vllm."):
        words = words[3:]
    if words[:1] == ["vllm"]:
        words = words[1:]
    if words[:1] == ["serve"]:
        words = words[1:]
    if words and not words[0].startswith("-"):
        return words[1:], words[0]
    return words, None


def _options(words: Sequence[str], where: str) -> Iterator[tuple[str, str | None]]:
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word in _SHORT:
            name, value = _SHORT[word], None
        elif word.startswith("--"):
            name, _, joined = word[2:].partition("=")
            value = joined if "=" in word else None
        else:
            raise InputError(f"{where}: {word}: not an option", limit="options begin with --")
        if value is None and at < len(words) and (not words[at].startswith("-") or _is_number(words[at])):
            value = words[at]
            at += 1
        yield name, value


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdigit()


def _length(fields: Fields, key: str) -> int:
    """A length, with vLLM's suffixes: 8k is 8000, 8K is 8192."""
    text = fields.text(key)
    scale = {"k": 1000, "K": 1024, "m": 10**6, "M": 2**20}.get(text[-1:], 1)
    return Fields(fields.where, {key: text if scale == 1 else text[:-1]}).count(key) * scale


def _share(fields: Fields, key: str) -> float:
    text = fields.text(key)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        fields.fail(key, "must be a number above 0, at most 1", text)
    return value


def _json(fields: Fields, key: str) -> Fields:
    try:
        return Fields(f"{fields.where}: {key}", json.loads(fields.text(key)))
    except json.JSONDecodeError as error:
        raise InputError(f"{fields.where}: {key}: not JSON: {error.msg}") from None


def _neuron_config(fields: Fields, key: str) -> Fields:
    config = _json(fields, key)
    for name in ("neuron_config", "override_neuron_config"):
        if config.has(name):
            return config.table(name)
    return config


def _vllm_neuron(config: Fields, found: dict[str, Any]) -> list[str]:
    """Neuron's own options inside vLLM's; the keys that are not understood."""
    buckets = {
        "num_batched_tokens_buckets": "prefill_buckets",
        "context_encoding_buckets": "prefill_buckets",
        "num_seqs_buckets": "decode_batch_buckets",
        "decode_context_length_buckets": "decode_context_buckets",
        "token_generation_buckets": "decode_context_buckets",
    }
    counts = {"logical_nc_config": "lnc", "pa_num_blocks": "blocks", "pa_block_size": "block_tokens"}
    flags = {"is_prefix_caching": "prefix_reuse", "is_block_kv_layout": None, "async_mode": "asynchronous"}
    unread = []
    for key in config.data:
        if key in buckets:
            found[buckets[key]] = config.counts(key)
        elif key in counts:
            found[counts[key]] = config.count(key)
        elif key in flags:
            value, attribute = config.flag(key), flags[key]
            if attribute:
                found[attribute] = value
        else:
            unread.append(f"{config.where.rpartition(': ')[2]}.{key}")
    return unread


# -- training ------------------------------------------------------------------------------------------------------

_Read = Callable[[Fields, str], Any]


def _count(fields: Fields, key: str) -> int:
    return fields.count(key)


def _granularity(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if value not in {"none", "selective", "full"}:
        fields.fail(key, "must be selective or full", value)
    return value


def _zero(fields: Fields, key: str) -> int:
    return int(fields.flag(key))


def _optimiser(fields: Fields, key: str) -> int:
    return int("distributed" in fields.text(key) or "zero" in fields.text(key).lower())


_TRAINING: Final[Mapping[str, tuple[str, _Read]]] = {
    "tensor_model_parallel_size": ("tensor", _count),
    "pipeline_model_parallel_size": ("pipeline", _count),
    "virtual_pipeline_model_parallel_size": ("chunks", _count),
    "context_parallel_size": ("context", _count),
    "expert_model_parallel_size": ("expert", _count),
    "sequence_parallel": ("sequence_parallel", lambda fields, key: fields.flag(key)),
    "micro_batch_size": ("micro_batch", _count),
    "global_batch_size": ("global_batch", _count),
    "encoder_seq_length": ("sequence_length", _count),
    "seq_length": ("sequence_length", _count),
    "max_sequence_length": ("sequence_length", _count),
    "activations_checkpoint_granularity": ("recompute", _granularity),
    "recompute_granularity": ("recompute", _granularity),
    "use_distributed_optimizer": ("zero", _zero),
    "zero1": ("zero", _zero),
    "optim.name": ("zero", _optimiser),
    "precision": ("precision", lambda fields, key: str(fields.raw(key))),
    "num_nodes": ("nodes", _count),
    "devices": ("devices", _count),
    "world_size": ("world", _count),
}
_LAYOUT_WORDS: Final = ("parallel", "batch_size", "zero", "checkpoint_granularity", "recompute")


def read_training_yaml(path: str | Path) -> TrainingLayout:
    """The layout in a YAML file of Megatron, NeMo or NeuronX Distributed Training, wherever in it the keys stand.

    Raises ``InputError`` for values that do not hold, keys that contradict each other, interpolations (``${...}``) of
    keys that are needed, and layouts that do not multiply.
    """
    data = read_yaml(path)
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    unread: list[str] = []
    for dotted, fields, key in _leaves(Fields(str(path), data), ""):
        name = key if key in _TRAINING else ".".join(dotted.split(".")[-2:])
        if name not in _TRAINING:
            if any(word in key for word in _LAYOUT_WORDS):
                unread.append(dotted)
            continue
        value = fields.raw(key)
        if isinstance(value, str) and "${" in value:
            raise InputError(f"{path}: {dotted}: an interpolation, which is not resolved here", value=value)
        attribute, read = _TRAINING[name]
        # Errors name the whole path of a key.
        value = read(Fields(str(path), {dotted: value}), dotted)
        if attribute == "zero" and found.get("zero"):
            value = max(value, found["zero"])
        elif attribute in found and found[attribute] != value:
            raise InputError(f"{path}: {dotted} contradicts {origin[attribute]}", value=value, limit=found[attribute])
        found[attribute], origin[attribute] = value, dotted
    if not {"tensor", "pipeline"} & found.keys():
        raise InputError(
            f"{path}: tensor_model_parallel_size: missing: no layout of Megatron, NeMo or NeuronX Distributed Training"
        )
    return _training(str(path), found, tuple(unread))


def _leaves(fields: Fields, prefix: str) -> Iterator[tuple[str, Fields, str]]:
    for key, value in fields.data.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(Fields(fields.where, value), f"{dotted}.")
        elif value is not None:
            yield dotted, fields, str(key)


def _training(where: str, found: dict[str, Any], unread: tuple[str, ...]) -> TrainingLayout:
    world = found.pop("world", None)
    devices, nodes = found.pop("devices", None), found.pop("nodes", 1)
    if world is None and devices is not None:
        world = devices * nodes
    layout = TrainingLayout(source=where, unread=unread, **found)
    if world is None:
        return layout
    share = layout.tensor * layout.pipeline * layout.context
    if world % share:
        raise InputError(
            f"{where}: tensor x pipeline x context parallelism does not divide the devices", value=share, limit=world
        )
    data = world // share
    if layout.micro_batch and layout.global_batch and layout.global_batch % (layout.micro_batch * data):
        raise InputError(
            f"{where}: global_batch_size: not a multiple of micro_batch_size times data parallelism",
            value=layout.global_batch,
            limit=f"{layout.micro_batch} x {data}",
        )
    return TrainingLayout(source=where, unread=unread, data=data, **found)
