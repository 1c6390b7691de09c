"""What the NKI 0.6 reference says each instruction takes: every engine, dtype, memory and start partition, by function.

Each table gives what the reference lists; whatever else exists must be refused, with an error that names instruction,
operand, value, limit and generation.
"""

import pytest
from isa_harness import GENERATIONS, act, assert_refused, nl, running

from trnsim.errors import CompilerError, HardwareError, TrnsimError
from trnsim.isa import activate2, dma, gpsimd, randomness, reductions, scalar, searches, statistics, tensor, vector
from trnsim.isa import vector_search as search
from trnsim.isa.constants import engine, reduce_cmd
from trnsim.machine.trace import CLASSES

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
FLOATS = ("float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
PACKED = ("float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4")
DTYPES = (*FLOATS, "tfloat32", "float8_e4m3fn", "float8_e3m4", *INTEGERS, "float8_e8m0fnu", *PACKED)


class Tiles:
    """Written tensors of any shape, dtype and memory."""

    def __init__(self, core):
        self.core = core

    def __call__(self, dtype="float32", partitions=32, elements=16, memory="sbuf"):
        view = self.core.ndarray((partitions, elements), dtype, memory)
        view.storage.bytes()[:] = 0
        view.storage.coverage.full = view.storage.full = True
        return view

    def part(self, start, partitions, elements=16, dtype="float32", memory="sbuf"):
        return self(dtype, 128, elements, memory)[start : start + partitions]


# One call of each instruction; a table's change replaces arguments. ``t`` makes tiles.
CALLS = {
    "activate2": (activate2.activate2, lambda t: {
        "dst": t(), "op": act.copy, "data": t(), "imm0": 1.0, "imm1": None, "op0": nl.multiply, "op1": nl.bypass}),
    "activation": (scalar.activation, lambda t: {"dst": t(), "op": act.copy, "data": t()}),
    "activation_reduce": (scalar.activation_reduce, lambda t: {
        "dst": t(), "op": act.copy, "data": t(), "reduce_op": nl.add, "reduce_res": t(elements=1)}),
    "affine_select": (gpsimd.affine_select, lambda t: {
        "dst": t(), "pattern": [[1, 16]], "channel_multiplier": 1, "on_true_tile": t(), "on_false_value": 0.0}),
    "bn_aggr": (statistics.bn_aggr, lambda t: {"dst": t(elements=2), "data": t(elements=6)}),
    "bn_stats": (statistics.bn_stats, lambda t: {"dst": t(elements=6), "data": t()}),
    "dropout": (randomness.dropout, lambda t: {"dst": t(), "data": t(), "prob": 0.5}),
    "exponential": (statistics.exponential, lambda t: {"dst": t(), "src": t()}),
    "iota": (gpsimd.iota, lambda t: {"dst": t("int32"), "pattern": [[1, 16]]}),
    "local_gather": (gpsimd.local_gather, lambda t: {
        "dst": t(elements=16), "src_buffer": t(), "index": t("uint16", elements=1)}),
    "max8": (search.max8, lambda t: {"dst": t(elements=8), "src": t()}),
    "memset": (vector.memset, lambda t: {"dst": t(), "value": 0}),
    "nc_find_index8": (search.nc_find_index8, lambda t: {"dst": t("uint32", elements=8), "data": t(),
                                                         "vals": t(elements=8)}),
    "nc_match_replace8": (search.nc_match_replace8, lambda t: {
        "dst": t(), "data": t(), "vals": t(elements=8), "imm": 0.0, "dst_idx": t("uint32", elements=8)}),
    "nc_matmul": (tensor.nc_matmul, lambda t: {
        "dst": t("float32", 16, 16, "psum"), "stationary": t("bfloat16"), "moving": t("bfloat16")}),
    "nc_matmul_mx": (tensor.nc_matmul_mx, lambda t: {
        "dst": t("float32", 16, 16, "psum"), "stationary": t("float8_e5m2_x4"), "moving": t("float8_e5m2_x4"),
        "stationary_scale": t("uint8"), "moving_scale": t("uint8")}),
    "nc_n_gather": (gpsimd.nc_n_gather, lambda t: {"dst": t(), "data": t(), "indices": t("uint32")}),
    "nc_stream_shuffle": (search.nc_stream_shuffle, lambda t: {
        "dst": t(), "src": t(), "shuffle_mask": list(range(32))}),
    "nc_transpose": (tensor.nc_transpose, lambda t: {"dst": t("float32", 16, 32, "psum"), "data": t()}),
    "nonzero_with_count": (searches.nonzero_with_count, lambda t: {"dst": t("int32", elements=17), "src": t()}),
    "quantize_mx": (search.quantize_mx, lambda t: {
        "dst": t("float8_e5m2_x4", elements=4), "src": t("bfloat16"), "dst_scale": t("uint8", elements=4)}),
    "rand2": (randomness.rand2, lambda t: {"dst": t(), "min": 0.0, "max": 1.0}),
    "rand_get_state": (randomness.rand_get_state, lambda t: {"dst": t("uint32", elements=6)}),
    "rand_set_state": (randomness.rand_set_state, lambda t: {"src_seeds": t("uint32", elements=6)}),
    "range_select": (reductions.range_select, lambda t: {
        "dst": t(), "on_true_tile": t(), "comp_op0": nl.less, "comp_op1": nl.less, "bound0": t(elements=1),
        "bound1": t(elements=1)}),
    "reciprocal": (vector.reciprocal, lambda t: {"dst": t(), "data": t()}),
    "rng": (randomness.rng, lambda t: {"dst": t("uint32")}),
    "scalar_tensor_tensor": (vector.scalar_tensor_tensor, lambda t: {
        "dst": t(), "data": t(), "op0": nl.add, "operand0": 1.0, "op1": nl.add, "operand1": t()}),
    "select_reduce": (statistics.select_reduce, lambda t: {
        "dst": t(), "predicate": t("uint8"), "on_true": t(), "on_false": 0.0}),
    "sequence_bounds": (searches.sequence_bounds, lambda t: {
        "dst": t("int32", 1, 32), "segment_ids": t("int32", 1, 16)}),
    "set_rng_seed": (randomness.set_rng_seed, lambda t: {"src_seeds": t("uint32", 1, 1)}),
    "tensor_copy": (vector.tensor_copy, lambda t: {"dst": t(), "src": t()}),
    "tensor_copy_predicated": (vector.tensor_copy_predicated, lambda t: {
        "dst": t(), "src": t(), "predicate": t("uint8")}),
    "tensor_partition_reduce": (gpsimd.tensor_partition_reduce, lambda t: {
        "dst": t("float32", 1), "op": nl.add, "data": t()}),
    "tensor_reduce": (reductions.tensor_reduce, lambda t: {"dst": t(elements=1), "op": nl.add, "data": t(), "axis": 1}),
    "tensor_scalar": (vector.tensor_scalar, lambda t: {"dst": t(), "data": t(), "op0": nl.add, "operand0": 1.0}),
    "tensor_scalar_cumulative": (statistics.tensor_scalar_cumulative, lambda t: {
        "dst": t(), "src": t(), "op0": nl.add, "op1": nl.add, "imm0": 1.0}),
    "tensor_scalar_reduce": (reductions.tensor_scalar_reduce, lambda t: {
        "dst": t(), "data": t(), "op0": nl.add, "operand0": 1.0, "reduce_op": nl.add, "reduce_res": t(elements=1)}),
    "tensor_tensor": (vector.tensor_tensor, lambda t: {"dst": t(), "data1": t(), "data2": t(), "op": nl.add}),
    "tensor_tensor_scan": (reductions.tensor_tensor_scan, lambda t: {
        "dst": t(), "data0": t(), "data1": t(), "initial": 0.0, "op0": nl.multiply, "op1": nl.add}),
    "topk": (searches.topk, lambda t: {
        "val_dst": t("bfloat16", elements=4), "idx_dst": t("uint32", elements=4), "src": t("bfloat16"), "n": 20}),
}  # fmt: skip

NEWER = {
    "v3": ["nonzero_with_count", "rand_get_state", "rand_set_state", "range_select"],
    "v4": ["activate2", "exponential", "nc_matmul_mx", "quantize_mx", "rand2"],
}


def first_generation(name):
    return next((g for g, names in NEWER.items() if name in names), "v2")


def have(name):
    return GENERATIONS[GENERATIONS.index(first_generation(name)) :]


def call(name, core, **changes):
    function, arguments = CALLS[name]
    tiles = Tiles(core)
    given = arguments(tiles)
    given |= {k: v(tiles) if callable(v) and not hasattr(v, "kind") and not hasattr(v, "table") else v
              for k, v in changes.items()}  # fmt: skip
    return function(**given)


def engine_of(core):
    return CLASSES[core.trace.instruction_rows[-6]].engines


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_generations(name, generation):
    with running(generation) as core:
        if generation in have(name):
            call(name, core)
            return
        with pytest.raises(HardwareError, match=f"{name} does not exist on NeuronCore-{generation}"):
            call(name, core)


ENGINES = {
    ("memset", "v3"): ("vector", "gpsimd"),
    ("tensor_copy", "v2"): ("vector", "gpsimd"),
    ("tensor_copy", "v3"): ("vector", "scalar", "gpsimd"),
    ("tensor_tensor", "v3"): ("vector", "gpsimd"),
    ("nc_transpose", "v3"): ("vector", "tensor"),
    ("rng", "v2"): ("vector",),
    ("rng", "v3"): ("vector", "gpsimd"),
    ("rand_get_state", "v3"): ("gpsimd",),
    ("rand_set_state", "v3"): ("gpsimd",),
    ("tensor_scalar", "v2"): ("vector",),
    ("tensor_scalar", "v3"): ("vector", "scalar"),
}


@pytest.mark.parametrize(("name", "generation"), ENGINES)
@pytest.mark.parametrize("chosen", ["tensor", "vector", "scalar", "gpsimd", "sync"])
def test_engines(name, generation, chosen):
    with running(generation) as core:
        if chosen in ENGINES[name, generation]:
            call(name, core, engine=engine[chosen])
            assert engine_of(core) == (chosen,)
        else:
            assert_refused(HardwareError, "engine", lambda: call(name, core, engine=engine[chosen]))


@pytest.mark.parametrize("name", ["memset", "tensor_copy", "tensor_tensor", "rng"])
def test_gpsimd_does_not_reach_psum(name):
    with running("v3") as core:
        dtype = "uint32" if name == "rng" else "float32"
        with pytest.raises(HardwareError) as caught:
            call(name, core, dst=lambda t: t(dtype, memory="psum"), engine=engine.gpsimd)
        assert caught.value.operand == "engine"


# Memories of operands that the reference restricts: (function, operand): allowed.
SBUF, PSUM, BOTH = ("sbuf",), ("psum",), ("sbuf", "psum")
MEMORIES = {
    ("nc_matmul", "stationary"): SBUF, ("nc_matmul", "moving"): SBUF, ("nc_matmul", "dst"): PSUM,
    ("nc_matmul_mx", "stationary"): SBUF, ("nc_matmul_mx", "moving"): SBUF, ("nc_matmul_mx", "dst"): PSUM,
    ("nc_matmul_mx", "stationary_scale"): SBUF, ("nc_matmul_mx", "moving_scale"): SBUF,
    ("iota", "dst"): SBUF, ("affine_select", "dst"): SBUF, ("affine_select", "on_true_tile"): SBUF,
    ("nc_n_gather", "dst"): SBUF, ("nc_n_gather", "data"): SBUF, ("nc_n_gather", "indices"): SBUF,
    ("local_gather", "dst"): SBUF, ("local_gather", "src_buffer"): SBUF, ("local_gather", "index"): SBUF,
    ("nonzero_with_count", "dst"): SBUF, ("nonzero_with_count", "src"): SBUF,
    ("topk", "src"): SBUF, ("topk", "val_dst"): SBUF, ("topk", "idx_dst"): SBUF,
    ("quantize_mx", "src"): SBUF, ("quantize_mx", "dst"): SBUF, ("quantize_mx", "dst_scale"): SBUF,
    ("rand_set_state", "src_seeds"): SBUF, ("tensor_partition_reduce", "data"): SBUF,
    ("sequence_bounds", "segment_ids"): SBUF,
    ("rng", "dst"): BOTH, ("rand2", "dst"): BOTH, ("set_rng_seed", "src_seeds"): BOTH, ("dropout", "data"): BOTH,
    ("activation", "data"): BOTH, ("activation", "dst"): BOTH, ("activate2", "data"): BOTH, ("activate2", "dst"): BOTH,
    ("exponential", "src"): BOTH, ("exponential", "dst"): BOTH, ("reciprocal", "data"): BOTH,
    ("reciprocal", "dst"): BOTH, ("tensor_reduce", "data"): BOTH, ("tensor_reduce", "dst"): BOTH,
    ("tensor_scalar", "data"): BOTH, ("tensor_scalar", "dst"): BOTH, ("tensor_tensor", "dst"): BOTH,
    ("tensor_tensor", "data1"): BOTH, ("tensor_tensor", "data2"): BOTH, ("tensor_copy", "src"): BOTH,
    ("tensor_copy", "dst"): BOTH, ("select_reduce", "dst"): BOTH, ("select_reduce", "on_true"): BOTH,
    ("select_reduce", "predicate"): BOTH, ("tensor_copy_predicated", "dst"): BOTH,
    ("tensor_copy_predicated", "predicate"): BOTH, ("tensor_copy_predicated", "src"): BOTH,
    ("tensor_tensor_scan", "data0"): BOTH, ("tensor_tensor_scan", "data1"): BOTH,
    ("scalar_tensor_tensor", "data"): BOTH, ("scalar_tensor_tensor", "operand1"): BOTH, ("memset", "dst"): BOTH,
    ("nc_stream_shuffle", "src"): BOTH, ("nc_stream_shuffle", "dst"): BOTH, ("max8", "src"): BOTH,
    ("bn_stats", "data"): BOTH, ("bn_aggr", "data"): BOTH, ("range_select", "on_true_tile"): BOTH,
}  # fmt: skip


def moved(name, core, operand, memory=None, dtype=None):
    """The default operand in another memory or dtype."""
    _, arguments = CALLS[name]
    tiles = Tiles(core)
    view = arguments(tiles)[operand]
    return tiles(dtype or str(view.dtype), *view.shape, memory or view.memory)


@pytest.mark.parametrize(("name", "operand"), MEMORIES)
@pytest.mark.parametrize("memory", ["sbuf", "psum", "hbm"])
def test_memories(name, operand, memory):
    with running(have(name)[-1]) as core:
        change = {operand: moved(name, core, operand, memory)}
        if memory in MEMORIES[name, operand]:
            call(name, core, **change)
        else:
            assert_refused(HardwareError, operand, lambda: call(name, core, **change))


TWO_INPUTS = [
    ("tensor_tensor", "data1", "data2"), ("tensor_tensor_scan", "data0", "data1"),
    ("scalar_tensor_tensor", "data", "operand1"), ("select_reduce", "predicate", "on_true"),
    ("tensor_copy_predicated", "src", "predicate"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "second"), TWO_INPUTS)
def test_two_inputs_in_psum(name, first, second):
    with running("v3") as core:
        change = {x: moved(name, core, x, "psum") for x in (first, second)}
        assert_refused(HardwareError, second, lambda: call(name, core, **change))


MATMUL = ("float8_e4m3", "float8_e5m2", "float8_e3m4", "bfloat16", "float16")
NUMBERS = tuple(d for d in DTYPES if d not in PACKED)
DTYPE_TABLE = {
    ("nc_matmul", "moving", "v3"): MATMUL,
    ("nc_matmul", "stationary", "v4"): (*MATMUL, "float8_e4m3fn"),
    ("nc_matmul", "dst", "v2"): ("float32",),
    ("nc_matmul", "dst", "v3"): ("float32",),
    ("nc_matmul", "dst", "v4"): ("float32", "bfloat16"),
    ("nc_matmul_mx", "dst", "v4"): ("float32", "bfloat16"),
    ("nc_matmul_mx", "moving", "v4"): PACKED,
    ("nc_matmul_mx", "stationary", "v4"): PACKED,
    ("nc_matmul_mx", "moving_scale", "v4"): ("uint8", "float8_e8m0fnu"),
    ("nc_matmul_mx", "stationary_scale", "v4"): ("uint8", "float8_e8m0fnu"),
    ("quantize_mx", "src", "v4"): ("float16", "bfloat16"),
    ("quantize_mx", "dst", "v4"): ("float8_e5m2_x4", "float8_e4m3fn_x4"),
    ("quantize_mx", "dst_scale", "v4"): ("uint8", "float8_e8m0fnu"),
    ("tensor_copy_predicated", "predicate", "v3"): ("uint8", "uint16", "uint32"),
    ("tensor_scalar_cumulative", "src", "v3"): (*FLOATS, "float8_e4m3fn", "float8_e3m4", *INTEGERS[:4]),
    ("tensor_scalar_cumulative", "dst", "v3"): (*FLOATS, "float8_e4m3fn", "float8_e3m4", *INTEGERS[:4]),
    ("local_gather", "index", "v3"): ("uint16",),
    ("nc_n_gather", "indices", "v3"): ("uint32",),
    ("rng", "dst", "v3"): INTEGERS,
    ("rand2", "dst", "v4"): (*FLOATS, "tfloat32", *INTEGERS),
    ("set_rng_seed", "src_seeds", "v3"): ("float32", "tfloat32", "int32", "uint32"),
    ("rand_set_state", "src_seeds", "v3"): ("uint32",),
    ("rand_get_state", "dst", "v3"): ("uint32",),
    ("exponential", "dst", "v4"): (*FLOATS, "tfloat32", *INTEGERS[:5]),
    ("exponential", "src", "v4"): (*FLOATS, *INTEGERS),
    ("sequence_bounds", "dst", "v3"): ("float32", "int32"),
    ("sequence_bounds", "segment_ids", "v3"): ("float32", "int32"),
    ("range_select", "bound0", "v3"): ("float32",),
    ("range_select", "bound1", "v3"): ("float32",),
    ("range_select", "on_true_tile", "v3"): (*FLOATS, "tfloat32", "float8_e4m3fn", "float8_e3m4"),
    ("select_reduce", "predicate", "v3"): INTEGERS[:4],
    ("select_reduce", "on_true", "v3"): tuple(d for d in NUMBERS if d not in ("tfloat32", "int32", "uint32")),
    ("nc_find_index8", "dst", "v3"): ("uint16", "uint32"),
    ("nonzero_with_count", "src", "v3"): ("float32", "int32"),
    ("nonzero_with_count", "dst", "v3"): ("int32",),
    ("topk", "src", "v3"): ("bfloat16",),
    ("topk", "val_dst", "v3"): ("bfloat16",),
    ("topk", "idx_dst", "v3"): ("uint32",),
    ("nc_stream_shuffle", "dst", "v3"): ("float32",),
    ("nc_n_gather", "dst", "v3"): ("float32",),
    ("local_gather", "dst", "v3"): ("float32",),
    ("dropout", "dst", "v3"): ("float32",),
    ("tensor_copy_predicated", "src", "v3"): ("float32",),
    ("reciprocal", "data", "v3"): NUMBERS,
    ("activation", "data", "v3"): NUMBERS,
    ("max8", "src", "v3"): NUMBERS,
    ("tensor_tensor_scan", "data1", "v3"): NUMBERS,
    ("iota", "dst", "v3"): NUMBERS,
}


@pytest.mark.parametrize(("name", "operand", "generation"), DTYPE_TABLE)
def test_dtypes(name, operand, generation):
    for dtype in DTYPES:
        with running(generation) as core:
            change = {operand: moved(name, core, operand, dtype=dtype)}
            if dtype in DTYPE_TABLE[name, operand, generation]:
                call(name, core, **change)
                continue
            with pytest.raises(HardwareError) as caught:
                call(name, core, **change)
            text = str(caught.value)
            for part in (name, caught.value.operand, f"NeuronCore-{generation}"):
                assert str(part) in text, text
            assert caught.value.limit is not None


@pytest.mark.parametrize("operand", ["scale", "operand0", "operand1", "imm0", "imm1", "max_value", "reduce_init"])
def test_vectors_are_float32(operand):
    """Operands of one element a partition that the reference wants in float32."""
    name, extra = {
        "scale": ("activation", {}),
        "operand0": ("tensor_scalar", {}),
        "operand1": ("tensor_scalar", {"op1": nl.add}),
        "imm0": ("tensor_scalar_cumulative", {}),
        "imm1": ("tensor_scalar_cumulative", {"reduce_cmd": reduce_cmd.load_reduce}),
        "max_value": ("exponential", {}),
        "reduce_init": ("tensor_scalar_reduce", {"reduce_cmd": reduce_cmd.load_reduce}),
    }[operand]
    for dtype in DTYPES:
        with running("v4") as core:
            change = extra | {operand: lambda t, d=dtype: t(d, elements=1)}
            if dtype == "float32":
                call(name, core, **change)
            else:
                assert_refused(HardwareError, operand, lambda c=change, k=core: call(name, k, **c))


@pytest.mark.parametrize("name", ["tensor_copy", "activation", "tensor_reduce", "iota", "nc_matmul", "nc_transpose"])
@pytest.mark.parametrize("partitions", [1, 16, 32, 33, 64, 65, 96])
def test_start_partitions(name, partitions):
    """Up to 32 partitions start at 0, 32, 64 or 96, up to 64 at 0 or 64, more at 0."""
    for start in (0, 1, 16, 32, 48, 64, 96, 127):
        if start + partitions > 128:
            continue
        legal = start in ((0,) if partitions > 64 else (0, 64) if partitions > 32 else (0, 32, 64, 96))
        with running("v3") as core:
            tiles = Tiles(core)
            x = tiles.part(start, partitions)
            operand, change = {
                "tensor_copy": ("src", {"src": x, "dst": tiles(partitions=partitions)}),
                "activation": ("dst", {"dst": x, "data": tiles(partitions=partitions)}),
                "tensor_reduce": ("data", {"data": x, "dst": tiles(partitions=partitions, elements=1)}),
                "iota": ("dst", {"dst": x}),
                "nc_matmul": ("moving", {"moving": tiles.part(start, partitions, dtype="bfloat16"),
                                         "stationary": tiles("bfloat16", partitions)}),
                "nc_transpose": ("data", {"data": x, "dst": tiles("float32", 16, partitions, "psum")}),
            }[name]  # fmt: skip
            if legal:
                call(name, core, **change)
            else:
                assert_refused(HardwareError, operand, lambda c=change, k=core: call(name, k, **c))


BROKEN = [
    ("v4", HardwareError, "tile_size", "nc_matmul_mx", {"tile_position": (0, 0), "tile_size": (32, 64)}),
    ("v4", HardwareError, "tile_position", "nc_matmul_mx", {"tile_position": (0, 32), "tile_size": (32, 128)}),
    ("v4", HardwareError, "tile_position", "nc_matmul_mx", {"tile_position": (16, 0), "tile_size": (32, 128)}),
    ("v4", HardwareError, "tile_position", "nc_matmul_mx", {"tile_position": (128, 0), "tile_size": (32, 128)}),
    ("v4", HardwareError, "tile_size", "nc_matmul_mx", {"tile_position": (0, 0), "tile_size": (16, 128)}),
    ("v4", CompilerError, "tile_size", "nc_matmul_mx", {"tile_position": (0, 0)}),
    ("v4", CompilerError, "tile_size", "nc_matmul_mx", {"tile_size": (32, 128)}),
    ("v4", HardwareError, "stationary", "nc_matmul_mx", {
        "stationary": lambda t: t("float8_e5m2_x4", 64), "moving": lambda t: t("float8_e5m2_x4", 64),
        "stationary_scale": lambda t: t("uint8", 64), "moving_scale": lambda t: t("uint8", 64),
        "tile_position": (0, 0), "tile_size": (32, 128)}),
    ("v3", CompilerError, "tile_size", "nc_matmul", {"tile_size": (32, 128)}),
    ("v3", HardwareError, "tile_position", "nc_matmul", {"tile_position": (128, 0), "tile_size": (32, 128)}),
    ("v3", HardwareError, "tile_position", "nc_matmul", {"tile_position": (0, -32), "tile_size": (32, 32)}),
    ("v3", CompilerError, "reverse0", "tensor_scalar_reduce", {"reverse0": True}),
    ("v3", CompilerError, "operand0", "tensor_scalar", {"op0": nl.abs, "operand0": 1.0}),
    ("v3", CompilerError, "operand1", "tensor_scalar", {"op1": nl.square, "operand1": 3}),
    ("v3", CompilerError, "operand0", "tensor_scalar_reduce", {"op0": nl.abs, "operand0": 2.0}),
    ("v3", CompilerError, "operand0", "scalar_tensor_tensor", {"op0": nl.abs, "operand0": 2.0}),
    ("v3", CompilerError, "offset", "iota", {"offset": 1.5}),
    ("v3", CompilerError, "offset", "iota", {"offset": 2**31}),
    ("v3", CompilerError, "channel_multiplier", "iota", {"channel_multiplier": -(2**31) - 1}),
    ("v3", CompilerError, "channel_multiplier", "affine_select", {"channel_multiplier": 0.5}),
    ("v3", CompilerError, "pattern", "affine_select", {"pattern": [[0.5, 16]]}),
    ("v3", CompilerError, "pattern", "iota", {"pattern": None}),
    ("v3", CompilerError, "offset", "iota", {"offset": "1"}),
    ("v3", CompilerError, "value", "memset", {"value": "1"}),
    ("v3", CompilerError, "value", "memset", {"value": None}),
    ("v3", CompilerError, "value", "memset", {"dst": lambda t: t("int32"), "value": float("nan")}),
    ("v3", CompilerError, "on_false_value", "affine_select", {"on_false_value": lambda t: t(elements=1)}),
    ("v3", CompilerError, "on_false_value", "affine_select", {"on_false_value": None}),
    ("v3", CompilerError, "imm", "nc_match_replace8", {"imm": None}),
    ("v3", CompilerError, "imm", "nc_match_replace8", {"imm": lambda t: t(elements=1)}),
    ("v3", CompilerError, "shuffle_mask", "nc_stream_shuffle", {"shuffle_mask": None}),
    ("v3", CompilerError, "shuffle_mask", "nc_stream_shuffle", {"shuffle_mask": ["a"] * 32}),
    ("v3", HardwareError, "shuffle_mask", "nc_stream_shuffle", {"shuffle_mask": [0] * 31}),
    ("v3", HardwareError, "shuffle_mask", "nc_stream_shuffle", {"shuffle_mask": [32] * 32}),
    ("v3", HardwareError, "axis", "tensor_reduce", {"axis": "1"}),
    ("v3", HardwareError, "axis", "tensor_reduce", {"axis": 5}),
    ("v3", CompilerError, "n", "topk", {"n": 20.5}),
    ("v3", CompilerError, "tile_position", "nc_matmul", {"tile_position": (0,), "tile_size": (32, 32)}),
    ("v4", CompilerError, "tile_size", "nc_matmul_mx", {"tile_position": (0, 0), "tile_size": (32,)}),
    ("v3", CompilerError, "accumulate", "nc_matmul", {"accumulate": "yes"}),
    ("v4", CompilerError, "accumulate", "nc_matmul_mx", {"accumulate": 1.0}),
    ("v3", HardwareError, "perf_mode", "nc_matmul", {"perf_mode": "triple"}),
    ("v3", HardwareError, "pattern", "iota", {"pattern": [[1, 1]] * 4 + [[1, 16]]}),
    ("v3", HardwareError, "pattern", "iota", {"pattern": [[1, 15]]}),
    ("v3", HardwareError, "data", "bn_stats", {"data": lambda t: t(elements=513)}),
    ("v3", HardwareError, "data", "bn_aggr", {"data": lambda t: t(elements=5)}),
    ("v3", HardwareError, "src", "max8", {"src": lambda t: t(elements=7)}),
    ("v3", HardwareError, "src", "max8", {"src": lambda t: t(elements=16385)}),
    ("v3", HardwareError, "dst", "max8", {"dst": lambda t: t(elements=7)}),
    ("v3", HardwareError, "axis", "tensor_reduce", {"axis": 0}),
    ("v3", HardwareError, "data", "nc_transpose", {
        "data": lambda t: t(elements=129), "dst": lambda t: t("float32", 128, 32, "psum")[:, :32]}),
    ("v3", HardwareError, "src_buffer", "local_gather", {
        "src_buffer": lambda t: t(partitions=24), "index": lambda t: t("uint16", 24, 1),
        "dst": lambda t: t("float32", 24)}),
    ("v3", HardwareError, "num_elem_per_idx", "local_gather", {"num_elem_per_idx": 3}),
    ("v3", HardwareError, "num_valid_indices", "local_gather", {"num_valid_indices": 17}),
    ("v3", HardwareError, "on_false_value", "range_select", {"on_false_value": 0.0}),
    ("v3", HardwareError, "reduce_op", "select_reduce", {"reduce_op": nl.add}),
    ("v3", HardwareError, "reduce_op", "activation", {"reduce_op": nl.maximum}),
    ("v2", HardwareError, "bias", "activation", {"bias": 1.0}),
    ("v3", HardwareError, "bias", "activation", {"bias": lambda t: t("tfloat32", elements=1)}),
    ("v3", HardwareError, "op", "tensor_partition_reduce", {"op": nl.minimum}),
    ("v3", HardwareError, "op0", "scalar_tensor_tensor", {"op0": nl.bitwise_and, "operand0": 1}),
    ("v3", HardwareError, "op1", "tensor_scalar", {"op1": nl.bitwise_and, "operand1": 1}),
    ("v3", HardwareError, "n", "topk", {"n": 7}),
    ("v3", HardwareError, "src", "topk", {"n": 257}),
    ("v4", HardwareError, "src", "quantize_mx", {
        "src": lambda t: t("bfloat16", 16), "dst": lambda t: t("float8_e5m2_x4", 16, 4)}),
    ("v4", HardwareError, "src", "quantize_mx", {"src": lambda t: t("bfloat16", 32, 15)}),
    ("v3", HardwareError, "value", "memset", {"dst": lambda t: t("float8_e5m2_x4"), "value": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "kind", "operand", "name", "changes"), BROKEN)
def test_broken_calls(generation, kind, operand, name, changes):
    with running(generation) as core:
        assert_refused(kind, operand, lambda: call(name, core, **changes))


def test_every_instruction_of_the_engines_is_here():
    """Registers, DMA and what two cores do together have tests of their own."""
    from trnsim.machine.trace import INSTRUCTIONS

    elsewhere = {"dma_copy", "dma_transpose", "dma_compute", "sendrecv", "core_barrier", "register_move",
                 "register_load", "register_store"}  # fmt: skip
    names = {name.removeprefix("nki.isa.").split(".")[0] for name in INSTRUCTIONS if name.startswith("nki.isa.")}
    assert names - elsewhere <= set(CALLS)
    assert issubclass(HardwareError, TrnsimError)
    assert dma.dma_copy is not None
