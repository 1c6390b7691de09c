"""Names that public kernels use and no documentation has."""

import pytest

import trnsim


@pytest.mark.parametrize("version", ["0.3", "0.6"])
def test_dtype_as_an_annotation(version, tmp_path):
    script = tmp_path / "annotated.py"
    script.write_text(
        "import nki\n"
        "import nki.language as nl\n"
        "def kernel(a, dtype: nki.dtype = nl.bfloat16, other: nki.dtype | None = None):\n"
        "    return dtype\n"
    )
    trnsim.install(nki_version=version)
    names: dict[str, object] = {}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert names["kernel"](1) == "bfloat16"
