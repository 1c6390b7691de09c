"""Print docs/plans.md again: run each command that it shows and put its output below it, pictures too.

The text between the blocks stays as it is: read it against the new figures.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "plans.md"
BLOCK = re.compile(r"```\n\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n(?P<output>.*?)```", re.DOTALL)


def printed(block: re.Match[str]) -> str:
    """The block with what its command prints now."""
    command = block["command"]
    words = shlex.split(command.replace("\\\n", " "))
    images = PAGE.parent / "images"
    done = subprocess.run(
        [sys.executable, "-m", "trnsim", *words[1:]],
        check=True, capture_output=True, text=True, cwd=images, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    lines = "\n".join(line.rstrip() for line in done.stdout.splitlines()).rstrip()
    return f"```\n$ {command}\n{lines}\n```"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(printed, PAGE.read_text()))
