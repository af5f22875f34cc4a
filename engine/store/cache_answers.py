"""The answers in the response cache: blocks that are only ever appended, and an index that follows them.

A random key belongs to a page of its own in any index, so that entering each group of answers at once writes
a page for every answer. Instead a commit appends its answers to `responses`, several to a row, and remembers
their keys; when thousands have gathered, all are entered into the index, `places`, in order. Whoever opens
or shares the file reads the rows that are not in the index yet. A row is never changed and never removed, so
that knowing too little for a moment is the worst that can happen.

`responses.data` is one entry after another: key, CRC-32 of key and payload, length of the payload (both
little-endian), payload. `places` maps a tail, the last eight bytes of a key, to a place: the row's id, offset
and size of the entry, as `id << 24 | offset << 12 | size`; both are 0 for an entry that is all of its row.
Several places may have one tail, or even one key: two processes that asked the same at the same time. The
lowest place counts, so that the first answer stays.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from zlib import crc32

import numpy as np

from engine.ports import Record
from engine.store.cache_sql import DamagedError, insert_rows, marks, parts

KEY_BYTES = 32
_HEAD = struct.Struct(f"<{KEY_BYTES}sII")
_BLOCK_BYTES = 3800  # with the other columns, one page of SQLite's
_INDEX_AT = 8192  # keys; they stay in memory until then, and whoever opens the file has to read them
_ROWS_AT_ONCE = 512  # what is read of them at once

_ENTRY = """
CASE place & 4095 WHEN 0 THEN data ELSE substr(data, (place >> 12 & 4095) + 1, place & 4095) END
"""


class Answers:
    """The answers behind one connection. Not for two threads at once."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.forget()

    def forget(self) -> None:
        """Read anew what is remembered of the file: to be called when a transaction was taken back."""
        self._indexed = -1  # rows up to here are in the index
        self._newest = -1  # rows up to here are in the index or in _recent
        self._recent: dict[bytes, int] = {}

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The payloads of those keys that are known. Raises `DamagedError`."""
        if not keys:
            return {}
        self._catch_up()
        found: dict[bytes, bytes] = {}
        recent = self._recent
        for places in parts([recent[key] for key in keys if key in recent]):
            given = f"(SELECT column1 AS place FROM (VALUES {marks(places, '(?)')}))"  # noqa: S608
            found.update(self._read(given, places))
        for tails in parts(_tails(keys)):
            # last: what is in the index came before
            indexed = f"(SELECT place FROM places WHERE tail IN ({marks(tails)}))"  # noqa: S608
            found.update(self._read(indexed, tails))
        wanted = set(keys)
        if not wanted.issuperset(found):  # another key with the same tail
            return {key: payload for key, payload in found.items() if key in wanted}
        return found

    def add(self, records: Iterable[Record], run_id: str) -> None:
        """Append the records, which hold payloads; inside a transaction."""
        self._catch_up()
        remember = self._recent.setdefault
        now = time.time()
        rows: list[int | float | str | bytes] = []
        for block in _blocks(records):
            self._newest += 1
            row = self._newest << 24
            offset = 0
            pieces: list[bytes] = []
            for record, payload, size in block:
                key = record.key
                pieces += (_HEAD.pack(key, crc32(payload, crc32(key)), len(payload)), payload)
                remember(key, row | offset << 12 | size if len(block) > 1 else row)
                offset += size
            first = block[0][0]
            cost_usd = sum([record.cost_usd for record, _, _ in block])
            rows += (self._newest, run_id, first.stage, first.model, now)
            rows += (cost_usd, len(block), b"".join(pieces))
        columns = "id, run_id, stage, model, created_s, cost_usd, answers, data"
        insert_rows(self._db, f"INSERT INTO responses ({columns})", 8, rows)
        if len(self._recent) >= _INDEX_AT:
            self._index()

    def _index(self) -> None:
        tails = np.array(_tails(list(self._recent)))
        places = np.fromiter(self._recent.values(), np.int64, len(tails))
        # in order: neighbours are entered into the same page
        pairs = np.stack([tails, places], axis=1)[np.argsort(tails)]
        insert_rows(self._db, "INSERT INTO places (tail, place)", 2, pairs.ravel().tolist())
        self._db.execute("UPDATE indexed SET up_to = ?", (self._newest,))
        self._indexed = self._newest
        self._recent = {}

    def _catch_up(self) -> None:
        """Learn what other processes have appended or entered into the index."""
        query = "SELECT up_to, (SELECT coalesce(max(id), 0) FROM responses) FROM indexed"
        if (row := self._db.execute(query).fetchone()) is None:
            raise DamagedError("the table indexed is empty")
        indexed, newest = row
        if indexed != self._indexed:
            self._recent = {}
            self._indexed = self._newest = indexed
        while self._newest < newest:
            up_to = min(newest, self._newest + _ROWS_AT_ONCE)
            query = "SELECT id, data FROM responses WHERE id > ? AND id <= ? ORDER BY id"
            for row_id, data in self._db.execute(query, (self._newest, up_to)).fetchall():
                self._learn(row_id, data)
            self._newest = up_to

    def _learn(self, row_id: int, data: bytes) -> None:
        offset = 0
        for key, payload in _entries(data):
            size = _HEAD.size + len(payload)
            alone = size == len(data)
            self._recent.setdefault(key, row_id << 24 | (0 if alone else offset << 12 | size))
            offset += size

    def _read(self, places: str, values: Sequence[int]) -> dict[bytes, bytes]:
        """Payloads by key; `places` is a query for them."""
        source = f"FROM {places} LEFT JOIN responses ON id = place >> 24"
        # all as a single row: each row costs a turn of the interpreter lock, which a busy event loop holds;
        # an aggregate of text takes any bytes as they are, and the cast gives them back
        query = f"SELECT count(*), CAST(group_concat({_ENTRY}, '') AS BLOB) {source}"
        count, data = self._db.execute(query, values).fetchone()
        found = dict(_entries(data or b""))
        if len(found) < count:  # a key has several places, or a place has no answer
            rows = self._db.execute(f"SELECT {_ENTRY} {source} ORDER BY place DESC", values).fetchall()
            if any(data is None for (data,) in rows):
                raise DamagedError("the index names an answer that is not there")
            found = dict(chain.from_iterable(_entries(data) for (data,) in rows))
        return found


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and payloads, in order. Raises `DamagedError` where they are not what was written."""
    start = 0
    while start < len(data):
        try:
            key, checksum, length = _HEAD.unpack_from(data, start)
        except struct.error as exc:
            raise DamagedError("an answer is cut") from exc
        end = start + _HEAD.size + length
        payload = data[start + _HEAD.size : end]
        if end > len(data):
            raise DamagedError("an answer is cut")
        if crc32(payload, crc32(key)) != checksum:
            raise DamagedError("an answer fails its checksum")
        yield key, payload
        start = end


def _tails(keys: Sequence[bytes]) -> list[int]:
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"a key has not {KEY_BYTES} bytes")
    words: list[int] = np.frombuffer(b"".join(keys), dtype=">i8")[3::4].tolist()
    return words


def _blocks(records: Iterable[Record]) -> Iterator[list[tuple[Record, bytes, int]]]:
    """Records, their payloads and the sizes of their entries: as many of one stage and model as fill a page,
    or one that fills it alone.
    """
    block: list[tuple[Record, bytes, int]] = []
    room = 0
    stage = model = ""
    for record in records:
        payload = record.payload or b""
        size = _HEAD.size + len(payload)
        if size > room or record.stage != stage or record.model != model:
            if block:
                yield block
            block, room = [], _BLOCK_BYTES
            stage, model = record.stage, record.model
        block.append((record, payload, size))
        room -= size
    if block:
        yield block
