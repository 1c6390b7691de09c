"""Releases of NKI in order, and sets of them written as text: ``"0.1 0.3-0.6"``."""

from __future__ import annotations

from functools import cache

VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")
LATEST = VERSIONS[-1]


@cache
def versions(text: str) -> tuple[str, ...]:
    """The releases that ``text`` names: single ones and ranges; ``0.4-`` goes to the latest.

    >>> versions("0.1 0.4-")
    ('0.1', '0.4', '0.5', '0.6')
    """
    found: list[str] = []
    for part in text.split():
        first, dash, last = part.partition("-")
        start = VERSIONS.index(first)
        stop = VERSIONS.index(last) if last else len(VERSIONS) - 1 if dash else start
        found += VERSIONS[start : stop + 1]
    return tuple(found)


def spell(text: str) -> str:
    """The same in words.

    >>> spell("0.1 0.3-0.6"), spell("0.4-"), spell("0.2-0.3")
    ('NKI 0.1 and 0.3 and later', 'NKI 0.4 and later', 'NKI 0.2 to 0.3')
    """
    parts = []
    for part in text.split():
        first, dash, last = part.partition("-")
        if dash and (not last or last == LATEST):
            parts.append(f"{first} and later" if first != LATEST else first)
        else:
            parts.append(f"{first} to {last}" if dash else first)
    return "NKI " + " and ".join(parts)
