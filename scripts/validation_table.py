"""Put the figures of ``trnsim validate kernels --cross-validate --json FILE`` into docs/validation.md.

    python scripts/validation_table.py FILE

Everything between the two marks of the page is replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "validation.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def percent(share, sign=""):
    return "" if share is None else f"{share:{sign}.1%}"


def figures(found):
    left = {item["family"]: item for item in found.get("cross_validation", {}).get("families", [])}
    head = ["family", "cases", "MAPE", "median", "worst", "bias", "pairs in order", "busiest engine", "DMA + compute"]
    head += ["refitted", "without the family", "without its source"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for f in found["families"]:
        refit = left.get(f["name"], {})
        cells = [
            f["name"],
            f["cases"],
            percent(f["mape"]),
            percent(f["median"]),
            percent(f["worst"]),
            percent(f["bias"], "+"),
            "" if f["pairs_in_order"] is None else f"{percent(f['pairs_in_order'])} of {f['pairs']:,}",
            percent(f["naive"]["busiest"]["mape"]),
            percent(f["naive"]["sum"]["mape"]),
            *(percent(refit.get(k)) for k in ("fitted", "without_family", "without_source")),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    s = found["summary"]
    naive = [sum(f["naive"][m]["mape"] for f in found["families"]) / len(found["families"]) for m in ("busiest", "sum")]
    lines.append(
        f"| over families | {s['cases']} | {percent(s['mape'])} | {percent(s['median'])} | {percent(s['worst'])} | "
        f"{percent(s['bias'], '+')} | {percent(s['pairs_in_order'])} of {s['pairs']:,} | {percent(naive[0])} | "
        f"{percent(naive[1])} | | | |"
    )
    if "cross_validation" in found:
        fit = found["cross_validation"]["fit"]
        moved = [f"{name} times {factor:.2f}" for name, factor in fit["factors"].items()]
        moved += [f"clock {name} {shift:+.1f} us" for name, shift in fit["shifts"].items()]
        lines += ["", "A refit on all families would make: " + ", ".join(moved) + "."]
    lines += ["", "Rows left out, by rule:", ""]
    lines += [f"- {e['rows']}: {e['reason']}" for e in found["excluded"]]
    lines += ["", f"{len(found['failed'])} cases failed. Wall time {found['wall_seconds']:.0f} s."]
    return "\n".join(lines)


def main():
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}\n\n{figures(found)}\n\n{END}{after}", encoding="utf-8")


main()
