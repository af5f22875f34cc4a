"""A folder of requests files and answers files: what has been asked, and where the answers to it stand.

Files of any size are read line by line, once: of each line only its place is kept in memory (some 200 bytes),
and a file that has grown is read from where it had ended.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from adapters.answer_lines import key_of, load_line, refuses_temperature

_REQUESTS = re.compile(r"requests-(\d{3,})\.jsonl")
_ANSWERS = re.compile(r"answers-.*\.jsonl", re.DOTALL)
_BOM = b"\xef\xbb\xbf"
_BLANK = b""
_OTHER = b"other"
_LONGEST_LINE = 64 * 2**20
_TAIL = 4096
_SHOWN_LINES = 5


class LineFile:
    """The lines of one file that carry an id.

    `places` are their offsets by id; `others` counts lines whose id cannot be one of ours, `broken` are the
    numbers of lines that are none of this format, and `torn` says whether the last one is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: tuple[int, int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.places: dict[bytes, tuple[int, ...]] = {}
        self.others = 0
        self.broken: list[int] = []
        self.torn = False
        self.refuses_temperature = False
        self._lines = 0
        self._end = 0  # of the last line that has an end
        self._loose: bytes | None = None  # the id of the line after that, which may still change
        self._tail = b""

    def refresh(self) -> bool:
        """Read what is new; whether anything was."""
        found = self.path.stat()
        mark = (found.st_size, found.st_mtime_ns, found.st_ino)
        if mark == self._mark:
            return False
        with self.path.open("rb") as file:
            if not self._goes_on(file, found.st_size):
                self._forget()
            self._read(file)
        self._mark = mark
        return True

    def _goes_on(self, file: BinaryIO, size: int) -> bool:
        """Whether what was read is still there, as in a file that was only appended to."""
        file.seek(self._end - len(self._tail))
        return size >= self._end and file.read(len(self._tail)) == self._tail

    def _read(self, file: BinaryIO) -> None:
        file.seek(self._end)
        self.torn = False
        self._drop_loose()
        while line := file.readline(_LONGEST_LINE):
            offset = self._end
            whole = line.endswith(b"\n")
            if not whole and len(line) == _LONGEST_LINE:
                whole = _skip_line(file)
            key = self._key(line if offset else line.removeprefix(_BOM))
            if key is not None and key not in (_BLANK, _OTHER):
                self.places[key] = (*self.places.get(key, ()), offset)
            if not whole:  # perhaps it is being written: it is read again
                self.torn = key is None
                self._loose = key if key in self.places else None
                break
            self._end = file.tell()
            self._lines += 1
            self.others += key == _OTHER
            if key is None:
                self.broken.append(self._lines)
        file.seek(max(0, self._end - _TAIL))
        self._tail = file.read(self._end - file.tell())

    def _drop_loose(self) -> None:
        if self._loose is not None:
            *places, _ = self.places.pop(self._loose)
            if places:
                self.places[self._loose] = tuple(places)
            self._loose = None

    def _key(self, line: bytes) -> bytes | None:
        """The id of a line, `_BLANK` or `_OTHER`; None for a line that is none of this format."""
        if not line.strip():
            return _BLANK
        document = load_line(line)
        if document is None:
            return None
        self.refuses_temperature |= refuses_temperature(document)
        return key_of(document) or _OTHER


def _skip_line(file: BinaryIO) -> bool:
    """Read on to the end of the line; False where the file ends before it."""
    while part := file.readline(_LONGEST_LINE):
        if part.endswith(b"\n"):
            return True
    return False


class LineReader:
    """Reads lines at their places; use it as a context manager."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def line(self, path: Path, offset: int) -> bytes:
        """The line that begins there."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._stack.enter_context(path.open("rb"))
        file.seek(offset)
        line = file.readline(_LONGEST_LINE)
        return line if offset else line.removeprefix(_BOM)


class AnswerFolder:
    """The files of one folder, requests by number and answers by name.

    A requests file is *open* until an answers file has a line for one of its ids that was not there when it
    was written (`.requests-NNN.json` beside it tells what was). Lines that cannot be used are left out, and
    told in `remarks`. All methods but `refresh` see the folder as it was then. OSError passes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: dict[int, LineFile] = {}
        self.answers: list[LineFile] = []
        self.remarks: list[str] = []
        self._open: dict[int, bool] = {}

    def refresh(self) -> None:
        """Look for files that are new or have changed."""
        known = {file.path: file for file in (*self.requests.values(), *self.answers)}
        requests: dict[int, LineFile] = {}
        answers: list[LineFile] = []
        changed: list[LineFile] = []
        others: list[Path] = []
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if not path.is_file():
                continue
            asked, answered = _REQUESTS.fullmatch(path.name), _ANSWERS.fullmatch(path.name)
            if not (asked or answered):
                others.append(path)
                continue
            file = known.get(path) or LineFile(path)
            try:
                if file.refresh():
                    changed.append(file)
            except FileNotFoundError:  # taken away just now
                continue
            if asked:
                requests[int(asked[1])] = file
            else:
                answers.append(file)
        if changed or len(requests) + len(answers) != len(known):
            self._open.clear()
        self.requests, self.answers = dict(sorted(requests.items())), answers
        for file in changed:
            if file in answers:
                self._look_over(file)
        if requests and not answers:
            for path in others:
                self._misnamed(path)

    def asked_in(self, key: bytes) -> list[int]:
        """The numbers of the requests files that hold an id."""
        return [number for number, file in self.requests.items() if key in file.places]

    def lines(self, key: bytes, reader: LineReader) -> Iterator[bytes]:
        """The lines of an id, in the order of the files' names."""
        for file in self.answers:
            for offset in file.places.get(key, ()):
                yield reader.line(file.path, offset)

    def answers_to(self, key: bytes, reader: LineReader) -> Iterator[dict[str, Any]]:
        """The same, read."""
        for line in self.lines(key, reader):
            document = load_line(line)
            if document is not None and key_of(document) == key:  # else the file has changed meanwhile
                yield document

    def trace(self, key: bytes, reader: LineReader) -> str:
        """A word for all the lines of an id, in any order; "" where there are none."""
        lines = sorted(hashlib.sha256(line.strip()).digest() for line in self.lines(key, reader))
        return hashlib.sha256(b"".join(lines)).hexdigest()[:16] if lines else ""

    def is_open(self, number: int, reader: LineReader) -> bool:
        """Whether nobody has answered any line of a requests file so far."""
        if number not in self._open:
            before = self._before(number)
            self._open[number] = not any(
                self.trace(key, reader) != before.get(key.hex(), "")
                for key in self.requests[number].places
                if any(key in file.places for file in self.answers)
            )
        return self._open[number]

    @property
    def refuses_temperature(self) -> bool:
        """Whether an answer says that the model takes no temperature."""
        return any(file.refuses_temperature for file in self.answers)

    def requests_path(self, number: int) -> Path:
        return self.path / f"requests-{number:03d}.jsonl"

    def before_path(self, number: int) -> Path:
        """Where the traces stand of those ids that had lines when the requests file was written."""
        return self.path / f".requests-{number:03d}.json"

    def _before(self, number: int) -> dict[str, str]:
        try:
            found = orjson.loads(self.before_path(number).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _look_over(self, file: LineFile) -> None:
        """Remark on what is left out of an answers file."""
        strange = file.others + sum(
            len(places)
            for key, places in file.places.items()
            if not any(key in asked.places for asked in self.requests.values())
        )
        name = shown(file.path)
        if not (file.places or file.others or file.broken or file.torn):
            self._remark(f"{name}: is empty")
        if file.broken:
            numbers = ", ".join(map(str, file.broken[:_SHOWN_LINES]))
            more = ", …" if len(file.broken) > _SHOWN_LINES else ""
            self._remark(
                f"{name}: {len(file.broken)} lines are not answers in OpenAI's batch format and are left out "
                f"(line {numbers}{more})"
            )
        if file.torn:
            self._remark(f"{name}: the last line is cut off and is left out")
        if strange:
            self._remark(
                f"{name}: {strange} lines answer no request of a requests file here and are left out"
            )

    def _misnamed(self, path: Path) -> None:
        if path.suffix == ".jsonl" and not path.name.startswith("."):
            self._remark(
                f"{shown(path)} is not read: give files with answers a name such as answers-001.jsonl"
            )

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


def shown(path: Path) -> str:
    """A path as a user would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
