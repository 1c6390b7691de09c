"""Writes the figures of collectives in ``docs/validation.md``.

python scripts/collectives_table.py collectives.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from trnsim.validation.collectives.report import Validation, mean_errors, validate
from trnsim.validation.collectives.rows import read_rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "validation.md"
BEGIN, END = "<!-- collectives -->", "<!-- end of collectives -->"
SETS = {
    "one node": "GPUs on one node (fitted)",
    "two nodes": "GPUs on two nodes, all_reduce (fitted)",
    "other": "GPUs on one node, other tools (not fitted)",
    "neuron": "Trainium",
}


def figures(found: Validation) -> str:
    """The tables."""
    lines = ["| | points | MAPE | 1 MiB and above | below |", "| --- | --- | --- | --- | --- |"]
    for name, title in SETS.items():
        e = mean_errors([c for c in found.cases if c.set == name])
        lines.append(f"| {title} | {e['cases']} | {_shares(e['all'], e['large'], e['small'])} |")
    for fold in found.folds:
        f = fold.errors()
        lines.append(f"| {fold.name} | {f.points} | {_shares(f.all, f.large, f.small)} |")
        for chip in dict.fromkeys(p.chip for p in fold.predicted):
            f = fold.errors([p for p in fold.predicted if p.chip == chip])
            lines.append(f"| - {chip} | {f.points} | {_shares(f.all, f.large, f.small)} |")
    lines += ["", "| target | value | limit | met |", "| --- | --- | --- | --- |"]
    for t in found.targets:
        value = f"{t.value:.1f} {t.unit}" if t.unit else f"{t.value:.1%}"
        limit = f"{t.low:g} to {t.high:g} {t.unit}" if t.unit else f"{t.high:.0%}"
        lines.append(f"| {t.name} | {value} | {limit} | {'yes' if t.met else 'no'} |")
    lines += ["", "| Trainium | measured | predicted | error | support |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{c.id}` | {c.measured:,.2f} {c.unit} | {c.predicted:,.2f} | {c.error:+.1%} | {c.support} |"
        for c in found.cases
        if c.set == "neuron"
    ]
    lines += ["", "Rows left out, by rule:", ""]
    lines += [f"- {len(ids)}: {reason}" for reason, ids in sorted(found.excluded)]
    return "\n".join([*lines, "", f"{len(found.failed)} rows failed."])


def _shares(*shares: float | None) -> str:
    return " | ".join("" if s is None else f"{s:.1%}" for s in shares)


def main() -> int:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    made = figures(validate(read_rows(sys.argv[1])))
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
