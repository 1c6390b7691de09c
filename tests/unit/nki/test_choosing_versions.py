"""Which release of NKI a program is for: given, by the environment, or found in its source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trnsim.errors import InputError
from trnsim.nki.versions import choose
from trnsim.releases import LATEST, Release, as_version

HEAD = "import nki\nimport nki.isa as nisa\nimport nki.language as nl\n"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != choose.VARIABLE}


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(choose.VARIABLE, raising=False)


@pytest.mark.parametrize(("text", "version"), [("0.3", "0.3"), ("0.3.0", "0.3"), (" NKI 0.5", "0.5"), ("0.6", "0.6")])
def test_versions_as_text(text, version):
    assert as_version(text) == version


@pytest.mark.parametrize("text", ["0.1", "0.7", "1", "", "latest"])
def test_versions_that_no_view_has(text):
    with pytest.raises(InputError, match=r"NKI"):
        as_version(text)


FOUND = {
    "nisa.tensor_copy_dynamic_src(t, u)": ("0.3", "nki.isa.tensor_copy_dynamic_src, of NKI 0.1 to 0.3"),
    "nisa.dma_copy(t, u, dst_rmw_op=nl.add)": ("0.2", "nki.isa.dma_copy(dst_rmw_op=)"),
    "nisa.register_move(r, imm=3)": ("0.2", "nki.isa.register_move(imm=)"),
    "nisa.sendrecv(t, u, 1, 1, 0, use_gpsimd_dma=True)": ("0.2", "use_gpsimd_dma"),
    "nisa.affine_select(t, p, 0, 1, u, 0.0)": ("0.2", "affine_select(dst, pattern, offset, ...)"),
    "nisa.affine_select(t, p, 0, channel_multiplier=1, on_true_tile=u, on_false_value=0.0)": ("0.2", "affine_select"),
    "nisa.dma_compute(t, [u, v], [1.0, 1.0], nl.add)": ("0.2", "dma_compute(dst, srcs, scales, reduce_op)"),
    "nl.ndarray((1, 2), nl.float32, buffer='sbuf')": ("0.2", "buffer='sbuf'"),
    "nisa.tensor_copy(t, u, engine=5)": ("0.2", "engine=5"),
    "t = sbuf.view(dtype=x.dtype, shape=x.shape)": ("0.2", "the keyword sbuf"),
    "sbuf = nl.sbuf; sbuf.view(x)": (LATEST, ""),
    # What every release takes, or only the first or the latest has, says nothing; so do contradictions.
    "nisa.tensor_copy(t, u, dtype=nl.float32)": (LATEST, ""),
    "nisa.dma_copy(t, u, dge_mode=3)": (LATEST, ""),
    "nisa.affine_select(t, p, 1, u, 0.0, nl.greater)": (LATEST, ""),
    "nisa.affine_select(t, p, 1, u, 0.0, offset=3)": (LATEST, ""),
    "nisa.dma_compute(t, [u, v], nl.add)": (LATEST, ""),
    "nisa.topk(t, u, v, 8)": (LATEST, ""),
    "nisa.activation(t, nl.exp, u, mask=None)": (LATEST, ""),
    "nl.arange(4)": (LATEST, ""),
    "nisa.register_move(r, imm=3); nl.load(x)": (LATEST, ""),
    "other.tensor_copy_dynamic_src(t)": (LATEST, ""),
}


@pytest.mark.parametrize("line", FOUND)
def test_found_in_the_source(line, tmp_path):
    version, what = FOUND[line]
    file = tmp_path / "kernels.py"
    file.write_text(HEAD + "def f(t, u, v, x, p, r, other):\n    " + line + "\n")
    release = choose.choose(source=file)
    assert release.version == version
    if what:
        assert release.how.startswith("kernels.py:5 uses ")
        assert what in release.how
    else:
        assert release == Release()


def test_names_by_other_imports(tmp_path):
    for text in (
        "from nki.isa import tensor_copy_dynamic_src as copy_from\n",
        "import nki\ndef f(t): nki.isa.tensor_copy_dynamic_src(t, t)\n",
        "from nki import isa\ndef f(t): isa.tensor_copy_dynamic_src(t, t)\n",
    ):
        (tmp_path / "a.py").write_text(text)
        assert choose.choose(source=tmp_path / "a.py").version == "0.3"
    (tmp_path / "a.py").write_text("import neuronxcc.nki.isa as nisa\nnisa.tensor_copy_dynamic_src(1)\n")
    assert choose.choose(source=tmp_path / "a.py") == Release()


def test_files_beside_the_program_count(tmp_path):
    (tmp_path / "main.py").write_text("import os\nfrom kernels import old\nimport helpers.more\n")
    (tmp_path / "kernels.py").write_text(HEAD + "import main\nold = nisa.tensor_copy_dynamic_dst\n")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "more.py").write_text("not python (\n")
    release = choose.choose(source=tmp_path / "main.py")
    assert (release.version, release.how.split(" ")[0]) == ("0.3", "kernels.py:5")


def test_what_is_given_comes_first(tmp_path, monkeypatch):
    file = tmp_path / "a.py"
    file.write_text(HEAD + "nisa.register_move(r, imm=3)\n")
    monkeypatch.setenv(choose.VARIABLE, "0.4")
    assert choose.choose("0.5", file) == Release("0.5", "given")
    assert choose.choose(None, file) == Release("0.4", choose.VARIABLE)
    monkeypatch.setenv(choose.VARIABLE, "9")
    with pytest.raises(InputError, match="no release '9' of NKI"):
        choose.choose()


KERNEL = (
    HEAD
    + """
import numpy as np

@nki.jit
def kernel(x):
    t = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=t, src=x)
    {line}
    nisa.dma_copy(dst=out, src=t)
    return out

if __name__ == "__main__":
    print(kernel(np.ones((4, 4), np.float32)).sum(), nki.__version__)
"""
)


def trnsim(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "trnsim.cli", *arguments], cwd=cwd, env={**ENVIRONMENT, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


OLD, NEW = "nisa.tensor_copy_dynamic_src(t, t)", "nisa.tensor_copy(t, t)"


@pytest.mark.parametrize(
    ("line", "arguments", "environment", "version", "how"),
    [
        (NEW, [], {}, "0.6", "default"),
        (OLD, [], {}, "0.3", "script.py:12 uses nki.isa.tensor_copy_dynamic_src, of NKI 0.1 to 0.3"),
        (OLD, ["--nki-version", "0.2"], {}, "0.2", "given"),
        (NEW, [], {"TRNSIM_NKI_VERSION": "0.5.0"}, "0.5", "TRNSIM_NKI_VERSION"),
    ],
)
def test_run_and_its_report(line, arguments, environment, version, how, tmp_path):
    (tmp_path / "script.py").write_text(KERNEL.format(line=line))
    done = trnsim("run", *arguments, "--json", "out.json", "script.py", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert f"16.0 {version}.0" in done.stdout
    (call,) = json.loads((tmp_path / "out.json").read_text())["calls"]
    assert (call["nki_version"], call["nki_version_source"]) == (version, how)
    assert (f"NKI {version}" in done.stdout) == (how != "default")


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        (
            OLD,
            ["--nki-version", "0.6"],
            "nki.isa.tensor_copy_dynamic_src is not in NKI 0.6: it belongs to NKI 0.1 to 0.3",
        ),
        (OLD, ["--nki-version", "7"], "no release '7' of NKI is known"),
        ("nl.load(x, mask=3)", [], "nki.language.load of NKI 0.6 has no keyword 'mask'; NKI 0.1 has it"),
    ],
)
def test_run_and_its_errors(line, arguments, message, tmp_path):
    (tmp_path / "script.py").write_text(KERNEL.format(line=line))
    done = trnsim("run", *arguments, "script.py", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_import_of_another_release(tmp_path):
    (tmp_path / "script.py").write_text("from nki.isa import builtin_custom_op\n")
    done = trnsim("run", "script.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "nki.isa.builtin_custom_op is not in NKI 0.6: it belongs to NKI 0.1" in done.stderr
    assert "script.py:1" in done.stderr


@pytest.mark.parametrize("arguments", [["--nki-version", "0.2"], []])
def test_profile(arguments, tmp_path):
    (tmp_path / "k.py").write_text(KERNEL.format(line="nisa.dma_copy(dst=t, src=x, dst_rmw_op=nl.add)"))
    done = trnsim("profile", *arguments, "k.py:kernel", "--arg", "f32[8,8]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NKI 0.2 (" in done.stdout


def test_profile_of_a_kernel_of_the_first_release(tmp_path):
    (tmp_path / "k.py").write_text(
        "import neuronxcc.nki as nki\nimport neuronxcc.nki.language as nl\n@nki.jit\ndef kernel(x):\n"
        "    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)\n    nl.store(out, nl.load(x))\n    return out\n"
    )
    done = trnsim("profile", "k.py:kernel", "--arg", "f32[8,8]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NKI 0.1 (import neuronxcc.nki)" in " ".join(done.stdout.split())


def test_the_pytest_plugin(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import nki\nimport nki.isa\ndef test_it():\n    assert nki.__version__ == '0.3.0'\n"
        "    assert nki.isa.tensor_copy_dynamic_src\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "trnsim.pytest_plugin", "--trnsim-nki-version", "0.3",
         "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_install_keeps_what_is_in_place(tmp_path):
    code = (
        "import trnsim\n"
        "first = trnsim.install(nki_version='0.2')\n"
        "assert trnsim.install() is first\n"
        "import nki, nki.language as nl\n"
        "assert nki.__version__ == '0.2.0' and not hasattr(nl, 'load') and not hasattr(nki, 'simulate')\n"
        "import nki.isa as nisa, numpy as np\n"
        "def plain(x):\n"
        "    p = nl.ndarray(x.shape, x.dtype, buffer=nl.psum)\n"
        "    nisa.dma_copy(dst=p, src=x)\n"
        "    return x\n"
        "trnsim.simulate(plain, np.ones((4, 4), np.float32))\n"
        "trnsim.install(nki_version='0.6')\n"
        "import nki as again, nki.typing\n"
        "assert again.__version__ == '0.6.0' and again.language.load and again.typing\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_package_in_this_process_is_the_latest():
    from trnsim import nki

    assert nki.__version__ == f"{LATEST}.0"
    assert Path(nki.__file__).parts[-2] == "nki"
