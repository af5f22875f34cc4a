"""Looking for a secret in all that a program has left behind."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, quote_plus

import polars as pl

_WINDOW = 12  # characters; a shorter piece of a key may be chance


def forms(secret: str) -> set[bytes]:
    """Every piece of 12 characters of a secret, and the whole of it as it looks quoted for a URL or JSON, in
    hex, and in base64 at any place in what was encoded."""
    plain = secret.encode()
    found = {secret[i : i + _WINDOW] for i in range(len(secret) - _WINDOW + 1)}
    found |= {secret.lower(), secret.upper(), quote(secret, safe=""), quote(secret), quote_plus(secret)}
    found |= {secret.replace("/", "\\/"), plain.hex(), plain.hex().upper()}
    for before, skip in ((0, 0), (1, 2), (2, 3)):  # characters that hold bits of what stands before
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + plain).decode()
            found.add(encoded[skip : len(encoded) - 4])  # the last four hold bits of what follows
    return {one.encode() for one in found}


def places_of(secret: str, folder: Path) -> list[str]:
    """Where in `folder` a secret stands: names and bytes of files, cells of Parquet files and databases."""
    wanted = forms(secret)

    def holds(data: bytes) -> bool:
        return any(one in data for one in wanted)

    return [
        f"{path.relative_to(folder)}: {what}"
        for path in sorted(folder.rglob("*"))
        for what, data in _contents(path)
        if holds(data)
    ]


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    yield "name", path.name.encode()
    if not path.is_file():
        return
    data = path.read_bytes()
    yield "bytes", data
    if path.suffix == ".parquet":  # its pages may be compressed
        frame = pl.read_parquet(path)
        for column in frame.columns:
            yield column, "\n".join(map(str, frame[column].to_list())).encode("utf-8", "surrogatepass")
    if data.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            # a large value lies in pages that need not follow each other
            names = [
                name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            for name in names:
                for row in database.execute(f"SELECT * FROM {name}"):  # noqa: S608 - its own table
                    for cell in row:
                        yield name, cell if isinstance(cell, bytes) else str(cell).encode()
