"""Measured serving runs from the result files of ``vllm bench serve`` and guidellm.

Both become ``MeasuredServing`` in our conventions: TPOT = (E2E - TTFT) / (output tokens - 1), which is vLLM's TPOT and
what guidellm calls inter-token latency (its "time per output token" includes the first). Times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trnsim.errors import InputError

from .fields import Fields, read_json

_STATISTICS: Final = ("mean", "median", "std", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, kw_only=True)
class MeasuredServing:
    """One measured run. Statistics by name (``mean``, ``median``, ``p99``, ...); None: not in the file.

    ``rate``: requests a second that were sent, infinity for all at once; None for a closed loop of ``concurrency``.
    ``input_tokens`` and ``output_tokens`` are totals of the ``requests`` that were answered.
    """

    source: str
    model: str
    requests: int
    duration: float | None
    rate: float | None
    concurrency: int | None
    input_tokens: float | None
    output_tokens: float | None
    requests_per_second: float
    output_tokens_per_second: float
    ttft: dict[str, float] = field(default_factory=dict)
    tpot: dict[str, float] = field(default_factory=dict)
    itl: dict[str, float] = field(default_factory=dict)
    e2e: dict[str, float] = field(default_factory=dict)


def read_vllm_bench(path: str | Path) -> MeasuredServing:
    """The JSON that ``vllm bench serve --save-result`` writes (``benchmark_serving.py`` of older releases too)."""
    fields = Fields(str(path), read_json(path))
    rate = fields.data.get("request_rate")
    if rate is not None:
        try:
            rate = float(rate)
        except (TypeError, ValueError):
            fields.fail("request_rate", "must be a number or inf", rate)
    concurrency = fields.count("max_concurrency") if fields.has("max_concurrency") else None
    return MeasuredServing(
        source=str(path),
        model=fields.text("model_id", ""),
        requests=fields.count("completed", low=0),
        duration=fields.number("duration"),
        # All at once under a bound on concurrency is a closed loop.
        rate=None if concurrency is not None and rate == float("inf") else rate,
        concurrency=concurrency,
        input_tokens=fields.number("total_input_tokens"),
        output_tokens=fields.number("total_output_tokens"),
        requests_per_second=fields.number("request_throughput"),
        output_tokens_per_second=fields.number("output_throughput"),
        ttft=_vllm(fields, "ttft", required=True),
        tpot=_vllm(fields, "tpot"),
        itl=_vllm(fields, "itl"),
        e2e=_vllm(fields, "e2el"),
    )


def _vllm(fields: Fields, name: str, *, required: bool = False) -> dict[str, float]:
    found = {s: fields.number(f"{s}_{name}_ms") / 1e3 for s in _STATISTICS if fields.has(f"{s}_{name}_ms")}
    if required and not found:
        raise InputError(f"{fields.where}: mean_{name}_ms: missing")
    return found


def read_guidellm(path: str | Path) -> list[MeasuredServing]:
    """The benchmarks of guidellm's JSON report, one a rate or concurrency; figures of its successful requests."""
    data = read_json(path)
    report = Fields(str(path), data)
    rows = report.raw("benchmarks")
    if not isinstance(rows, list) or not rows:
        report.fail("benchmarks", "must be a list of at least one", rows)
    return [_guidellm(Fields(f"{path}: benchmarks[{i}]", row), str(path)) for i, row in enumerate(rows)]


def _guidellm(row: Fields, source: str) -> MeasuredServing:
    metrics = row.table("metrics")
    strategy = _strategy(row)
    kind = strategy.text("type_", "") if strategy else ""
    concurrency = None
    if strategy and kind in {"concurrent", "synchronous"}:
        concurrency = strategy.count("streams", 1)
    rate = strategy.number("rate") if strategy and strategy.has("rate") else None
    return MeasuredServing(
        source=source,
        model=_model(row),
        requests=_requests(metrics),
        duration=row.number("duration") if row.has("duration") else None,
        rate=float("inf") if kind == "throughput" else rate,
        concurrency=concurrency,
        input_tokens=_total(metrics, "prompt_token_count"),
        output_tokens=_total(metrics, "output_token_count"),
        requests_per_second=_successful(metrics, "requests_per_second").number("mean"),
        output_tokens_per_second=_successful(metrics, "output_tokens_per_second").number("mean"),
        ttft=_distribution(metrics, "time_to_first_token_ms", 1e3),
        tpot=_distribution(metrics, "inter_token_latency_ms", 1e3),
        e2e=_distribution(metrics, "request_latency", 1.0),
    )


def _strategy(row: Fields) -> Fields | None:
    """How requests were sent; releases keep it in different places."""
    for path in (("config", "strategy"), ("args", "strategy"), ("scheduler", "strategy")):
        at: Fields | None = row
        for key in path:
            at = at.table(key) if at is not None and at.has(key) else None
        if at is not None:
            return at
    return None


def _model(row: Fields) -> str:
    for path in (("worker", "backend_model"), ("config", "backend"), ("benchmarker", "backend")):
        if row.has(path[0]) and row.table(path[0]).has(path[1]):
            found = row.table(path[0]).raw(path[1])
            model = found.get("model", "") if isinstance(found, dict) else found
            return str(model)
    return ""


def _requests(metrics: Fields) -> int:
    if metrics.has("request_totals"):
        return metrics.table("request_totals").count("successful", low=0)
    latency = _successful(metrics, "request_latency")
    return latency.count("count", low=0)


def _successful(metrics: Fields, name: str) -> Fields:
    return metrics.table(name).table("successful")


def _total(metrics: Fields, name: str) -> float | None:
    if not metrics.has(name):
        return None
    found = _successful(metrics, name)
    return found.number("total_sum") if found.has("total_sum") else None


def _distribution(metrics: Fields, name: str, scale: float) -> dict[str, float]:
    fields = _successful(metrics, name)
    found = {"mean": fields.number("mean") / scale} if fields.has("mean") else {}
    for theirs, ours in (("median", "median"), ("std_dev", "std")):
        if fields.has(theirs):
            found[ours] = fields.number(theirs) / scale
    percentiles = fields.table("percentiles") if fields.has("percentiles") else fields
    for name_ in ("p50", "p90", "p95", "p99"):
        if percentiles.has(name_):
            found[name_] = percentiles.number(name_) / scale
    if not found:
        raise InputError(f"{fields.where}: mean: missing")
    return found
