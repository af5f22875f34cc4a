"""Strings that files can hold."""

from __future__ import annotations


def valid(text: str) -> str:
    """`text` with U+FFFD for what UTF-8 cannot hold: file names and messages may have half of a pair."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
