"""The store of operator costs: what it gives back, processes beside each other, kills, and places that are no store."""

import multiprocessing
import os
import signal
import sqlite3
import sys
import time

import msgspec
import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators import decides, samples
from trnsim.operators import store as stores
from trnsim.operators.kernel_costs import contracts
from trnsim.operators.samples import Sampler
from trnsim.operators.store import Store, cache_folder, default_store
from trnsim.session import Session, SimulationOptions

MATMUL = contracts()["matmul"]
SIZES = {"m": 130, "k": 200, "n": 600}
BLOB = np.random.default_rng(0).bytes(50_000)


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "deep" / "operators.db")
    yield found
    found.close()


def use(cores=1, **sizes):
    return MATMUL.problem("bfloat16", cores, {**SIZES, **sizes})


def test_rows(store):
    assert store.sample("a", "b") is None
    store.add_sample("a", "b", b"1")
    store.add_sample("a", "b", b"2")
    store.add_sample("a", "c", b"3")
    assert (store.sample("a", "b"), store.sample("a", "c"), store.sample("b", "a")) == (b"2", b"3", None)
    store.add_surface("k", "x", b"4")
    store.add_surface("k", "y", b"5")
    assert sorted(store.surfaces("k")) == [b"4", b"5"]
    assert store.counts() == {"traces": 0, "samples": 2, "surfaces": 2}
    assert Store(store.path).counts() == store.counts()


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    "chip", ["trn2", "trn2[dma.packet=20ns]", "trn2[tensor.issue=50ns,core.engines.vector.clock=1.4GHz]"]
)
def test_a_stored_trace_gives_what_a_fresh_one_does(store, chip, cores):
    problem = use(cores)
    Sampler("trn2", store)(MATMUL, problem)
    sampler = Sampler(chip, store)
    values, support, reason = sampler(MATMUL, problem)
    call = fresh(problem, chip)
    assert np.array_equal(values, samples.measure(call.timeline))
    assert (support, reason) == samples.run(MATMUL, problem, chip)[1:] == samples.run(MATMUL, problem, "trn2")[1:]
    assert call.support == (support if chip == "trn2" else "what-if")
    assert (sampler.traced, sampler.timed) == (0, int(chip != "trn2"))
    assert chip == "trn2" or values[0] != Sampler("trn2", store)(MATMUL, problem)[0][0]


def fresh(problem, chip):
    """A call of the kernel on ``chip``, as a user's."""
    options = SimulationOptions(chip=chip, numeric=False)
    session = Session(options)
    with session.active():
        MATMUL.kernel[problem.cores].launch(MATMUL.arguments(problem), {}, options)
    return session.calls[-1]


def test_rates_that_no_time_depends_on_make_no_new_sample(store):
    """The DMA engines of a logical core ask for less than HBM gives, or for more."""
    Sampler("trn3", store)(MATMUL, use())
    for rate, timed in (("6TB/s", 0), ("4TB/s", 0), ("0.3TB/s", 1)):
        chip = f"trn3[hbm.bandwidth={rate}]"
        sampler = Sampler(chip, store)
        values, _, _ = sampler(MATMUL, use())
        assert (sampler.traced, sampler.timed) == (0, timed)
        assert np.array_equal(values, samples.measure(fresh(use(), chip).timeline))


def test_what_was_timed_is_not_timed_again(store, monkeypatch):
    first = Sampler("trn1", store)(MATMUL, use())
    monkeypatch.setattr(samples, "measure_traces", lambda *_: pytest.fail("timed again"))
    for chip in ("trn1", "inf2"):  # of the same generation, with the same rates
        again = Sampler(chip, store)(MATMUL, use())
        assert np.array_equal(again[0], first[0])
        assert again[1:] == first[1:]


def test_generations_and_changed_memories_have_traces_of_their_own(store):
    for chip in ("trn1", "trn2", "trn3", "trn3[hbm.bandwidth=6TB/s]", "trn3[sbuf.bytes_per_partition=512KiB]"):
        Sampler(chip, store)(MATMUL, use())
    assert store.counts()["traces"] == 4


def test_code_decides(store, monkeypatch):
    Sampler("trn2", store)(MATMUL, use())
    timing, kernel = "timing/machine.py", "kernels/matmul.py"
    real = decides.code_hash
    for changed, expected in ((timing, (0, 1)), (kernel, (1, 1)), ("kernels/softmax.py", (0, 0))):
        monkeypatch.setattr(decides, "code_hash", lambda file, c=changed: "other" if file == c else real(file))
        sampler = Sampler("trn2", store)
        sampler(MATMUL, use())
        assert (sampler.traced, sampler.timed) == expected, changed


def test_a_damaged_trace_is_made_again(store):
    first = Sampler("trn2", store)(MATMUL, use())
    with sqlite3.connect(store.path) as database:
        database.execute("UPDATE traces SET value = ?", (b"no trace",))
        database.execute("DELETE FROM samples")
    sampler = Sampler("trn2", store)
    assert np.array_equal(sampler(MATMUL, use())[0], first[0])
    assert sampler.traced == 1


def test_a_file_that_is_too_large_loses_the_traces_used_longest_ago(store):
    for m in (130, 140):
        Sampler("trn2", store)(MATMUL, use(m=m))
    with sqlite3.connect(store.path) as database:
        database.execute("UPDATE traces SET used = used - 100000 WHERE key = ?", (key(use(m=130)),))
    store.trace(key(use(m=130)))  # used again
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT min(used) FROM traces").fetchone()[0] > time.time() - 50_000
    assert store.trim(1 << 40) == 0
    assert store.trim(1) == 2
    assert store.counts() == {"traces": 0, "samples": 2, "surfaces": 0}


def key(problem):
    return decides.trace_key(MATMUL, problem, load_chip("trn2"))


def test_bad_places(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough that nobody takes it for an empty one" * 20)
    for place in (file, file / "below", tmp_path):
        with pytest.raises(InputError, match=r"is no store of operator costs"):
            Store(place)


def test_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRNSIM_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    store, said = default_store()
    assert (store.path.parent, said) == (tmp_path / "here", "")
    store.close()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRNSIM_CACHE", str(tmp_path / "file"))
    store, said = default_store()
    assert store is None
    assert "is not kept" in said
    monkeypatch.delenv("TRNSIM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tmp_path in cache_folder().parents
    assert cache_folder().name == "trnsim"


def test_a_store_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = tmp_path / "operators.db"
    store = Store(path)
    first = Sampler("trn2", store)(MATMUL, use())
    store.close()  # no journal is left beside it

    def refuse(_):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Store, "_prepared", refuse)
    monkeypatch.setenv("TRNSIM_CACHE", str(tmp_path))
    store, said = default_store()
    assert store.read_only
    assert "cannot be written" in said
    assert np.array_equal(Sampler("trn2", store)(MATMUL, use())[0], first[0])
    sampler = Sampler("trn2", store)
    sampler(MATMUL, use(m=131))
    assert (sampler.traced, store.counts()["traces"]) == (1, 1)
    with pytest.raises(InputError, match="no store"):
        Store(tmp_path / "another.db")


def test_tables_of_another_version_are_made_anew(tmp_path):
    path = tmp_path / "operators.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE surfaces (what TEXT, base TEXT, value BLOB)")
    store = Store(path)
    store.add_surface("k", "x", b"4")
    assert store.surfaces("k") == [b"4"]


def _fill(path, first, count, shared):
    store = Store(path)
    for number in range(first, first + count):
        store.add_surface("own", str(number), BLOB)
        store.add_sample("shared", str(number % shared), BLOB)


def _writers(path, jobs):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(path, *job)) for job in jobs]
    for writer in writers:
        writer.start()
    return writers


def _rows(path):
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT count(*) FROM surfaces").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        database.close()


def test_writers_beside_each_other(tmp_path):
    path = tmp_path / "operators.db"
    writers = _writers(path, [(1000 * n, 60, 7) for n in range(4)])  # all make the file, at once
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(path)
    assert store.counts() == {"traces": 0, "samples": 7, "surfaces": 240}
    assert set(store.surfaces("own")) == {BLOB}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_writers_that_are_killed(tmp_path):
    path = tmp_path / "operators.db"
    writers = _writers(path, [(100_000 * n, 100_000, 7) for n in range(2)])
    deadline = time.monotonic() + 60
    while _rows(path) < 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(writers[0].pid, signal.SIGKILL)
    writers[0].join()
    before = _rows(path)
    while _rows(path) < before + 20 and time.monotonic() < deadline:  # the other goes on
        time.sleep(0.02)
    os.kill(writers[1].pid, signal.SIGKILL)
    writers[1].join()
    assert _rows(path) >= before + 20
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store = Store(path)
    kept = store.surfaces("own")
    assert len(kept) == _rows(path)
    assert set(kept) == {BLOB}
    store.add_surface("own", "after", b"x")
    assert b"x" in store.surfaces("own")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.12, where a library has started threads
def test_a_forked_process_opens_the_file_itself(store):
    store.add_sample("a", "b", b"1")
    child = os.fork()
    if child == 0:
        store.add_sample("a", "c", b"2")
        os._exit(0 if store.sample("a", "b") == b"1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.sample("a", "c") == b"2"


def test_traces_are_compressed(store):
    Sampler("trn2", store)(MATMUL, use(m=2048, n=2048))
    data = store._find("traces", ("key",), (key(use(m=2048, n=2048)),))
    found, release = store.trace(key(use(m=2048, n=2048)))
    plain = msgspec.msgpack.encode(stores.SavedSample(release, [t.packed() for t in found]))
    assert len(data) < len(plain) / 3


@pytest.mark.parametrize(
    ("operator", "sizes"),
    [
        ("rmsnorm", {"rows": 700, "width": 1000}),
        ("attention", {"heads": 4, "kv_heads": 2, "queries": 300, "keys": 300, "depth": 64}),
        ("embedding", {"tokens": 300, "width": 512, "rows": 1000}),
        ("gated_mlp", {"tokens": 200, "width": 512, "hidden": 384, "outputs": 512}),
        ("softmax", {"rows": 5, "width": 300}),
    ],
)
@pytest.mark.parametrize(("chip", "cores"), [("trn1", 1), ("trn2", 2), ("trn3", 1)])
def test_a_measure_is_what_the_timeline_sums_up_to(store, operator, sizes, chip, cores):
    contract, options = contracts()[operator], SimulationOptions(chip=chip, numeric=False)
    problem = contract.problem("bfloat16", cores, sizes, load_chip(chip).core.version)
    session = Session(options)
    with session.active():
        contract.kernel[cores].launch(contract.arguments(problem), {}, options)
    call = session.calls[-1]
    store.add_trace(decides.trace_key(contract, problem, load_chip(chip)), call.traces, call.nki_version)
    sampler = Sampler(chip, store)
    values, support, reason = sampler(contract, problem)
    assert (sampler.traced, sampler.timed) == (0, 1)
    assert values.tolist() == samples.measure(call.timeline).tolist()
    assert (support, reason) == (call.support, call.support_reason)
