"""Make a runnable copy of an nki-library checkout: ``python repair_nki_library.py CHECKOUT COPY``.

The published commits (d2ad3a5 of 2026-04-13, 0759719 of 2026-02-27) cannot run as they are: they lack modules, and the
newer one has errors of syntax and names. Each repair is listed below with its reason. None touches a kernel's code, an
assertion or a tolerance; a repair whose place is not found is an error, so that another commit is never half repaired.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Replace ``old`` (which must occur exactly ``times``) by ``new`` in a file."""

    file: str
    old: str
    new: str
    reason: str
    times: int = 1


@dataclass(frozen=True)
class Append:
    """Add ``text`` to the end of a file."""

    file: str
    text: str
    reason: str


@dataclass(frozen=True)
class New:
    """A module of ours where the suite imports one that was not published."""

    file: str
    text: str
    reason: str


@dataclass(frozen=True)
class Remove:
    """A test file that cannot be imported because what it tests was not published."""

    file: str
    reason: str


Repair = Edit | Append | New | Remove

LOCKS = '''"""Results of the remote core lock, as the published tests use them."""

import enum
import json
from dataclasses import dataclass, field


class LockStatus(enum.Enum):
    ALLOCATED = ("allocated", 0)
    RELEASED = ("released", 1)
    UNDRAINED = ("undrained", 2)
    NO_CORES = ("no_cores", 10)
    DRAINING = ("draining", 11)
    DRAINED = ("drained", 12)
    FLOCK_TIMEOUT = ("flock_timeout", 13)
    ERROR = ("error", 14)

    @property
    def exit_code(self):
        return self.value[1]

    @classmethod
    def from_exit_code(cls, code):
        return next((s for s in cls if s.exit_code == code), cls.ERROR)


@dataclass
class LockResult:
    status: LockStatus
    cores: list = field(default_factory=list)
    max_lock_expiry: float = 0
    message: str = ""

    def to_json(self):
        return json.dumps({**self.__dict__, "status": self.status.value[0]})

    @classmethod
    def from_json(cls, text):
        values = json.loads(text)
        name = values.pop("status")
        status = next(s for s in LockStatus if s.value[0] == name)
        return cls(status=status, **values)
'''

RANKS = '''"""Kernels with collectives: every rank simulated, its outputs where those of hardware would be."""

import os

import numpy as np
import trnsim
from trnsim.compat.simulator import chosen_chip

from .common_dataclasses import normalize_golden_output


def run(orchestrator, kernel_under_test, output_path):
    compiler = kernel_under_test.compiler_input
    os.environ["NKI_NC_VERSION"] = compiler.platform_target.get_nc_gen()
    given, count = kernel_under_test.kernel_input or {}, kernel_under_test.inference_args.collective_ranks
    inputs = [given.for_rank(rank) if hasattr(given, "for_rank") else given for rank in range(count)]
    inputs = [{name.removesuffix(".must_alias_input"): value for name, value in one.items()} for one in inputs]
    options = trnsim.SimulationOptions(chip=chosen_chip(), timed=False, zero_unwritten=True)
    results = trnsim.simulate_ranks(
        kernel_under_test.kernel_func, inputs, lnc=compiler.logical_nc_config, options=options
    )
    for rank, result in enumerate(results):
        golden = normalize_golden_output(kernel_under_test.validation_args.golden_output, rank)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        if len(outputs) != len(golden):
            raise RuntimeError(f"rank {rank} returned {len(outputs)} outputs, expected {list(golden)}")
        named = {n: np.asarray(o, dtype=g.dtype) for (n, g), o in zip(golden.items(), outputs)}
        orchestrator.__dump_tensors__(os.path.join(output_path, f"output_worker_{rank}"), named, lambda name: name)
    return output_path
'''

PRIVATE = New(
    "test/utils/perf_analysis_private.py",
    "def analyze_trace(*args, **kwargs):\n    raise NotImplementedError('not published')\n",
    "imported by test_orchestrator.py for profiles of hardware; not published, never called in a simulation",
)
MANY_RANKS = (
    New(
        "test/utils/simulation_ranks.py",
        RANKS,
        "the simulation mode hands a generator of inputs a rank to the kernel: it has no way to run several ranks",
    ),
    Edit(
        "test/utils/test_orchestrator.py",
        "                output_tensors = run_simulator_inference(kernel_under_test)\n",
        "                if kernel_under_test.inference_args.collective_ranks > 1:\n"
        "                    from .simulation_ranks import run\n\n"
        "                    artifacts = self.fs_config.artifacts_output_directory_path\n"
        "                    return run(self, kernel_under_test, os.path.join(artifacts, INF_ARTIFACT_DIR_NAME))\n"
        "                output_tensors = run_simulator_inference(kernel_under_test)\n",
        "the same",
    ),
)

_BLOCK = "test/integration/nkilib/experimental/transformer/test_attention_block_tkg.py"
_ROW = (
    "the generator makes one scale a matrix for ROW too, where kernel and reference want one a column (the kernel's "
    "own assertion refuses others): the same numbers, one a column"
)
ROW_SCALES = (
    Edit(
        _BLOCK,
        "        input_dequant_scale_qkv = np.broadcast_to(input_dequant_scale_qkv, (128, 1))\n",
        "        input_dequant_scale_qkv = np.broadcast_to(input_dequant_scale_qkv, (128, 1))\n"
        "        weight_dequant_scale_qkv = weight_dequant_scale_qkv * H**-0.5\n"
        "        if cfg.quantization_type == QuantizationType.ROW:\n"
        "            columns = [num_q_heads * d_head, num_kv_heads * d_head, num_kv_heads * d_head]\n"
        "            weight_dequant_scale_qkv = np.repeat(weight_dequant_scale_qkv, columns, axis=1)\n",
        f"{_ROW}. All scales of QKV over sqrt(H), as in the branch for NONE and as the comments on the cache's scale "
        "assume: without it scores are in the hundreds and the softmax turns on the last bit of a bfloat16, and V is "
        "so large that a step of the 8-bit inputs moves it by more than the tolerance",
    ),
    Edit(
        _BLOCK,
        "        weight_dequant_scale_out = np.broadcast_to(weight_dequant_scale_out, (128, 1))\n",
        "        row = cfg.quantization_type == QuantizationType.ROW\n"
        "        weight_dequant_scale_out = np.broadcast_to(weight_dequant_scale_out, (128, H if row else 1))\n",
        _ROW,
    ),
    Edit(
        _BLOCK,
        "        result['W_qkv'] = w_qkV_cache[rank_id]\n",
        "        result['W_qkv'] = w_qkV_cache[rank_id]\n"
        "        if result['quantization_type_qkv'] == QuantizationType.ROW:\n"
        "            scales, width = result['weight_dequant_scale_qkv'], result['W_qkv'].shape[1]\n"
        "            result['weight_dequant_scale_qkv'] = scales[:, -width:]\n",
        f"{_ROW}; a rank has fewer columns",
    ),
    Edit(
        _BLOCK,
        "        golden_input_copy['W_qkv'] = per_rank_cache['w_qkv'][rank_id]\n",
        "        golden_input_copy['W_qkv'] = per_rank_cache['w_qkv'][rank_id]\n"
        "        if golden_input_copy['quantization_type_qkv'] == QuantizationType.ROW:\n"
        "            width = golden_input_copy['W_qkv'].shape[1]\n"
        "            scales = golden_input_copy['weight_dequant_scale_qkv']\n"
        "            golden_input_copy['weight_dequant_scale_qkv'] = scales[:, -width:]\n",
        f"{_ROW}; a rank has fewer columns",
    ),
)

KV_SCALE = Edit(
    _BLOCK,
    '        "softmax_scale": cfg.softmax_scale,\n',
    '        "softmax_scale": (\n'
    "            cfg.softmax_scale if k_scale is None else (cfg.softmax_scale or d_head**-0.5) / k_scale_scalar\n"
    "        ),\n",
    "an 8-bit cache holds K times k_scale (104), which kernel and reference leave to the softmax's scale: without it "
    "scores have a deviation of 60, the softmax picks one position, and one step of a bfloat16 in cos, sin and gamma "
    "moves the reference itself by 0.034 in the cosine that has to agree within 0.01",
)
ONE_REFERENCE = (
    Edit(
        _BLOCK,
        "    golden_outputs = _golden_ref_via_torch(kernel_input, cfg.lnc)\n",
        "    golden_outputs = _golden_ref_via_torch(kernel_input, cfg.lnc)\n"
        "    output_tensors = {k: np.zeros(v.shape, dtype=v.dtype) for k, v in golden_outputs.items()}\n",
        "speed: the reference ran a second time for the shapes of what it had just returned",
    ),
    Edit(
        _BLOCK,
        "        output_tensor_descriptor=lambda ki: _infer_output_shapes_and_dtypes(\n"
        '            {k.removesuffix(".must_alias_input"): v for k, v in ki.items()}, cfg.lnc\n'
        "        ),\n",
        "        output_tensor_descriptor=lambda ki: output_tensors,\n",
        "speed: as above",
    ),
)

BLOCKS = '''"""The numbers that generate_stabilized_mx_data draws block by block, from the same stream, all at once."""

import numpy as np

_AT_ONCE = 1 << 18  # blocks


def _next(accepted):
    """Index of the first accepted word from each place on; their number where none follows."""
    places = np.where(accepted, np.arange(accepted.size), accepted.size)
    return np.minimum.accumulate(places[::-1])[::-1]


def place_maxima(data, height, width, max_exp):
    """What ``randint(0, height - 1)``, ``randint(0, width - 1)``, ``choice([-1, 1])`` and ``random()`` put into blocks.

    NumPy's legacy generator takes 32-bit words: for a bounded integer their low bits until one is not too large, for a
    sign one bit, for a fraction two words.
    """
    across, number = data.shape[1] // width, data.shape[0] // height * (data.shape[1] // width)
    for first in range(0, number, _AT_ONCE):
        blocks = np.arange(first, min(first + _AT_ONCE, number))
        before = np.random.get_state()
        words = np.random.randint(0, 1 << 32, size=8 * blocks.size + 1000, dtype=np.uint32)
        row_at, column_at = _next((words & 7) < height - 1), _next((words & 3) < width - 1)
        after_row = np.append(column_at, words.size)[row_at + 1 - (row_at == words.size)]
        following, place, starts = (after_row + 4).tolist(), 0, []
        for _ in blocks:
            starts.append(place)
            place = following[place]
        row_at, column_at = row_at[starts], after_row[starts]
        fraction = ((words[column_at + 2] >> 5) * 67108864.0 + (words[column_at + 3] >> 6)) / 9007199254740992.0
        sign = (words[column_at + 1] & 1) * 2.0 - 1
        rows = blocks // across * height + (words[row_at] & 7)
        columns = blocks % across * width + (words[column_at] & 3)
        data[rows, columns] = sign * (1.0 + fraction * 0.5) * (2**max_exp)
        np.random.set_state(before)
        np.random.randint(0, 1 << 32, size=place, dtype=np.uint32)
'''
MX_BLOCKS = (
    New(
        "test/utils/mx_blocks.py",
        BLOCKS,
        "speed: four calls of NumPy for each 32 numbers of an MX weight were nine tenths of a test",
    ),
    Edit(
        "test/integration/nkilib/utils/tensor_generators.py",
        """    for i in range(0, shape[0], _q_height):
        for j in range(0, shape[1], _q_width):
            # Random position within the tile
            tile_i = np.random.randint(0, _q_height - 1)
            tile_j = np.random.randint(0, _q_width - 1)

            # Set this element to have maximum exponent
            # Value = \u00b11.xxx \u00d7 2^max_exp (where 1.xxx is the mantissa)
            sign = np.random.choice([-1, 1])
            # Within the range of [1.0, 1.5) (could be upto 1.75 for mxfp8).
            mantissa = 1.0 + np.random.random() * 0.5
            rand_data[i + tile_i, j + tile_j] = sign * mantissa * (2**max_exp)
""",
        """    from test.utils.mx_blocks import place_maxima

    place_maxima(rand_data, _q_height, _q_width, max_exp)
""",
        "speed: the same numbers, drawn at once; the generator is left where it would be",
    ),
)

PIECES = '''"""Large random tensors, drawn a piece at a time."""

import numpy as np

_AT_ONCE = 1 << 18  # numbers: 2 MiB of float64


def in_pieces(draw, shape, dtype, finish=None):
    """``finish(draw(size=shape)).astype(dtype)``: the same numbers of the same stream.

    What NumPy draws at once is float64, four to eight times as large as the result, and as much again for each step of
    ``finish``, which works element by element.
    """
    result = np.empty(shape, dtype)
    flat = result.reshape(-1)
    for first in range(0, flat.size, _AT_ONCE):
        numbers = draw(size=min(_AT_ONCE, flat.size - first))
        flat[first : first + numbers.size] = numbers if finish is None else finish(numbers)
    return result
'''
_GENERATORS = "test/integration/nkilib/utils/tensor_generators.py"
_EXPERTS = "test/integration/nkilib/core/moe_block/test_moe_block_tkg.py"
_QKV = "test/integration/nkilib/core/qkv/test_qkv_common.py"
_SAME = "speed and memory: the same numbers of the same stream, without several float64 copies of a whole tensor"
DRAWS = (
    New("test/utils/pieces.py", PIECES, _SAME),
    Edit(
        _GENERATORS,
        "        tensor = (rng.normal(size=shape) * std + mean).astype(guessed_dtype)\n",
        "        tensor = in_pieces(rng.normal, shape, guessed_dtype, lambda x: x * std + mean)\n",
        _SAME,
    ),
    Edit(
        _GENERATORS,
        """        rand_arr = np.random.random_sample(shape)
        if np.issubdtype(dtype, np.floating):
            return rand_arr.astype(dtype)
        elif dtype in (nl.tfloat32, nl.bfloat16, nl.float8_e4m3, nl.float8_e5m2):
            rand_arr_casted = dt.static_cast(dt.static_cast(rand_arr, dtype), np.float32)
            return dt.static_cast(rand_arr_casted, dtype)
""",
        """        if np.issubdtype(dtype, np.floating):
            return in_pieces(np.random.random_sample, shape, dtype)
        elif dtype in (nl.tfloat32, nl.bfloat16, nl.float8_e4m3, nl.float8_e5m2):
            stored = dt.static_cast(np.zeros(1), dtype).dtype
            return in_pieces(np.random.random_sample, shape, stored, lambda x: dt.static_cast(x, dtype))
""",
        f"{_SAME}; casting to float32 and back changes none of them",
    ),
    Edit(
        _GENERATORS,
        "from neuron_dtypes import static_cast\n",
        "from neuron_dtypes import static_cast\nfrom test.utils.pieces import in_pieces\n",
        "the same",
    ),
    Edit(
        _BLOCK,
        "        return np.ascontiguousarray("
        "dt.static_cast(_rng.uniform(-1.0, 1.0, shape).astype(np.float32), dtype))\n",
        "        from test.utils.pieces import in_pieces\n\n"
        "        return in_pieces(\n"
        "            lambda size: _rng.uniform(-1.0, 1.0, size),\n"
        "            shape,\n"
        "            dt.static_cast(np.zeros(1), dtype).dtype,\n"
        "            lambda x: dt.static_cast(x.astype(np.float32), dtype),\n"
        "        )\n",
        _SAME,
    ),
    Edit(
        _BLOCK,
        "        return np.ascontiguousarray(dt.static_cast(_rng.normal(0.0, std, shape).astype(np.float32), dtype))\n",
        "        from test.utils.pieces import in_pieces\n\n"
        "        return in_pieces(\n"
        "            lambda size: _rng.normal(0.0, std, size),\n"
        "            shape,\n"
        "            dt.static_cast(np.zeros(1), dtype).dtype,\n"
        "            lambda x: dt.static_cast(x.astype(np.float32), dtype),\n"
        "        )\n",
        _SAME,
    ),
    Edit(
        _BLOCK,
        """        K_cache_f32 = np.random.normal(0, kv_std, K_cache_shape).astype(np.float32)
        V_cache_f32 = np.random.normal(0, kv_std, V_cache_shape).astype(np.float32)
        K_cache = dt.static_cast(np.clip(K_cache_f32, -240, 240), kv_cache_dtype)
        V_cache = dt.static_cast(np.clip(V_cache_f32, -240, 240), kv_cache_dtype)
""",
        """        from test.utils.pieces import in_pieces

        stored = dt.static_cast(np.zeros(1), kv_cache_dtype).dtype
        K_cache, V_cache = (
            in_pieces(
                lambda size: np.random.normal(0, kv_std, size),
                shape,
                stored,
                lambda x: dt.static_cast(np.clip(x.astype(np.float32), -240, 240), kv_cache_dtype),
            )
            for shape in (K_cache_shape, V_cache_shape)
        )
""",
        _SAME,
    ),
    Edit(
        _EXPERTS,
        """rng.normal(size=(num_local_experts, hidden, 2, intermediate)).astype(
            weight_dtype
        )
        inputs["expert_down_weights"] = rng.normal(size=(num_local_experts, intermediate, hidden)).astype(weight_dtype)
""",
        """in_pieces(
            rng.normal, (num_local_experts, hidden, 2, intermediate), weight_dtype
        )
        inputs["expert_down_weights"] = in_pieces(rng.normal, (num_local_experts, intermediate, hidden), weight_dtype)
""",
        _SAME,
        times=2,
    ),
    Edit(
        _EXPERTS,
        "from test.utils.metrics_collector import IMetricsCollector\n",
        "from test.utils.metrics_collector import IMetricsCollector\nfrom test.utils.pieces import in_pieces\n",
        "the same",
    ),
    Edit(
        "test/integration/nkilib/core/moe/moe_tkg/test_moe_tkg_utils.py",
        "                return (rng.normal(size=inp.shape) * std + mean).astype(inp.dtype)\n",
        "                from test.utils.pieces import in_pieces\n\n"
        "                return in_pieces(rng.normal, inp.shape, inp.dtype, lambda x: x * std + mean)\n",
        _SAME,
    ),
    Edit(
        _QKV,
        "            return (rng.normal(size=shape) * std + mean).astype(guessed_dtype)\n",
        "            from test.utils.pieces import in_pieces\n\n"
        "            return in_pieces(rng.normal, shape, guessed_dtype, lambda x: x * std + mean)\n",
        _SAME,
    ),
)
FAST_CASTS = (
    Edit(
        _BLOCK,
        "    return {k: v.astype(output_dtypes[k]) for k, v in ref_output.items()}\n",
        "    return {k: dt.static_cast(v, output_dtypes[k]) for k, v in ref_output.items()}\n",
        "speed: the same casts to 8 bits, several times faster, of a whole cache for each rank",
    ),
    Edit(
        "test/utils/unit_test_framework.py",
        "                    value = value.astype(np.float32)\n                tensor = torch.from_numpy(value)\n",
        "                    value = ndt.static_cast(value, np.float32)\n"
        "                tensor = torch.from_numpy(value)\n",
        "speed: the same casts from 8 bits, several times faster",
    ),
)
NO_INPUT_FILES = Edit(
    "test/utils/test_orchestrator.py",
    "                input_file_paths = self.__dump_kernel_inputs__(\n"
    "                    self.fs_config.artifacts_output_directory_path, kernel_under_test\n"
    "                )\n",
    "                input_file_paths = {}\n"
    "                if self.trace_mode != TraceMode.Simulator:\n"
    "                    input_file_paths = self.__dump_kernel_inputs__(\n"
    "                        self.fs_config.artifacts_output_directory_path, kernel_under_test\n"
    "                    )\n",
    "speed: gigabytes of inputs were written to files that are for the profiler of hardware",
)
PRODUCTS = Edit(
    "test/utils/mx_utils.py",
    '    golden = np.einsum("kiq,kjq->ij", stationary, moving)\n',
    '    golden = np.einsum("kiq,kjq->ij", stationary, moving, optimize=True)\n',
    "speed: the reference's product by BLAS, a hundred times faster than NumPy's own loops (nine tenths of tests of "
    "experts with MX weights)",
)

CALLABLE = (
    New(
        "test/utils/callable_module.py",
        '''"""nkilib.core.utils.stream_shuffle_broadcast, called for the function in it."""

import sys
from types import ModuleType

from nkilib_src.nkilib.core.utils import stream_shuffle_broadcast


class _Callable(ModuleType):
    def __call__(self, *args, **kwargs):
        return self.stream_shuffle_broadcast(*args, **kwargs)


stream_shuffle_broadcast.__class__ = _Callable
''',
        "qkv_cte imports the module stream_shuffle_broadcast and calls it for the function of that name in it, which "
        "router_topk takes from it: the module passes calls on",
    ),
    Edit(
        "test/utils/simulation_setup.py",
        '''    """Execute kernel using NkiCpuSimulator."""
    import nki
''',
        '''    """Execute kernel using NkiCpuSimulator."""
    import nki

    from . import callable_module  # noqa: F401
''',
        "the same",
    ),
)

SWIZZLED = Edit(
    "test/integration/nkilib/core/qkv/test_qkv_cte.py",
    '            "load_input_with_DMA_transpose": True,\n            "is_input_swizzled": False,\n',
    '            "load_input_with_DMA_transpose": True,\n            "is_h_dim_4h_transposed": False,\n',
    "the published qkv calls this argument is_h_dim_4h_transposed and hands it to qkv_cte as is_input_swizzled",
)

MX_VIEWS = (
    New(
        "test/utils/moe_tkg_of_views.py",
        '''"""moe_tkg with weights of MX formats as its callers hand them: as views (mx_moe_block_tkg_wrapper)."""

import functools

import nki.language as nl
from nkilib_src.nkilib.core.moe import moe_tkg as kernel
from nkilib_src.nkilib.core.utils.tensor_view import TensorView

_WEIGHTS = ("expert_gate_up_weights", "expert_down_weights")


@functools.wraps(kernel)
def moe_tkg(**arguments):
    for name in _WEIGHTS:
        if arguments[name].dtype in (nl.float4_e2m1fn_x4, nl.float8_e4m3fn_x4):
            arguments[name] = TensorView(arguments[name])
    return kernel(**arguments)
''',
        "moe_tkg reads the attribute base_tensor of weights in MX formats, which a TensorView has and a tensor not; "
        "the tests of moe_block_tkg hand it such views, its own tests the tensors",
    ),
    Edit(
        "test/integration/nkilib/core/moe/moe_tkg/test_moe_tkg.py",
        "        kernel_entry=moe_tkg,\n",
        "        kernel_entry=moe_tkg_of_views.moe_tkg,\n",
        "the same",
    ),
    Edit(
        "test/integration/nkilib/core/moe/moe_tkg/test_moe_tkg.py",
        "from nkilib_src.nkilib.core.moe import moe_tkg\n",
        "from test.utils import moe_tkg_of_views\n\nfrom nkilib_src.nkilib.core.moe import moe_tkg\n",
        "the same",
    ),
)

PUBLISHED = Append(
    "test/integration/nkilib/experimental/transformer/test_attention_block_tkg_model_config.py",
    """

def _published(config):
    tokens = config.batch * config.S_tkg
    normalized = config.qk_norm_pre_rope or config.qk_norm_post_rope
    if normalized and min(tokens, 128) * config.q_heads > 512:
        return False
    return config.quantization_type != QuantizationType.ROW or tokens <= 128


attention_block_tkg_model_configs = {
    kind: [config for config in configs if _published(config)]
    for kind, configs in attention_block_tkg_model_configs.items()
}
""",
    "left out: configurations with ROW scales and more than 128 tokens (their projection is qkv_cte, whose published "
    "code has no ROW and multiplies by no scale), and those of which the norm of Q gives nc_matmul more moving columns "
    "than the 512 that hardware has (tokens of a tile times heads, in _rms_norm_inplace)",
)

ACCEPTED = Append(
    "test/integration/nkilib/experimental/transformer/test_attention_block_tkg_model_config.py",
    """

def _accepted(config):
    batch, heads, d_head, tokens, kv_quant, ranks = config[0], config[1], config[2], config[7], config[-2], config[-1]
    if kv_quant or batch % ranks or (ranks > 1 and heads > 1 and heads * batch * tokens > 128):
        return False
    return batch * tokens <= 128 and (heads + 2) * d_head <= 4096


attention_block_tkg_model_configs = [c for c in attention_block_tkg_model_configs if _accepted(c)]
""",
    "configurations that the published code refuses by itself are left out: more than 128 tokens or 4096 columns of "
    "QKV (assertions of the kernels), quantized caches (this test hands them no scale, which its generator asserts), "
    "batches that are no multiple of the ranks, and more than 128 heads times tokens over several ranks (a tile of as "
    "many partitions)",
)

APRIL: tuple[Repair, ...] = (
    New("test/utils/scripts/__init__.py", "", "package of the module below; not published"),
    New("test/utils/scripts/remote_lock_scripts.py", LOCKS, "imported by the conftest for remote hosts; not published"),
    PRIVATE,
    Edit(
        "test/utils/test_orchestrator.py",
        "        self.kernel_under_test: Optional[KernelArgs] = None\n",
        "        self.kernel_under_test: Optional[KernelArgs] = None\n        self._compiled_kernel = None\n",
        "_rename_neff_outputs_to_python_names reads it in simulation mode, where nothing sets it",
    ),
    *MANY_RANKS,
    *ROW_SCALES,
    KV_SCALE,
    *ONE_REFERENCE,
    *MX_BLOCKS,
    *DRAWS,
    *FAST_CASTS,
    NO_INPUT_FILES,
    PRODUCTS,
    *CALLABLE,
    SWIZZLED,
    *MX_VIEWS,
    PUBLISHED,
    Edit(
        "test/integration/nkilib/core/qkv/test_qkv_tkg.py",
        "    KernelArgs,\n    LazyGoldenGenerator,\n    ValidationArgs,\n)",
        "    KernelArgs,\n    LazyGoldenGenerator,\n    Platforms,\n    ValidationArgs,\n)",
        "NameError at import: Platforms is used and not imported",
    ),
    Edit(
        "test/integration/nkilib/experimental/subkernels/test_topk_reduce.py",
        "nkilib.experimental.subkernels.topk_reduce import",
        "nkilib.experimental.collectives.topk_reduce import",
        "the kernel was published under experimental.collectives",
    ),
    Edit(
        "test/integration/nkilib/experimental/subkernels/test_topk_reduce.py",
        "nkilib.experimental.subkernels.topk_reduce_torch import",
        "nkilib.experimental.collectives.topk_reduce_torch import",
        "the reference was published under experimental.collectives",
    ),
    Edit(
        "test/integration/nkilib/core/attention/test_gen_mask_tkg.py",
        'return {"golden_mask": kernel_input["mask_out_hbm"]}',
        'return {"golden_mask": kernel_input["mask_out_hbm.must_alias_input"]}',
        "KeyError in every test: the file's own generator names this input mask_out_hbm.must_alias_input",
    ),
    New(
        "test/integration/nkilib/experimental/subkernels/__init__.py",
        "",
        "missing, and the suite's own test_init_files_exist.py asks for it",
    ),
    Remove("test/unit/test_file_classifier.py", "tests build-tools/bin/file_classifier.py, which was not published"),
    Remove(
        "test/unit/test_experimental_subkernels_import.py",
        "tests nkilib.experimental.subkernels, which was not published",
    ),
)

FEBRUARY: tuple[Repair, ...] = (
    PRIVATE,
    *MANY_RANKS,
    *ROW_SCALES,
    Edit(
        _BLOCK,
        "rank_kv_idx[batch_idx, 0] != np.uint32(-1)",
        "rank_kv_idx[batch_idx, 0] != np.uint32(2**32 - 1)",
        "the same number; NumPy 2 makes no unsigned number of -1",
    ),
    ACCEPTED,
)

_MLP = "src/nkilib_src/nkilib/core/mlp/mlp.py"
_MLP_REASON = "IndentationError at import: the end of the docstring stands twice; the second copy goes"


def repairs_for(checkout: Path) -> tuple[Repair, ...]:
    """The repairs of the release that ``checkout`` holds: only the newer one keeps a compiled kernel."""
    orchestrator = checkout / "test" / "utils" / "test_orchestrator.py"
    if not orchestrator.is_file():
        raise SystemExit(f"{checkout} is no checkout of nki-library: it has no test/utils/test_orchestrator.py")
    return APRIL if "_compiled_kernel" in orchestrator.read_text(encoding="utf-8") else FEBRUARY


def release_of(checkout: Path) -> str:
    """The release of NKI that a commit was published for: that of the SDK of its date (2.29, 2.28)."""
    return "0.3" if repairs_for(checkout) is APRIL else "0.2"


def repair(checkout: Path, copy: Path) -> list[tuple[str, str]]:
    """Copy ``checkout`` to ``copy`` (which must not exist) and repair it; returns (file, reason) of each repair."""
    items = repairs_for(checkout)
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    done = []
    for item in items:
        path = copy / item.file
        if isinstance(item, New):
            if path.exists():
                raise SystemExit(f"{item.file} exists: the checkout is not the one these repairs are for")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(item.text, encoding="utf-8")
        elif isinstance(item, Remove):
            path.unlink()
        elif isinstance(item, Append):
            path.write_text(path.read_text(encoding="utf-8") + item.text, encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
            if text.count(item.old) != item.times:
                found, wanted = text.count(item.old), item.times
                raise SystemExit(f"{item.file}: the text to repair occurs {found} times, not {wanted}")
            path.write_text(text.replace(item.old, item.new), encoding="utf-8")
        done.append((item.file, item.reason))
    if items is not APRIL:
        return done
    path = copy / _MLP
    text, count = re.subn(
        r'("""\n)\n(        TKG mode supports:\n(?:(?!""").*\n)*?    """\n)', r"\1", path.read_text(encoding="utf-8")
    )
    if count != 1:
        raise SystemExit(f"{_MLP}: the duplicated end of a docstring occurs {count} times, not once")
    path.write_text(text, encoding="utf-8")
    done.append((_MLP, _MLP_REASON))
    return done


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for name, why in repair(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{name}: {why}")
