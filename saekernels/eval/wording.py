"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 token", "50,195 tokens"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
