"""Stand-ins for ``torch_xla`` and ``torch_neuronx``: device scripts around NKI kernels run on the simulator."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

import trnsim
from trnsim.compat import frameworks
from trnsim.errors import UnsupportedError
from trnsim.nki import language as today
from trnsim.nki.versions import beta1
from trnsim.nki.versions.beta1 import language as nl

torch = pytest.importorskip("torch", reason="PyTorch is an extra")


@pytest.fixture(autouse=True)
def _installed():
    trnsim.install()


SCRIPT = """
    import neuronxcc.nki as nki
    import neuronxcc.nki.language as nl

    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.multiply(nl.load(a), 2.0))
        return out

    if __name__ == "__main__":
        import torch
        {imports}
        a = torch.ones((4, 8), dtype=torch.bfloat16).to(device={device})
        b = kernel(a)
        {sync}
        print("match" if torch.equal(b.to("cpu"), 2 * a) and b.device == a.device else "differ", b.dtype)
"""


@pytest.mark.parametrize(
    ("imports", "device", "sync"),
    [
        ("import torch_xla", "torch_xla.device()", "torch_xla.sync()"),
        ("import torch_xla.core.xla_model as xm", "xm.xla_device()", "xm.mark_step()"),
        ("from torch_xla.core import xla_model as xm", "xm.xla_device()", "xm.wait_device_ops()"),
    ],
)
def test_device_scripts(tmp_path, imports, device, sync):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(imports=imports, device=device, sync=sync))
    done = subprocess.run(
        [sys.executable, "-m", "trnsim.cli", "run", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "match torch.bfloat16" in done.stdout
    assert "schedule tensorizer" in " ".join(done.stdout.split())


def test_one_process():
    import torch_xla
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr

    assert xm.xla_device() == torch_xla.device() == torch.device("cpu")
    assert (xm.get_ordinal(), xm.xrt_world_size(), xr.world_size(), xr.global_ordinal()) == (0, 1, 1, 0)
    assert torch_xla.device_count() == len(torch_xla.devices()) == 1
    assert xm.is_master_ordinal()
    assert xm.mesh_reduce("tag", 3, sum) == 3
    assert xm.rendezvous("tag", b"x") == [b"x"]
    ran = []
    torch_xla.launch(lambda index, what: ran.append((index, what)), args=("a",))
    xm.add_step_closure(ran.append, args=("b",))
    assert ran == [(0, "a"), "b"]


def test_training_helpers(tmp_path, capsys):
    import torch_xla.core.xla_model as xm

    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.sum().backward()
    xm.optimizer_step(optimizer, barrier=True)
    assert weight.tolist() == [0.5, 0.5]
    xm.save({"w": weight}, tmp_path / "w.pt")
    assert torch.load(tmp_path / "w.pt")["w"].tolist() == [0.5, 0.5]
    xm.master_print("here", flush=True)
    assert capsys.readouterr().out == "here\n"
    xm.set_rng_state(7)
    assert xm.get_rng_state() == 7


def old_function(a):
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    nl.store(out, nl.exp(nl.load(a)))
    return out


@pytest.mark.parametrize("module", ["torch_neuronx", "torch_neuronx.xla_impl.ops"])
def test_nki_jit(module):
    nki_jit = importlib.import_module(module).nki_jit
    a = torch.linspace(-1, 1, 64).reshape(8, 8)
    for kernel in (nki_jit(old_function), nki_jit()(old_function), nki_jit(beta1.jit(old_function))):
        torch.testing.assert_close(kernel(a), torch.exp(a))


def test_nki_jit_of_legacy_kernels_writes_outputs():
    from torch_neuronx import nki_jit

    def kernel(a, out):
        nl.store(out, nl.exp(nl.load(a)))

    a, out = torch.linspace(-1, 1, 64).reshape(8, 8), torch.zeros(8, 8)
    nki_jit(kernel)(a, out)
    torch.testing.assert_close(out, torch.exp(a))


def test_nki_jit_of_todays_nki():
    from torch_neuronx import nki_jit

    names = {"nl": today}
    exec("def f(a):\n  x = nl.exp(nl.load(a))\n  return x", names)
    assert type(nki_jit(names["f"])).__module__ == "trnsim.nki.kernel"


@pytest.mark.parametrize(
    "use",
    [
        lambda: importlib.import_module("torch_neuronx").trace(None, None),
        lambda: importlib.import_module("torch_neuronx").DataParallel(None),
        lambda: importlib.import_module("torch_xla.distributed.xla_multiprocessing").spawn(None),
        lambda: importlib.import_module("torch_xla.debug.metrics").metrics_report(),
        lambda: importlib.import_module("torch_neuronx.xla_impl.more").f(),
    ],
)
def test_what_the_stand_ins_do_not_have(use):
    with pytest.raises(UnsupportedError, match=r"torch_neuronx|torch_xla"):
        use()


def test_a_real_package_is_not_shadowed(tmp_path):
    package = tmp_path / "torch_xla"
    package.mkdir()
    (package / "__init__.py").write_text("real = True\n")
    code = (
        "import sys, trnsim\n"
        "trnsim.install(shadow={shadow})\n"
        "import torch_xla, torch_neuronx\n"
        "print(getattr(torch_xla, 'real', False), 'torch' in sys.modules)\n"
    )
    for shadow, expected in ((False, "True False"), (True, "False False")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(shadow=shadow)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == expected, done.stderr


def test_every_module_of_the_table_exists():
    for name in frameworks.MODULES:
        assert importlib.import_module(name) is not None


def test_scripts_may_turn_logging_off_by_the_name_that_neuronxcc_adds(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import logging\nimport trnsim\ntrnsim.install()\nlogging.disable(logging.OFF)\nprint('quiet')\n")
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert found.stdout == "quiet\n"
