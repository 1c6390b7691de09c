"""Write the tables of docs/reference/profiles.md from a folder of published measurements.

    python scripts/profile_tables.py <folder with profiles_trn2, trn2_instr_timing.csv, trn2_dma_timing.csv>

The page's two tables are replaced in place; everything else of it stays as it is.
"""

import re
import sys
from pathlib import Path

from trnsim.commands.validate_instructions import summarize
from trnsim.hardware import load_chip, load_timing
from trnsim.profiles.read import read
from trnsim.profiles.replay import replay
from trnsim.profiles.tables import dma_cases, instruction_cases

PAGE = Path(__file__).parents[1] / "docs/reference/profiles.md"
ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")
REPLAYS = "| profile | measured span | span | " + " | ".join(ENGINES) + " |"
GROUPS = "| figure | cases | within 10 % | mean absolute error | worst |"


def replays(folder, timing):
    for path in sorted((folder / "profiles_trn2").glob("*.json.gz")):
        found = replay(read(path), timing)
        errors = {e.name: f"{e.error:+.1%}" for e in found.engines}
        cells = [path.name.split(".")[0], f"{found.span.measured_ps / 1e6:.1f} us", f"{found.span.error:+.1%}"]
        yield cells + [errors.get(name, "") for name in ENGINES]


def groups(folder, timing):
    cases = instruction_cases(folder / "trn2_instr_timing.csv", timing)
    cases += dma_cases(folder / "trn2_dma_timing.csv", timing)
    for g in summarize(cases):
        yield [
            g["group"], str(g["cases"]), f"{g['within_10_percent']:.0%}", f"{g['mean_absolute_error']:.1%}",
            f"{g['worst_error']:+.1%}",
        ]  # fmt: skip


def table(header, rows):
    lines = [header, "|" + " --- |" * (header.count("|") - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def replaced(text, new):
    """``text`` with the table whose header ``new`` begins with replaced by ``new``."""
    header = new.split("\n")[0]
    pattern = re.escape(header) + r"\n(\|.*\n)*"
    if not re.search(pattern, text):
        raise SystemExit(f"{PAGE} has no table {header}")
    return re.sub(pattern, lambda _: new + "\n", text, count=1)


def main():
    folder, timing = Path(sys.argv[1]), load_timing(load_chip("trn2"))
    text = PAGE.read_text()
    for header, rows in ((REPLAYS, replays(folder, timing)), (GROUPS, groups(folder, timing))):
        text = replaced(text, table(header, rows))
    PAGE.write_text(text)


main()
