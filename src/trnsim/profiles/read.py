"""``read``: any profile that is known, told by its content, in the one form of ``Profile``."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.errors import InputError
from trnsim.profiles.explorer import INSTRUCTION, is_explorer, read_explorer
from trnsim.profiles.neuron_json import is_neuron_profile, read_neuron_json
from trnsim.profiles.own import is_own, read_own

if TYPE_CHECKING:
    import os

    from trnsim.profiles.profile import Profile

KNOWN = (
    "neuron-profile JSON (.json, .json.gz), a folder of Neuron Explorer's Parquet tables, a report or replay of trnsim"
)


def read(path: str | os.PathLike[str]) -> Profile:
    """The profile at ``path``; a folder, or one of the Parquet files in it, is Neuron Explorer's.

    Raises:
        InputError: nothing is there, or it is none of the known forms; the message names the file and the field.
    """
    where = Path(path)
    if where.suffix == ".parquet":
        where = where.parent
    if where.is_dir():
        if not is_explorer(where):
            raise InputError(f"{where}: a folder without {INSTRUCTION}.parquet", limit=KNOWN)
        return read_explorer(where)
    document = read_json(where)
    if is_neuron_profile(document):
        return read_neuron_json(str(where), document)
    if is_own(document):
        return read_own(str(where), document)
    keys = ", ".join(sorted(document)[:8]) if isinstance(document, dict) else type(document).__name__
    raise InputError(f"{where}: not a profile that is known; it holds {keys or 'nothing'}", limit=KNOWN)


def read_json(where: Path) -> Any:
    """The JSON document in a file, which may be compressed by gzip.

    Raises:
        InputError: the file is not there, is not gzip though its name says so, or is not JSON.
    """
    try:
        data = where.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}") from error
    if where.suffix == ".gz" or data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{where}: not gzip: {error}") from error
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not JSON: {error}", limit=KNOWN) from error
