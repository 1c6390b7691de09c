"""``trnsim models``: the transformers that are known, and what follows from one's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, table, write_json

if TYPE_CHECKING:
    from trnsim.workloads import Entry, Model

CONTEXTS = (2048, 8192, 32768, 131072)


def models(
    name: Annotated[
        str | None, typer.Argument(help="A model's name as published, or a config.json; none lists all.")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write to FILE, or - for standard output.")] = None,
    sequence: Annotated[int, typer.Option("--sequence", help="Tokens of a sequence, for FLOPs in training.")] = 4096,
) -> None:
    """List the shipped models with their parameters and sources, or show one.

    A path to a Hugging Face config.json works wherever a name does.

    Example: trnsim models llama-3.1-70b
    """
    if name is None:
        _list(json)
    else:
        _one(name, json, sequence)


def _list(json: str | None) -> None:
    from trnsim.workloads import entry, load_model, model_names

    found = [(entry(name), load_model(name)) for name in model_names()]
    if json is not None:
        write_json({"schema": "trnsim-models-1", "models": [_summary(model, about) for about, model in found]}, json)
    if json == "-":
        return
    rows = [
        (
            about.name,
            _billions(model.parameters),
            _billions(model.active_parameters) if model.mixture else "",
            str(len(model.layers)),
            str(model.hidden),
            f"{_cache_bytes(model) / 1024:,.0f}" if model.causal else "",
            _where(about),
        )
        for about, model in found
    ]
    columns = ("model", "parameters", "active", "layers", "hidden", "KV KiB", "from")
    out = console()
    out.print(table("Models", columns, rows))
    out.print(
        "KV KiB: of a token at 8,192 tokens, bfloat16, all layers. from: where the values were read; "
        "trnsim models NAME has the source."
    )


def _one(name: str, json: str | None, sequence: int) -> None:
    from trnsim.errors import InputError
    from trnsim.workloads import entry, load_model, weight_formats

    if sequence < 1:
        raise InputError("a sequence has at least one token", operand="--sequence", value=sequence)
    model = load_model(name)
    about = None if name.endswith(".json") or "layers" in model.name or not _shipped(model.name) else entry(name)
    stored = dict(about.formats) if about is not None else weight_formats(model.config)
    value = _summary(model, about) | _details(model, sequence, stored)
    if json is not None:
        write_json({"schema": "trnsim-model-1"} | value, json)
    if json != "-":
        _show(model, about, value, sequence)


def _shipped(name: str) -> bool:
    from trnsim.workloads import model_names

    return name in model_names()


def _summary(model: Model, about: Entry | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": model.name,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "embedding_parameters": model.embedding_parameters,
        "layers": len(model.layers),
        "hidden": model.hidden,
        "vocabulary": model.vocabulary,
        "max_positions": model.positions,
        "next_token_layers": model.next_token,
        "kv_bytes_per_token": _cache_bytes(model),
    }
    if about is not None:
        found |= {
            "title": about.title,
            "aliases": list(about.aliases),
            "source": about.source,
            "read": about.read,
            "date": about.date,
            "published": dict(about.published),
            "formats": dict(about.formats),
            "note": about.note,
        }
    return found


def _details(model: Model, sequence: int, stored: dict[str, str]) -> dict[str, Any]:
    from trnsim.workloads.memory import serving_weights

    return {
        "kinds": [
            {"count": count, "parameters": layer.parameters, "parts": [_describe(part) for part in layer.parts]}
            for layer, count in model.kinds()
        ],
        "weights_bytes": {
            name: serving_weights(model, formats)
            for name, formats in (
                ("stored", stored),
                ("bfloat16", {"default": "bfloat16"}),
                ("fp8", {"default": "fp8", "embedding": "bfloat16", "head": "bfloat16", "router": "bfloat16"}),
                ("mxfp4_experts" if model.mixture else "mxfp4", _four_bits(model)),
            )
        },
        "stored_formats": stored,
        "kv_bytes": {str(tokens): model.cache_elements(tokens) * 2 for tokens in CONTEXTS},
        "state_bytes": model.state_bytes(),
        "flops_per_token": {
            "sequence": sequence,
            "forward": model.forward_flops(sequence) / sequence,
            "training": model.training_flops(sequence) / sequence,
            "decode": model.decode_flops(sequence),
        },
    }


def _four_bits(model: Model) -> dict[str, str]:
    if model.mixture:
        return {"default": "bfloat16", "experts": "mxfp4"}
    return {"default": "mxfp4", "embedding": "bfloat16", "head": "bfloat16"}


def _describe(part: Any) -> str:
    """A part in a line: its kind, and its sizes and choices that are not the usual ones."""
    from dataclasses import fields

    said = []
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name == "hidden" or value == field.default or value in (0, False, "", None):
            continue
        name = field.name.replace("_", " ")
        said.append(f"{name} {value}" if isinstance(value, (int, str)) and value is not True else name)
    return f"{type(part).__name__}: {', '.join(said)}"


def _cache_bytes(model: Model) -> float:
    """Of a token in a context of 8,192, in bfloat16."""
    return float(model.cache_elements(8192)) * 2 / 8192


def _where(about: Entry) -> str:
    text = about.read or about.source
    return text.split(",")[0].split(";")[0].removeprefix("https://")[:34]


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B"


def _show(model: Model, about: Entry | None, value: dict[str, Any], sequence: int) -> None:
    out = console()
    out.print(f"{about.title if about else model.name} ({model.architecture})", highlight=False)
    rows = [("parameters", f"{model.parameters:,}")]
    if model.mixture:
        rows.append(("  active for a token", f"{model.active_parameters:,}"))
    rows.append(("  tables of embeddings", f"{model.embedding_parameters:,}"))
    if about is not None and about.published:
        published = about.published
        active = f", active {published['active'] / 1e9:,.1f} B" if "active" in published else ""
        rows.append(("  published", f"{published['parameters'] / 1e9:,.2f} B{active} ({published['source']})"))
    for kind in value["kinds"]:
        rows.append((f"{kind['count']} layers", f"{kind['parameters']:,} parameters each"))
        rows += [("", text) for text in kind["parts"]]
    if model.next_token:
        rows.append(
            (
                "multi-token prediction",
                f"{model.next_token} of {sum(w.parameters for w in model.next_weights):,} parameters, not counted",
            )
        )
    said = ", ".join(f"{part} {form}" for part, form in value["stored_formats"].items())
    rows += [
        ("weights as stored" if name == "stored" else f"weights in {name}", f"{size / 2**30:,.1f} GiB")
        for name, size in value["weights_bytes"].items()
    ]
    rows.append(("", f"stored: {said}"))
    rows += [
        (f"KV cache of {int(tokens):,} tokens", f"{size / 2**20:,.1f} MiB in bfloat16")
        for tokens, size in value["kv_bytes"].items()
        if model.causal
    ]
    if value["state_bytes"]:
        rows.append(("states of a sequence", f"{value['state_bytes'] / 2**20:,.1f} MiB"))
    flops = value["flops_per_token"]
    rows += [
        ("FLOPs of a token", f"training {flops['training'] / 1e9:,.1f} G, prefill {flops['forward'] / 1e9:,.1f} G"),
        ("", f"decode {flops['decode'] / 1e9:,.1f} G (sequence {sequence:,})"),
    ]
    if about is not None:
        rows.append(("source", about.source + (f" (read: {about.read})" if about.read else "") + f", {about.date}"))
        if about.note:
            rows.append(("note", about.note))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        out.print(f"  {label:{width}}  {text}", highlight=False, soft_wrap=True, markup=False)


def register(app: typer.Typer) -> None:
    """Add ``trnsim models``."""
    app.command()(models)
