"""Write docs/reference/coverage.md: which documented functions of NKI exist here, by generation, and who tests them.

``python scripts/coverage_table.py`` writes the file, ``--check`` says whether it is still right. Support and
generations of instructions come from the code; the names, and the generations of functions that are no instructions,
are those of the NKI 0.6 reference.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reference" / "coverage.md"
GENERATIONS = ("v2", "v3", "v4")

DOCUMENTED = {
    "nki": "jit simulate",
    "nki.isa": """
        activate2 activation activation_reduce affine_select bn_aggr bn_stats core_barrier dma_compute dma_copy
        dma_transpose dropout exponential get_nc_sub_version get_nc_version iota local_gather max8 memset nc_find_index8
        nc_match_replace8 nc_matmul nc_matmul_mx nc_n_gather nc_stream_shuffle nc_transpose nonzero_with_count
        quantize_mx rand2 rand_get_state rand_set_state range_select reciprocal register_alloc register_load
        register_move register_store rng scalar_tensor_tensor select_reduce sendrecv sequence_bounds set_rng_seed
        tensor_copy tensor_copy_predicated tensor_partition_reduce tensor_reduce tensor_scalar tensor_scalar_cumulative
        tensor_scalar_reduce tensor_tensor tensor_tensor_scan topk""",
    "nki.language": """
        abs abs_max abs_min add affine_range all arctan average bitwise_and bitwise_or bitwise_xor broadcast_to bypass
        ceil copy cos
        device_print divide dropout ds dynamic_range empty_like equal erf erf_dx exp expand_dims floor fmod fori_loop
        full gather_flattened gelu gelu_apprx_sigmoid gelu_apprx_sigmoid_dx gelu_apprx_tanh gelu_dx greater
        greater_equal invert is_hbm is_on_chip is_psum is_sbuf left_shift less less_equal load load_transpose2d log
        logical_and logical_not logical_or logical_xor matmul max maximum mean min minimum mish mod multiply ndarray
        negative no_reorder not_equal num_programs ones power prelu prod program_id program_ndim rand random_seed
        reciprocal
        relu right_shift rms_norm rsqrt sequential_range shared_constant shared_identity_matrix sigmoid sign silu
        silu_dx sin softmax softplus sqrt square static_range store subtract sum tan tanh transpose trunc var where
        while_loop zeros zeros_like""",
    "nki.collectives": """
        all_gather all_gather_v all_reduce all_to_all all_to_all_v collective_permute collective_permute_implicit
        collective_permute_implicit_current_processing_rank_id collective_permute_implicit_reduce rank_id
        reduce_scatter""",
}
# Enums, classes and constants, with their documented members.
ENUMS = {
    "nki.isa": {
        "engine": "tensor vector scalar gpsimd dma sync unknown",
        "reduce_cmd": "idle reset reduce reset_reduce load_reduce",
        "dge_mode": "unknown swdge hwdge none",
        "oob_mode": "error skip",
        "matmul_perf_mode": "none double_row",
        "nc_version": "gen2 gen3 gen4",
        "dma_engine": "dma gpsimd_dma",
        "NkiInstruction": "depends_on",
        "NkiValidationError": "",
        "VirtualRegister": "",
    },
    "nki.language": {
        "MemoryRegion": "sbuf psum private_hbm shared_hbm",
        "NkiTensor": """
            ap broadcast expand_dim flatten_dims get_pattern indirect is_contiguous is_indirect permute rearrange
            reinterpret_cast reshape reshape_dim select slice squeeze_dim vector_select view""",
        "NKIObject": "",
        "DType": "",
        "tile_size": """
            bn_stats_fmax gemm_moving_fmax gemm_stationary_fmax pmax psum_bank_fmax psum_bank_fmax_bytes psum_fmax
            psum_min_align psum_num_banks sbuf_fmax sbuf_fmax_bytes sbuf_min_align sbuf_size_bytes
            total_available_sbuf_size""",
    },
    "nki.collectives": {"ReplicaGroup": ""},
    "nki.typing": {"tensor": "", "mutable_tensor": "", "mutable": "", "immutable": "", "scalar": ""},
}
DTYPES = """
    float32 tfloat32 bfloat16 float16 float8_e4m3 float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fn_x4
    float8_e5m2_x4 float4_e2m1fn_x4 int8 int16 int32 uint8 uint16 uint32 bool_"""
# Generations that the reference gives for functions that are no instructions.
NEWER = {"nki.language.abs_max": ("v4",), "nki.language.abs_min": ("v4",)}
# Files that name every function to check what it refuses, not what it computes.
LIMITS = ("test_documented_limits.py",)
TESTS = {"nki": "nki", "nki.isa": "isa", "nki.language": "nki", "nki.collectives": "nki"}


def supported(module: str, name: str) -> bool:
    """True if trnsim's module has the function."""
    from trnsim.errors import UnsupportedError

    try:
        return callable(getattr(importlib.import_module(f"trnsim.{module}"), name))
    except (AttributeError, UnsupportedError):
        return False


def generations(module: str, name: str) -> tuple[str, ...]:
    """NeuronCores that have the function."""
    from trnsim.machine.trace import INSTRUCTIONS

    full = f"{module}.{name}"
    if full in INSTRUCTIONS:
        return tuple(INSTRUCTIONS[full].generations)
    return NEWER.get(full, GENERATIONS)


@cache
def test_files(folder: str) -> tuple[tuple[str, str], ...]:
    """Test files of a folder with their text; those of limits alone are left out."""
    found = [p for p in sorted((ROOT / "tests" / "unit" / folder).glob("test_*.py")) if p.name not in LIMITS]
    return tuple((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in found)


def tested(module: str, name: str) -> str:
    """The file that checks a function's numbers: with it in a test's name, or else the one that calls it most often.

    Functions of ``nki.language`` are operators too, handed on more often than called: there a mention counts, in the
    files about that module first.
    """
    files = test_files(TESTS[module])
    for path, text in files:
        if re.search(rf"def test_{name}(_|\()", text):
            return path
    own = [f for f in files if Path(f[0]).name.startswith("test_language_")] if module == "nki.language" else []
    others = test_files("isa" if TESTS[module] == "nki" else "nki")
    for pattern in (rf"\b{name}\b",) if own else (rf"\b{name}\(", rf"\b{name}\b"):
        for group in filter(None, (own, files, others)):
            counts = [(len(re.findall(pattern, text)), path) for path, text in group]
            most = max(counts)[0]
            if most:
                return min(path for count, path in counts if count == most)
    return ""


def members(module: str, name: str, documented: list[str]) -> str:
    """A row: which documented members of an enum, class or set of constants are there."""
    found = getattr(importlib.import_module(f"trnsim.{module}"), name, None)
    there = [m for m in documented if hasattr(found, m)]
    missing = [m for m in documented if m not in there]
    shown = ("all" if documented and not missing else ", ".join(there)) or ("yes" if found is not None else "no")
    return f"| `{name}` | {shown} | {', '.join(missing) or '-'} |"


def number_format(name: str) -> str:
    """A row: a number format, and the file that checks its encoding."""
    found = getattr(importlib.import_module("trnsim.nki.language"), name, None)
    test = "tests/unit/numerics/test_casts.py" if found is not None and found.kind in ("float", "int", "uint") else ""
    test = test or ("tests/unit/numerics/test_mx.py" if found is not None and found.kind != "bool" else "")
    size = found.itemsize if found is not None else "-"
    return f"| `{name}` | {size} | {'yes' if found is not None else 'no'} | {test or '-'} |"


def table() -> str:
    """The file's text."""
    lines = [
        "# What of NKI 0.6 is there",
        "",
        "Written by `scripts/coverage_table.py` from the code; a test fails when it is stale. Each",
        "documented function: the generations that have it, whether trnsim supports it, and the file that checks its",
        "numbers.",
        "",
    ]
    for module, names in DOCUMENTED.items():
        rows = []
        count = 0
        for name in names.split():
            there = supported(module, name)
            count += there
            has = generations(module, name)
            marks = [("yes" if there else "no") if g in has else "-" for g in GENERATIONS]
            test = tested(module, name) if there else ""
            rows.append(f"| `{name}` | {' | '.join(marks)} | {test or '-'} |")
        lines += [f"## {module}", "", f"{count} of {len(rows)} functions.", ""]
        lines += ["| function | v2 | v3 | v4 | test |", "| --- | --- | --- | --- | --- |", *rows, ""]
    for module, enums in ENUMS.items():
        lines += [f"## Enums, classes and constants of {module}", "", "| name | members there | missing |"]
        lines += ["| --- | --- | --- |", *(members(module, n, m.split()) for n, m in enums.items()), ""]
    lines += [
        "## Number formats (`nki.language`)",
        "",
        "| format | bytes | there | test |",
        "| --- | --- | --- | --- |",
    ]
    lines += [*map(number_format, DTYPES.split()), ""]
    lines.append("`-`: this generation does not have it. The time of collectives is not modelled yet.")
    return "\n".join(lines) + "\n"


def stale() -> list[str]:
    """What is out of date: support or generations, or a test file that no longer names its function."""
    if not TARGET.exists():
        return ["it is missing"]
    lines = TARGET.read_text(encoding="utf-8").splitlines()
    row = re.compile(r"(\| `(\w+)` (?:\| (?:yes|no|-) ){3}\|) (tests\S+) \|")
    if [row.sub(r"\1", line) for line in lines] != [row.sub(r"\1", line) for line in table().splitlines()]:
        return ["it does not say what the code does"]
    wrong = []
    for found in filter(None, map(row.fullmatch, lines)):
        path = ROOT / found[3]
        if not path.is_file() or not re.search(rf"(\b|_){found[2]}(\b|_)", path.read_text(encoding="utf-8")):
            wrong.append(f"{found[3]} does not name {found[2]}")
    return wrong


def main() -> int:
    """Write or check the file."""
    if "--check" in sys.argv[1:]:
        wrong = stale()
        print(
            f"{TARGET.relative_to(ROOT)}: {'; '.join([*wrong, 'run scripts/coverage_table.py']) if wrong else 'fine'}"
        )
        return int(bool(wrong))
    TARGET.write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
