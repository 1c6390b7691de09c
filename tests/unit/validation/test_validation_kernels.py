"""``trnsim validate kernels`` on a kernel of its own, and the checkouts it reads."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from trnsim.errors import InputError
from trnsim.validation import checkouts
from trnsim.validation.cases import Source
from trnsim.validation.rows import COLUMNS

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def copy(x, times=1):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    for _ in range(times):
        nisa.reciprocal(dst=tile, data=tile)
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def wrong(x):
    nisa.dma_copy(dst=x, src=x[0:1, 0:0])
"""


def trnsim(*arguments, cwd):
    command = [sys.executable, "-m", "trnsim.cli", "validate", "kernels", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(KERNEL)

    def make(*rows):
        usual = dict.fromkeys(COLUMNS, "") | {
            "source_url_or_repo_path": str(tmp_path / "mine.py"), "chip": "trn2", "cores": "1", "kernel": "copy",
            "metric": "total_time", "unit": "us", "confidence": "high",
        }  # fmt: skip
        with (tmp_path / "data.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows({**usual, "id": f"R{n}", **row} for n, row in enumerate(rows))
        return tmp_path / "data.csv"

    return make


def test_a_file_of_ones_own(own, tmp_path):
    data = own(
        {"shapes": "f32[128,512]", "value": "30"},
        {"shapes": "f32[128,512] times=40", "value": "300"},
        {"kernel": "somebody's", "shapes": "f32[4,4]", "value": "1"},
        {"shapes": "f32[128,512]", "value": "30", "confidence": "low"},
    )
    result = trnsim("--data", data, "--json", "out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    first, second = found["cases"]
    assert first["fixed_us"] == pytest.approx(15.45)
    assert first["predicted_us"] == pytest.approx(first["span_us"] + first["fixed_us"])
    assert first["error"] == pytest.approx((first["predicted_us"] - 30) / 50)
    assert first["span_error"] == pytest.approx((first["span_us"] - (30 - 15.45)) / 50)
    # 39 more reciprocals of 8 cycles an element at 0.96 GHz, and what each takes besides.
    assert 39 * 4.267 < second["span_us"] - first["span_us"] < 39 * 4.6
    assert {"mape", "median", "worst", "bias", "pairs_in_order"} <= found["summary"].keys()
    assert found["summary"]["pairs_in_order"] == 1.0
    assert {e["reason"]: e["rows"] for e in found["excluded"]} == {
        "confidence below medium": 1,
        "no public repository names the kernel's source": 1,
    }
    assert "copy" in result.stdout
    assert "rows left out by rule" in result.stdout


def test_json_alone_goes_to_standard_output(own, tmp_path):
    data = own({"shapes": "f32[128,512]", "value": "30"})
    result = trnsim("--data", data, "--json", "-", cwd=tmp_path)
    assert [c["kernel"] for c in json.loads(result.stdout)["cases"]] == ["copy"]


def test_a_kernel_that_cannot_be_timed_is_named_and_gives_status_one(own, tmp_path):
    data = own({"shapes": "f32[128,512]", "value": "30"}, {"kernel": "wrong", "shapes": "f32[128,512]", "value": "30"})
    result = trnsim("--data", data, "--json", "out.json", cwd=tmp_path)
    assert result.returncode == 1
    (failed,) = json.loads((tmp_path / "out.json").read_text())["failed"]
    assert failed["kernel"] == "wrong"
    assert "cases that failed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "nothing"], "there are"),
        (["--data", "none.csv"], "cannot read"),
        (["--sdk", "nowhere"], "is no folder"),
        (["--family", "how-to"], "no checkout of aws-neuron-sdk"),
    ],
)
def test_bad_input_is_status_two(arguments, message, tmp_path, monkeypatch):
    for variable in checkouts.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    result = trnsim(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_checkouts_by_option_or_environment(tmp_path, monkeypatch):
    for variable in checkouts.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRNSIM_SDK", str(tmp_path))
    (tmp_path / "other").mkdir()
    assert checkouts.roots({}) == {"sdk": tmp_path}
    assert checkouts.roots({"sdk": tmp_path / "other"})["sdk"] == tmp_path / "other"
    there = {"sdk": tmp_path}
    assert "has no kernels.py" in checkouts.missing(Source("sdk", "kernels.py"), there)
    assert "no checkout of nki-library" in checkouts.missing(Source("library", "a.b"), there)
    assert "history" in checkouts.missing(Source("sdk", "k.py", "v1"), there)


BLOCKS = """
.. code-block:: python

    import os

.. code-block:: python

   @nki.jit
   def first():

     return 1

Text.

.. tabs::

   .. code-block:: bash

      @nki.jit

   .. code-block:: python

      @nki.jit
      def second(): ...
"""


@pytest.mark.parametrize(("number", "text"), [(1, "def first():\n\n  return 1"), (2, "def second(): ..."), (3, None)])
def test_code_blocks_of_documentation(number, text):
    found = checkouts.code_block(BLOCKS, number)
    assert found is None if text is None else text in found


def test_a_docstring_whose_end_stands_twice_is_the_only_thing_repaired(tmp_path):
    good = 'def f():\n    """One.\n\n    Two\n    """\n\n    return 1\n'
    twice = good.replace('    """\n\n    return', '    """\n\n        More\n\n        Two\n    """\n\n    return')
    for name, text in (("good", good), ("twice", twice), ("bad", "def f(:\n")):
        (tmp_path / f"{name}.py").write_text(text)
        checkouts._repair(tmp_path / f"{name}.py")
    assert (tmp_path / "good.py").read_text() == good
    namespace = {}
    exec((tmp_path / "twice.py").read_text(), namespace)
    assert namespace["f"]() == 1
    assert (tmp_path / "bad.py").read_text() == "def f(:\n"


def test_a_version_out_of_the_history(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "k.py").write_text(KERNEL.replace("def copy", "def older"))
    git("add", "k.py")
    git("commit", "-qm", "one")
    git("tag", "v1")
    (tmp_path / "k.py").write_text(KERNEL)
    there = {"sdk": tmp_path}
    source = Source("sdk", "k.py", "v1")
    assert checkouts.missing(source, there) is None
    code = (
        "import sys; from pathlib import Path; from trnsim.validation import checkouts; "
        "from trnsim.validation.cases import Source; "
        f"print(checkouts.load(Source('sdk', 'k.py', 'v1'), 'older', {{'sdk': Path({str(tmp_path)!r})}}).func.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "older", result.stderr
    with pytest.raises(InputError, match="no kernel"):
        checkouts.load(Source("sdk", "k.py"), "older", there)


def test_candidates_of_a_search():
    parent = "Candidate(code='''def test(a):\n  return a\n''',\nscore=2.0)"
    text = f"Candidate(parent={parent},\ncode='''b = 1\n''',\nscore=1.0)"
    first, second = (checkouts.candidate(text, number) for number in (1, 2))
    assert first.endswith("def test(a):\n  return a\n")
    assert second.endswith("b = 1\n")
    assert first.startswith("import math\n")
    assert checkouts.candidate(text, 3) is None
