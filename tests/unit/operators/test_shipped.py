"""Surfaces that come with the package: what makes them stale, that they are not, and chips that a user changed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from trnsim.cli import app
from trnsim.hardware import load_chip, load_timing
from trnsim.operators import building, decides, shipped
from trnsim.operators import prepare as prepared
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.packing import pack, unpack
from trnsim.operators.prepare import prepare, uses
from trnsim.operators.samples import Sampler
from trnsim.operators.store import Store

CONTRACTS = contracts()
CHIPS = ("trn1", "trn2", "trn3", "inf2")
SMALL = "softmax"
AGAIN = "run make surfaces"
SUPPORT = ("calibrated", "interpolated", "extrapolated", "assumed")


def code(text):
    return decides.parsed_hash(text.encode())


CODE = '"""Doc."""\nA = 1  # why\n\n\ndef f(x: int) -> int:\n    """More."""\n    return x + A\n'


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('"""Another."""\nA = 1\ndef f(x: int) -> int:\n    return (x +\n            A)\n', True),
        (CODE.replace("\n", "\r\n"), True),
        (CODE.replace("A = 1", 'A = 1\n"""Of an attribute."""'), True),
        (CODE.replace("A = 1", "A = 2"), False),
        (CODE.replace("x + A", "A + x"), False),
        (CODE.replace("return x + A", 'return "x + A"'), False),
        (CODE.replace("(x: int)", "(x: int = 0)"), False),
    ],
)
def test_hashes_are_of_what_code_does(other, same):
    assert (code(other) == code(CODE)) is same


def test_what_decides_an_operator():
    files = decides.surface_files(CONTRACTS["matmul"])
    assert {"kernels/matmul.py", "kernels/tiles.py", "isa/tensor.py", "timing/machine.py", "nki/isa.py"} <= set(files)
    assert not {"kernels/softmax.py", "report/view.py", "nki/versions/views.py", "commands/operators.py"} & set(files)
    assert not any(file.startswith("timing/") for file in decides.trace_files(CONTRACTS["matmul"]))
    assert {"kernels/mlp.py", "kernels/blocks.py"} <= set(decides.surface_files(CONTRACTS["gated_mlp"]))


@pytest.mark.parametrize(
    ("chip", "same"),
    [
        ("inf2", "trn1"),
        ("trn2[core_count=16]", "trn2"),
        ("trn3[hbm.bandwidth=6TB/s]", "trn3"),
        ("trn3[hbm.bandwidth=0.3TB/s]", None),
        ("trn2[dma.packet=9ns]", None),
        ("trn3", None),
    ],
)
def test_facts_that_times_depend_on(chip, same):
    found = {name: decides.facts_of(load_chip(name)) for name in CHIPS}
    mine = decides.facts_of(load_chip(chip))
    assert [n for n in CHIPS if found[n] == mine and n != chip] == ([same] if same else [])


def test_errors_told_beside_times_are_no_facts(monkeypatch):
    chip = load_chip("trn2")
    known, timing = decides.facts_of(chip), load_timing(chip)
    told = replace(timing, error_percent=1.0, tensorizer_error_percent=2.0)
    for changed, same in ((told, True), (replace(timing, exclusive_ports=True), False)):
        monkeypatch.setattr(decides, "load_timing", lambda _, changed=changed: changed)
        assert (decides._facts.__wrapped__(chip) == known) is same


def test_the_shipped_surfaces_are_not_stale():
    there = shipped.shipped()
    assert there is not None, AGAIN
    assert there.stale(CONTRACTS.values()) == [], AGAIN
    assert set(there.table.facts) == set(CHIPS)
    assert shipped.FILE.stat().st_size < 5_000_000


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("operator", [name for name in CONTRACTS if any(uses(name))])
def test_shipped_samples_are_what_kernels_take(chip, operator):
    """The sample of the fewest instructions of each surface, simulated now: what a hash of code could miss."""
    contract, loaded = CONTRACTS[operator], load_chip(chip)
    there = shipped.shipped()
    entries = there.entries(contract, loaded) if there is not None else []
    assert entries or not any(d in contract.dtypes[loaded.core.version] for d, _ in uses(operator)), AGAIN
    for entry in sorted(entries, key=lambda e: e.key)[:: max(1, len(entries) // 2)]:
        made = unpack(entry.surface)
        point, values = min(made.samples.items(), key=lambda item: item[1][2])
        given = {**entry.sizes, **entry.options}
        problem = contract.problem(entry.dtype, entry.cores, given, loaded.core.version)
        sampler = Sampler(chip)
        found = building.simulated(contract, problem, made.axes, point, lambda use, s=sampler: s(contract, use))
        assert found[0].tolist() == values.tolist(), AGAIN
        # A surface is known as its last sample is; this is another.
        assert SUPPORT.index(found[1]) <= SUPPORT.index(made.support), AGAIN


def test_every_group_of_uses_has_one_that_is_allowed():
    for name, contract in CONTRACTS.items():
        found = list(uses(name))
        unknown = {dtype for dtype, _ in found} - {d for dtypes in contract.dtypes.values() for d in dtypes}
        assert not unknown, name
        assert all(set(contract.sizes) | set(contract.options) >= set(given) for _, given in found), name


def test_shapes_go_together_and_with_each_value_of_others(tmp_path, monkeypatch):
    file = tmp_path / "uses.toml"
    file.write_text(
        '[[matmul]]\ndtypes = ["bfloat16", "float32"]\nsizes = { m = [1, 2] }\noptions = { contract_lhs = [1] }\n'
        '[matmul.shapes]\nnames = ["k", "n"]\nvalues = [[3, 4], [5, 6]]\n[[matmul]]\ndtypes = []\n'
    )
    monkeypatch.setattr(prepared, "USES", file)
    prepared.read_uses.cache_clear()
    try:
        found = {(dtype, *given.values()): tuple(given) for dtype, given in uses("matmul")}
    finally:
        prepared.read_uses.cache_clear()
    assert set(found.values()) == {("k", "n", "m", "contract_lhs")}
    expected = {(d, *kn, m, 1) for d in ("bfloat16", "float32") for kn in ((3, 4), (5, 6)) for m in (1, 2)}
    assert set(found) == expected


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Surfaces of one operator on trn2 and on one that was changed, by two processes."""
    path = tmp_path_factory.mktemp("store") / "operators.db"
    chips = ("trn2", CHANGED)
    return path, {c: prepare(c, path, workers=2, operators=frozenset({SMALL}), use_shipped=False) for c in chips}


CHANGED = "trn2[core.engines.vector.clock=1.2GHz,dma.packet=12ns]"


def test_a_changed_chip_has_times_of_its_own_at_the_knots_there_were(made, tmp_path):
    path, found = made
    before, after = found["trn2"], found[CHANGED]
    assert before.errors == after.errors == []
    assert (before.made, after.made) == (before.surfaces, after.surfaces)
    assert before.traced > 0
    assert (after.traced, after.timed > 0) == (0, True)
    assert after.timed < before.timed / 2  # knots are not looked for again
    changed = KernelCosts(CHANGED, 1, Store(path), use_shipped=False)
    plain = KernelCosts("trn2", 1, Store(path), use_shipped=False)
    for given in ({"rows": 300, "width": 4096}, {"rows": 5000, "width": 4096}):
        costs = [costs.cost(SMALL, "bfloat16", **given) for costs in (changed, plain)]
        whole = changed.simulated(SMALL, "bfloat16", **given)
        assert costs[0].time_ps == pytest.approx(whole.time_ps, rel=0.02)
        assert costs[0].time_ps != costs[1].time_ps
        assert (costs[0].support, costs[1].support != "what-if") == ("what-if", True)
        otherwise = f"otherwise {costs[1].support}: {costs[1].reason}"
        assert costs[0].reason == f"set by the user: {load_chip(CHANGED).changed}; {otherwise}"


def test_samples_of_a_changed_chip_are_those_of_a_fresh_one(made, tmp_path):
    file = tmp_path / "fresh.toml"
    file.write_text('base = "trn2"\n[core.engines.vector]\nclock = "1.2 GHz"\n')  # facts; constants are set
    sampler = Sampler(f"{file}[dma.packet=12ns]")
    contract = CONTRACTS[SMALL]
    for entry in made[1][CHANGED].entries[SMALL]:
        kept = unpack(entry.surface)
        problem = contract.problem(entry.dtype, entry.cores, {**entry.sizes, **entry.options}, "v3")
        for point, values in sorted(kept.samples.items())[:6]:
            again = building.simulated(contract, problem, kept.axes, point, lambda use: sampler(contract, use))
            assert again[0].tolist() == values.tolist()
            assert again[1:] == (kept.support, kept.reason)


def test_what_was_prepared_is_found_again(made):
    path, found = made
    again = prepare(CHANGED, path, workers=1, operators=frozenset({SMALL}), use_shipped=False)
    assert (again.made, again.traced, again.timed) == (0, 0, 0)
    first = {(e.cores, e.key): unpack(e.surface).samples for e in found[CHANGED].entries[SMALL]}
    for entry in again.entries[SMALL]:
        samples = unpack(entry.surface).samples
        assert all(np.array_equal(samples[at], values) for at, values in first.pop((entry.cores, entry.key)).items())
    assert not first


@pytest.fixture
def file(made, tmp_path, monkeypatch):
    """What was prepared, shipped."""
    path = tmp_path / "surfaces.bin"
    found = {("trn2", SMALL): made[1]["trn2"].entries[SMALL]}
    monkeypatch.setattr(decides, "SOURCES", tmp_path / "sources.txt")
    decides.listed.cache_clear()
    decides.code_hash.cache_clear()
    assert shipped.write(found, CONTRACTS, path)
    decides.listed.cache_clear()
    monkeypatch.setattr("trnsim.operators.surfaces.shipped", lambda: shipped.shipped(path))
    yield path
    decides.listed.cache_clear()
    decides.code_hash.cache_clear()


def test_what_is_shipped_is_used_and_what_is_stale_is_not(file, made, monkeypatch):
    contract = CONTRACTS[SMALL]
    there = shipped.shipped(file)
    assert there.stale([contract]) == []
    assert len(there.entries(contract, load_chip("trn2"))) == len(made[1]["trn2"].entries[SMALL])
    for chip in ("trn3", CHANGED):
        assert there.entries(contract, load_chip(chip)) == []
    assert there.entries(contract, load_chip("trn2[core_count=16]")) == there.entries(contract, load_chip("trn2"))
    assert not shipped.write({("trn2", SMALL): made[1]["trn2"].entries[SMALL]}, CONTRACTS, file)
    decides.listed.cache_clear()
    costs = KernelCosts("trn2", 1)
    costs.cost(SMALL, "bfloat16", rows=512, width=4096)
    assert (costs.source.made, costs.source.sampler.timed) == (0, 0)
    real = shipped.code_hash
    monkeypatch.setattr(shipped, "code_hash", lambda f: "other" if f == "timing/link.py" else real(f))
    assert there.stale([contract]) == [f"timing/link.py ({SMALL})"]
    costs = KernelCosts("trn2", 1)
    costs.cost(SMALL, "bfloat16", rows=512, width=4096)
    assert costs.source.made == 1
    assert costs.source.sampler.traced > 0


def test_a_file_of_another_write_is_told_from_its_list(file, made):
    there = shipped.shipped(file)
    file.write_bytes(file.read_bytes() + b" ")
    assert any("is not the one that" in text for text in there.stale([CONTRACTS[SMALL]]))


def test_packing(made):
    entry = made[1]["trn2"].entries[SMALL][0]
    found = unpack(entry.surface)
    assert pack(found) == bytes(entry.surface)
    assert unpack(pack(found)).knots == found.knots
    point = next(at for at in found.samples if not found.missing(at))
    assert np.array_equal(found.evaluate(point), unpack(pack(found)).evaluate(point))


def test_all_uses_at_once(tmp_path):
    arguments = ["op", "all", "--chip", "trn1", "--cache", str(tmp_path / "costs.db")]
    done = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["made"], found["traced"]) == (0, 0), AGAIN  # all is shipped
    assert {row["operator"] for row in found["uses"]} >= {"rmsnorm", "softmax"}
    assert all(row["time_us"] > 0 for row in found["uses"])
