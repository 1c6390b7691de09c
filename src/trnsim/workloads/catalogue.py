"""Models by name, alias or path of a ``config.json``.

``load_model("llama-3.1-70b")``, ``load_model("meta-llama/Llama-3.1-70B-Instruct")`` and ``load_model("./config.json")``
give the same kind of object. The facts of shipped models stand in ``models/*.toml`` with source and date.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InputError, UnsupportedError
from trnsim.workloads.config import Fields
from trnsim.workloads.families import builder, defaults, text_fields
from trnsim.workloads.model import Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent / "models"
# What follows a model's name in tables of measurements and on hubs, and says nothing of its sizes.
_SUFFIX = re.compile(
    r"-(pre-?training|fine-tun(ing|e)|lora|sft|instruct|chat|thinking|it|hf|base|pt|preview|bf16|fp8|nvfp4|mxfp4|\d{4})$"
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class Entry:
    """A shipped model: its config and where the facts are from.

    Attributes:
        published: ``parameters`` (and ``active``) as somebody else counted them, with ``source``.
        formats: of weights as they are shipped, by part: ``default``, ``experts``, ``embedding``, ``head``, ``router``.
        read: where the values were seen, if not at ``source`` itself.
    """

    name: str
    title: str
    source: str
    date: str
    config: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    read: str = ""
    note: str = ""
    published: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=lambda: {"default": "bfloat16"})


def model_names() -> tuple[str, ...]:
    """Shipped models, by family and size as their files list them."""
    return tuple(_entries())


def entry(name: str, layers: int | None = None, hidden: int | None = None) -> Entry:
    """The shipped model of a name or alias; case, organisation and suffixes such as ``-Instruct`` do not matter.

    Args:
        name: as published. Where several models share it, ``layers`` and ``hidden`` choose.

    Raises:
        InputError: no model of that name; several that nothing tells apart. Names them.
        UnsupportedError: a published name that no architecture stands for; says why.
    """
    found = [_entries()[known] for known in _candidates(name)]
    if len(found) > 1 and layers is not None:
        found = [e for e in found if _count(e.config) == layers] or found
    if len(found) > 1 and hidden is not None:
        found = [e for e in found if _width(e.config) == hidden] or found
    if len(found) > 1:
        names = ", ".join(f"{e.name} ({_count(e.config)} layers of {_width(e.config)})" for e in found)
        raise InputError(f"{name!r} may be {names}: give its name, or layers and hidden", operand="model", value=name)
    if found:
        return found[0]
    for spelling in _spellings(name):
        if spelling in _unresolved():
            raise UnsupportedError(f"{name!r}: {_unresolved()[spelling]}", operand="model", value=name)
    near = difflib.get_close_matches(normalised(name), [*_index()], 3, 0.5)
    hint = f"; the nearest: {', '.join(near)}" if near else "; trnsim models lists those that are known"
    raise InputError(f"no model {name!r}{hint}", operand="model", value=name)


def load_model(name_or_path: str | Path, layers: int | None = None, hidden: int | None = None) -> Model:
    """A model by name, alias, or path of a ``config.json`` (or the folder that has one).

    Args:
        layers: as many of its layers only, as proxies of published runs have; where names are shared, see ``entry``.

    Raises:
        InputError: unknown name or architecture, a missing field, a file that is no JSON object.
    """
    text = str(name_or_path)
    if text.endswith(".json") or Path(text).is_dir():
        path = Path(text) / "config.json" if Path(text).is_dir() else Path(text)
        return build(_read_json(path), path.parent.name if path.name == "config.json" else path.stem, text, layers)
    chosen = entry(text, layers, hidden)
    if layers is None or layers == _count(chosen.config):
        return _shipped(chosen.name)
    return build(chosen.config, f"{chosen.name}, {layers} layers", chosen.name, layers)


def build(config: Mapping[str, Any], name: str, source: str = "", layers: int | None = None) -> Model:
    """A model from the fields of a config.

    Raises:
        InputError: a missing or impossible field, an unknown architecture.
    """
    architecture, values = text_fields(config)
    if layers is not None:
        key = next((key for key in _LAYERS if key in values), None)
        if key is None or layers < 1 or layers > int(values[key]):
            raise InputError(
                f"{name} cannot have {layers} layers", operand="layers", value=layers, limit=_count(values)
            )
        values = {**values, key: layers}
    values = {**values, "model_type": architecture}
    nested = isinstance(config.get("text_config"), dict)
    return builder(architecture)(Fields(values, source or name, defaults(architecture), nested), name)


def weight_formats(config: Mapping[str, Any]) -> dict[str, str]:
    """Formats of weights as a ``config.json`` says they are stored, by part; bfloat16 where it says nothing.

    Raises:
        UnsupportedError: a ``quant_method`` that is not known.
    """
    inner = config.get("text_config") or {}
    stored = config.get("quantization_config") or inner.get("quantization_config")
    plain = str(config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or "bfloat16")
    if stored is None:
        return {"default": plain}
    method = str(stored.get("quant_method", ""))
    kept = {"embedding": "bfloat16", "head": "bfloat16", "router": "bfloat16"}
    if method == "fp8":
        experts = {"experts": "mxfp4"} if config.get("expert_dtype") == "fp4" else {}
        return {"default": "fp8", **kept, **experts}
    if method == "mxfp4":
        return {"default": "bfloat16", "experts": "mxfp4"}
    if method in ("modelopt", "modelopt_fp4") and "FP4" in str(stored.get("quant_algo", "")).upper():
        return {"default": "nvfp4", **kept}
    if method == "modelopt":
        return {"default": "fp8", **kept}
    if method == "compressed-tensors":
        return _compressed_formats(stored)
    raise UnsupportedError(f"weights stored by quant_method {method!r}", operand="quantization_config", value=method)


def _compressed_formats(stored: Mapping[str, Any]) -> dict[str, str]:
    """Of ``compressed-tensors``: experts alone where attention is left as it is."""
    groups = list((stored.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if groups else {}
    kind = (weights.get("type"), weights.get("num_bits"))
    known = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "fp8", ("float", 4): "nvfp4"}
    if kind not in known or len(groups) > 1:
        raise UnsupportedError("compressed-tensors with other than one group of 4 or 8 bits", value=kind)
    if any("self_attn" in name for name in stored.get("ignore") or ()):
        return {"default": "bfloat16", "experts": known[kind]}
    return {"default": known[kind], "embedding": "bfloat16", "head": "bfloat16", "router": "bfloat16"}


def normalised(name: str) -> str:
    """A name as aliases are compared: small letters, hyphens, without what stands in brackets or after a plus."""
    text = re.sub(r"\([^)]*\)", " ", name.split(" + ", maxsplit=1)[0]).strip().lower()
    text = re.sub(r"[\s_]+", "-", text)
    text = re.sub(r"(llama|gpt|phi)(\d)", r"\1-\2", text.removeprefix("meta-llama/"))
    return text.removeprefix("meta-")


def _spellings(name: str) -> list[str]:
    """A name, then without its organisation, then with one suffix less each."""
    text = normalised(name)
    found = [text]
    if "/" in text:
        found.append(normalised(text.split("/", 1)[1]))
    for start in list(found):
        rest = start
        while True:
            shorter = _SUFFIX.sub("", rest)
            if shorter == rest:
                break
            found.append(shorter)
            rest = shorter
    return found


def _candidates(name: str) -> list[str]:
    for spelling in _spellings(name):
        if spelling in _index():
            return _index()[spelling]
    return []


def _count(config: Mapping[str, Any]) -> int:
    for key in _LAYERS:
        if key in config:
            return int(config[key])
    kinds = config.get("layers_block_type") or config.get("hybrid_override_pattern") or ()
    return len(kinds)


def _width(config: Mapping[str, Any]) -> int:
    return int(next((config[key] for key in ("hidden_size", "n_embd", "d_model") if key in config), 0))


@cache
def _entries() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in sorted(ROOT.glob("*.toml")):
        if path.stem == "unresolved":
            continue
        for name, values in tomllib.loads(path.read_text()).items():
            rest = {key: value for key, value in values.items() if key not in ("aliases", "date")}
            found[name] = Entry(name, aliases=tuple(values.get("aliases", ())), date=str(values["date"]), **rest)
    return found


@cache
def _index() -> dict[str, list[str]]:
    """Names of models by each of their spellings; a model's own name is its alone."""
    found: dict[str, list[str]] = {}
    for name, model in _entries().items():
        for alias in model.aliases:
            found.setdefault(normalised(alias), []).append(name)
    return found | {normalised(name): [name] for name in _entries()}


@cache
def _unresolved() -> dict[str, str]:
    return dict(tomllib.loads((ROOT / "unresolved.toml").read_text()))


@cache
def _shipped(name: str) -> Model:
    return build(_entries()[name].config, name)


def _read_json(path: Path) -> dict[str, Any]:
    import msgspec

    try:
        value = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no JSON: {error}", operand="model") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", operand="model") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object", operand="model")
    return value
