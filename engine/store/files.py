"""Input files: finding them, telling their format, opening and fingerprinting them."""

from __future__ import annotations

import glob
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

from engine.errors import DataError

Format: TypeAlias = Literal["parquet", "csv", "tsv", "ndjson"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
}
_KNOWN = "Parquet (.parquet), CSV (.csv, .tsv) and NDJSON (.ndjson, .jsonl) can be read, text also as .gz"
_MAGIC = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"\x1f\x8b": "gzip-compressed; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it with `zstd -d`",
    b"PK\x03\x04": "a zip or Excel file; export it as CSV in UTF-8",
    b"\xff\xfe": "UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
}
_HEAD = 1 << 16
_EDGE = 1 << 20
_CONTROL = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a data set. `path` is relative to the configuration's folder where it lies below that."""

    path: str
    size: int
    sha256: str


def find_files(patterns: Sequence[str | Path], base: Path = Path()) -> tuple[Path, ...]:
    """The files that paths and globs name, in the order given; the matches of one glob are sorted by name.

    A file named twice counts once. Raises `DataError` where a name matches nothing or is no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = base / pattern
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name its files, for example {path}/*.parquet")
        if path.exists():  # a real name may hold glob characters
            found[path] = None
            continue
        if not glob.has_magic(str(pattern)):
            raise DataError(f"{path}: no such file")
        # Path.glob takes no absolute pattern
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207
        matches = sorted(match for match in map(Path, names) if match.is_file())
        if not matches:
            raise DataError(f"{path}: no file matches")
        found.update(dict.fromkeys(matches))
    return tuple(found)


def format_of(path: Path) -> Format:
    """The format that a file's name says. Raises `DataError` for one that cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] == [".gz"]
    if suffixes[-1:] == [".zst"]:
        raise DataError(f"{path}: zstd-compressed text cannot be read; unpack it with `zstd -d`")
    kind = _FORMATS.get(suffixes[0] if packed else (suffixes or [""])[-1])
    if kind is None or (packed and kind == "parquet"):
        raise DataError(f"{path}: unknown format; {_KNOWN}")
    return kind


@contextmanager
def open_file(path: Path, watch: Callable[[BinaryIO], None] | None = None) -> Iterator[BinaryIO]:
    """The bytes of a file, a .gz one unpacked. Whatever goes wrong in reading becomes a `DataError`.

    `watch` is given the file as it lies on disk, so that its `tell` says how much of it has been read.
    """
    try:
        with path.open("rb") as raw:
            if watch is not None:
                watch(raw)
            if path.suffix.lower() == ".gz":
                with gzip.open(raw, "rb") as stream:
                    # GzipFile reads like any buffered binary file but is not declared as one
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise DataError(f"{path}: the compressed data is damaged or cut off") from exc
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or type(exc).__name__}") from exc


def check_readable(path: Path) -> None:
    """Raise `DataError` where the content is plainly not what the name says: binary, UTF-16, empty."""
    kind = format_of(path)
    with open_file(path) as stream:
        head = stream.read(_HEAD)
    if not head:
        raise DataError(f"{path}: is empty")
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(f"{path}: is not a Parquet file")
        return
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is {what}")
    controls = len(head) - len(head.translate(None, _CONTROL))
    undecodable = head.decode("utf-8", "replace").count("\ufffd")
    # a few stray bytes spoil their rows only; a file full of them is binary or in another encoding
    if len(head) >= 256 and max(controls, undecodable) > 0.1 * len(head):
        raise DataError(
            f"{path}: is not UTF-8 text; if it is text, convert it, for example with "
            f"`iconv -f CP1252 -t UTF-8`"
        )
    if kind == "ndjson" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise DataError(
            f"{path}: is a JSON array; write one object per line, for example with `jq -c '.[]' FILE`"
        )


def describe(path: Path, base: Path) -> InputFile:
    """Size and SHA-256 of a whole file, read in blocks."""
    digest = hashlib.sha256()
    size = 0
    name = path.relative_to(base) if path.is_relative_to(base) else path
    with _open_raw(path) as stream:
        while block := stream.read(_EDGE):
            digest.update(block)
            size += len(block)
    return InputFile(str(name), size, digest.hexdigest())


def fingerprint(paths: Sequence[Path]) -> tuple[str, ...]:
    """One word per file that changes when the file does: its size and the SHA-256 of its first and last MiB.

    Cheap at any size. A change in the middle of a larger file that keeps its size goes unnoticed.
    """
    words = []
    for path in paths:
        with _open_raw(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            digest = hashlib.sha256(stream.read(_EDGE))
            stream.seek(max(0, size - _EDGE))
            digest.update(stream.read(_EDGE))
        words.append(f"{size}:{digest.hexdigest()}")
    return tuple(words)


@contextmanager
def _open_raw(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or type(exc).__name__}") from exc
