"""Making ``import nki`` mean trnsim's implementation, in scripts that were written for the vendor's package."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from pathlib import Path

from trnsim.errors import InputError
from trnsim.releases import DEFAULT, MissingNameError, Release, find_name, missing_name

_installed: Release | None = None


def install(*, shadow: bool = False, nki_version: str | None = None, source: str | Path | None = None) -> Release:
    """Put trnsim's modules in place as ``nki``, ``nki.isa``, ``nki.language`` and so on, and as ``neuronxcc.nki``.

    ``torch_xla`` and ``torch_neuronx`` become stand-ins for device scripts. A real installation is never shadowed
    unless ``shadow`` asks for it.

    Args:
        nki_version: the release of NKI that programs are written for, ``0.2`` to ``0.6``. Default: the environment
            variable ``TRNSIM_NKI_VERSION``, then what ``source`` can only mean, then what is in place already, then
            the latest. Programs that imported ``nki`` before keep what they have.
        source: the program's file; see ``trnsim.nki.versions.choose``.

    Returns the release that is in place now, and how it was chosen.

    Raises:
        InputError: the vendor's package is installed and ``shadow`` is False, or a release that is not known.
    """
    global _installed
    if _installed is not None and nki_version is None and source is None:
        return _installed
    existing = sys.modules.get("nki")
    if _installed is None and not shadow and (existing is not None or importlib.util.find_spec("nki") is not None):
        raise InputError("a real nki package is installed; trnsim.install(shadow=True) puts trnsim's in its place")
    from trnsim.compat import frameworks
    from trnsim.nki.versions import choose, finder, views

    release = choose.choose(nki_version, source)
    found = views.modules(release)
    for name in ("nki.typing", "nki.tensor", "nki.meta", "nki.meta.tensor"):  # not in every release
        sys.modules.pop(name, None)
    sys.modules.update(found)
    finder.provide(shadow=shadow)
    frameworks.provide(shadow=shadow)
    if not hasattr(logging, "OFF"):  # neuronxcc adds this level, and public scripts turn logging off by its name
        setattr(logging, "OFF", logging.CRITICAL + 10)  # noqa: B010 - no attribute that logging declares
    _installed = release
    return release


def in_place() -> Release:
    """The release that ``import nki`` means now; plain functions are taken for kernels of it."""
    return _installed or DEFAULT


def missing_import(error: ImportError) -> MissingNameError | None:
    """What to say of ``from nki.isa import x`` if another release of NKI has ``x``: Python's own message does not."""
    if isinstance(error, ModuleNotFoundError) and error.name and find_name(error.name) is not None:
        module, _, name = error.name.rpartition(".")
        return missing_name(module, name, in_place().version)
    found = re.match(r"cannot import name '(\w+)' from '(?:trnsim\.)?(nki[\w.]*)'", str(error))
    if found is None or find_name(f"{found[2]}.{found[1]}") is None:
        return None
    return missing_name(found[2], found[1], in_place().version)
