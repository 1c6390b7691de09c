"""The files that ship: each loads, each fact has source and date, and well-known values are as documented."""

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trnsim.hardware
from trnsim.hardware import chip_names, load_chip, load_system, system_names

ROOT = Path(trnsim.hardware.__file__).parent
CHIPS = chip_names()
SYSTEMS = system_names()
DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


def test_the_catalogue_is_whole():
    assert CHIPS[:5] == ("inf1", "inf2", "trn1", "trn2", "trn3")
    assert {"a100", "h100", "h200", "b200", "b300", "gb200", "gb300"} <= set(CHIPS)
    assert {"inf1.24xlarge", "inf2.48xlarge", "trn1.32xlarge", "trn1n.32xlarge", "trn2.48xlarge"} <= set(SYSTEMS)
    assert {"trn2-ultraserver", "trn3-ultraserver-gen1", "trn3-ultraserver-gen2", "p5.48xlarge"} <= set(SYSTEMS)


@pytest.mark.parametrize(("load", "name"), [(load_chip, n) for n in CHIPS] + [(load_system, n) for n in SYSTEMS])
def test_each_file_loads_with_source_and_date(load, name):
    item = load(name)
    assert item.name == name
    assert item.facts
    for key, fact in item.facts.items():
        assert fact.source, key
        assert DATE.fullmatch(fact.date), key
        assert fact.confidence != "unsourced", key
        assert "recalled" not in fact.source, key
        assert fact.why or fact.confidence in {"published", "reported"}, key
        for other in fact.alternatives:
            assert other.source, key
            assert DATE.fullmatch(other.date), key
            assert (other.value, other.source) != (fact.value, fact.source), key
    for price in item.prices:
        assert price.source
        assert DATE.fullmatch(price.date)
        assert price.usd_per_hour > 0


def test_aliases_are_unique_and_hide_no_name():
    for load, names in ((load_chip, CHIPS), (load_system, SYSTEMS)):
        aliases = [alias for name in names for alias in load(name).aliases]
        assert len(aliases) == len(set(aliases))
        assert not set(aliases) & set(names)
        assert all(alias == alias.lower() for alias in aliases)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *(("gen2", "trn1"), ("gen3", "trn2"), ("gen4", "trn3"), ("Trainium2", "trn2"), ("TRN3", "trn3")),
        *(("inferentia2", "inf2"), ("Inferentia", "inf1"), ("A100-80GB", "a100"), (" h100 ", "h100")),
    ],
)
def test_aliases(alias, name):
    assert load_chip(alias) is load_chip(name)


# name: clocks (GHz: tensor, vector, scalar, gpsimd), SBUF KiB a partition, usable bytes, DMA B/ns, HBM GiB, cores, LNC
CORES = [
    ("inf2", "v2", (2.8, 1.12, 1.4, 1.4), 192, 180224, 17, 32, 2, 1),
    ("trn1", "v2", (2.8, 1.12, 1.4, 1.4), 192, 180224, 17, 32, 2, 1),
    ("trn2", "v3", (2.4, 0.96, 1.2, 1.2), 224, 212984, 23, 96, 8, 2),
    ("trn3", "v4", (2.4, 1.2, 1.2, 1.2), 256, 245752, 33, 144, 8, 2),
]


@pytest.mark.parametrize("row", CORES, ids=lambda row: row[0])
def test_neuron_cores(row):
    name, version, clocks, sbuf, usable, dma, hbm, cores, lnc = row
    chip = load_chip(name)
    core = chip.core
    assert core.version == version
    assert chip.nc_version == int(version[1])
    engines = [core.engines[e].clock_hz for e in ("tensor", "vector", "scalar", "gpsimd")]
    assert engines == [round(c * 1e9) for c in clocks]
    assert set(core.engines) == {"tensor", "vector", "scalar", "gpsimd", "sync"}
    assert (core.tensor.rows, core.tensor.columns) == (128, 128)
    assert (core.sbuf.partitions, core.sbuf.bytes_per_partition) == (128, sbuf * 1024)
    assert core.sbuf.usable_bytes_per_partition == usable
    assert (core.psum.partitions, core.psum.banks, core.psum.bytes_per_bank) == (128, 8, 2048)
    assert (core.dma.engines, core.dma.bytes_per_second_per_engine) == (16, dma * 10**9)
    assert chip.hbm.capacity_bytes == hbm * 2**30
    assert (chip.core_count, chip.default_lnc) == (cores, lnc)
    assert chip.core_count * core.dma.engines == chip.dma_engines
    assert chip.facts["core.engines.vector.clock"].value == f"{clocks[1]:g} GHz"


def test_rates_of_matrix_multiplication():
    trn2, trn3 = load_chip("trn2"), load_chip("trn3")
    assert trn2.core.tensor.flops("bfloat16") == 2 * 128 * 128 * 2.4e9  # 78.64 TFLOPS, the base of published MFU
    assert trn2.matmul_flops("float8_e4m3") == 2 * trn2.matmul_flops("bfloat16")
    assert (
        trn3.matmul_flops("float8_e4m3fn_x4")
        == trn3.matmul_flops("float4_e2m1fn_x4")
        == 4 * trn3.matmul_flops("bfloat16")
    )
    assert trn2.peak_flops("bfloat16") == 667e12
    assert trn3.peak_flops("float4_e2m1fn_x4") == 2517e12
    assert trn2.core.tensor.flops("mxfp8") is None
    for name in ("inf2", "trn1", "trn2", "trn3"):
        chip = load_chip(name)
        for dtype in chip.core.tensor.products:
            assert chip.matmul_flops(dtype) == pytest.approx(chip.peak_flops(dtype), rel=0.17), (name, dtype)


def test_conflicts_are_kept():
    facts = load_chip("trn3").facts
    assert {a.value for a in facts["scale_up.bandwidth"].alternatives} == {"2048 GiB/s", "704 GB/s"}
    assert facts["hbm.bandwidth"].alternatives[0].value == "4.7 TB/s"
    assert load_chip("trn2").facts["flops.bfloat16"].alternatives[0].value == "632 TFLOPS"


def test_nvidia_has_what_a_planner_needs():
    for name in CHIPS:
        chip = load_chip(name)
        if chip.family == "nvidia":
            assert chip.core is None
            assert chip.nc_version is None
            assert chip.peak_flops("bfloat16") > 1e14
            assert chip.scale_up.direction == "one way"
            assert chip.power.tdp_watts >= 400


@pytest.mark.parametrize(
    ("name", "chip", "chips", "domain"),
    [
        ("inf2.48xlarge", "inf2", 12, 12),
        ("trn1.32xlarge", "trn1", 16, 16),
        ("trn2.48xlarge", "trn2", 16, 16),
        ("trn2-ultraserver", "trn2", 64, 64),
        ("trn3-ultraserver-gen1", "trn3", 64, 64),
        ("trn3-ultraserver-gen2", "trn3", 144, 144),
        ("p4d.24xlarge", "a100-40gb", 8, 8),
        ("p5en.48xlarge", "h200", 8, 8),
        ("gb200-nvl72", "gb200", 72, 72),
    ],
)
def test_systems(name, chip, chips, domain):
    system = load_system(name)
    assert system.chip is load_chip(chip)
    assert (system.chip_count, system.topology.domain) == (chips, domain)
    assert system.hbm_bytes == chips * system.chip.hbm.capacity_bytes


def test_bandwidth_and_prices_of_systems():
    trn2 = load_system("TRN2")
    assert trn2.scale_up_bytes_per_second == 1024 * 10**9
    assert load_system("trn1.2xlarge").scale_up_bytes_per_second == 0
    assert trn2.scale_out_bytes_per_second_per_chip == 25e9
    assert trn2.price("on-demand") is None
    assert trn2.price("capacity-block").usd_per_hour == 35.7608
    p5 = load_system("p5")
    assert p5.price("capacity-block").usd_per_hour == 37.76  # the cheapest region of the newest day
    assert p5.price("capacity-block", region="us-east-1").usd_per_hour == 41.528
    assert p5.price("capacity-block", date="2026-01-31", region="us-west-1").usd_per_hour == 39.33


def test_frozen_hashable_and_picklable():
    for item in (load_chip("trn2"), load_system("trn2")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            item.name = "other"
        with pytest.raises(TypeError):
            item.facts["name"] = None
        copy = pickle.loads(pickle.dumps(item))
        assert copy == item
        assert hash(copy) == hash(item)
    assert load_chip("trn2") != load_chip("trn3")


def test_loading_imports_nothing_heavy():
    code = (
        "import sys; from trnsim.hardware import load_chip; load_chip('trn2');"
        "print([m for m in ('numpy', 'numba', 'rich', 'torch', 'jax') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_shipped_file_is_a_chip_a_core_or_a_system():
    for folder in ("chips", "systems"):
        for path in (ROOT / folder).glob("*.toml"):
            assert path.stem.lower() == path.stem
            assert path.name[:-5] in (*CHIPS, *SYSTEMS)
