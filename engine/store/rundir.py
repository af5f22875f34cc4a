"""The run directory: private to the user, written by one process at a time, never seen half-written.

A file is written under a temporary name, synced, renamed, and its folder synced: after a kill or a power
cut it is the old one or the new one. Equal content gives equal bytes (C12).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from engine.errors import CorruptStoreError, RunError, RunLockedError

MANIFEST = "manifest.json"
LOCK = "run.lock"

_GO_ON = "make room and run the same command again; what was written before is complete"
_TEMPORARY = re.compile(r"\.pld-[0-9a-f]{16}\.tmp")
_LOCK_TEXT = re.compile(rb"([0-9a-f]{32})\n *(\d+)\n")
_JSON_OPTIONS = (
    orjson.OPT_INDENT_2
    | orjson.OPT_SORT_KEYS
    | orjson.OPT_APPEND_NEWLINE
    | orjson.OPT_SERIALIZE_NUMPY
    | orjson.OPT_NON_STR_KEYS
)


class RunDirectory:
    """One run's files. Reading needs no lock; writing happens inside `with run.lock():`.

    Names are relative, with `/` (`rounds/01.json`). Folders have mode 0700, files 0600, whatever the umask.
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is touched yet; see `create` and `open`."""
        self.path = Path(path)
        self._locked = False

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """The run directory at `path`, made if it is not there; an existing run goes on.

        Raises `RunError` for a folder that holds other things: results must not mix with them.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path}: is a file; name a folder")
        with run._errors("cannot be created"):
            missing = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
            for folder in reversed(missing):
                _make_folder(folder)
            if not missing and not run._is_run():
                if any(run.path.iterdir()):
                    raise RunError(f"{run.path}: is not empty and no run directory; choose another folder")
                run.path.chmod(0o700)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run directory. Raises `RunError` where there is none."""
        run = cls(path)
        with run._errors("cannot be opened"):
            if not run.path.is_dir():
                raise RunError(f"{run.path}: no such run directory")
            if not run._is_run():
                raise RunError(f"{run.path}: is not a run directory (it has no {MANIFEST})")
        return run

    def _is_run(self) -> bool:
        # the lock file is the first thing in a new run; a copied one may have lost it
        return (self.path / LOCK).is_file() or (self.path / MANIFEST).is_file()

    # --- the lock --------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process (and the only object) that writes here; clears up after a killed one.

        The operating system holds the lock, so it goes with its process and is never stale. Raises
        `RunLockedError`, naming the holder's pid.
        """
        with self._errors("cannot be locked"):
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._errors("cannot be locked"):
                self._acquire(fd)
            self._locked = True
            try:
                yield
            finally:
                self._locked = False
        finally:
            os.close(fd)  # gives the lock back

    def _acquire(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            found = _LOCK_TEXT.fullmatch(os.pread(fd, 100, 0))
            holder = f" (pid {int(found[2])})" if found else ""
            raise RunLockedError(f"{self.path}: another process is working in this run{holder}") from exc
        os.fchmod(fd, 0o600)
        found = _LOCK_TEXT.fullmatch(os.pread(fd, 100, 0))
        # a process killed between making and filling the file leaves it empty: then the id is drawn here
        run_id = found[1] if found else secrets.token_hex(16).encode()
        os.pwrite(fd, b"%s\n%10d\n" % (run_id, os.getpid()), 0)
        os.fsync(fd)
        sync_folder(self.path)
        for folder, _, names in os.walk(self.path):
            for name in filter(_TEMPORARY.fullmatch, names):
                (Path(folder) / name).unlink(missing_ok=True)

    @property
    def run_id(self) -> str:
        """32 hexadecimal digits, drawn at the first lock; they stay for the life of the directory."""
        found = _LOCK_TEXT.fullmatch(self.read_bytes(LOCK))
        if found is None:
            raise CorruptStoreError(f"{self.path / LOCK}: is damaged; running the command again mends it")
        return found[1].decode()

    # --- writing ---------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that it is there completely, and for good, or not at all.

        Raises `RunError` where the disk is full or access is refused; the old file then stays as it was.
        """
        self._write(name, lambda file: file.write(data))

    def write_text(self, name: str, text: str) -> None:
        """`write_bytes` in UTF-8. Line ends stay as they are."""
        try:
            data = text.encode()
        except UnicodeEncodeError as exc:
            raise RunError(f"{self.path / name}: cannot be written: its text is not valid Unicode") from exc
        self.write_bytes(name, data)

    def write_json(self, name: str, value: Any) -> None:
        """Indented, keys sorted. Numpy numbers, dataclasses and string enums are fine; NaN becomes null."""
        try:
            data = orjson.dumps(value, option=_JSON_OPTIONS)
        except TypeError as exc:
            raise RunError(f"{self.path / name}: cannot be written as JSON: {exc}") from exc
        self.write_bytes(name, data)

    def write_parquet(self, name: str, frame: pl.DataFrame) -> None:
        """Parquet with fixed settings, so that equal frames give equal bytes (one version of polars)."""
        buffer = io.BytesIO()  # polars would hide the reason of a failed write (a full disk)
        # one chunk per column: how a frame was put together must not show in the file
        frame.rechunk().write_parquet(
            buffer, compression="zstd", compression_level=3, statistics=True, row_group_size=1 << 17
        )
        self._write(name, lambda file: file.write(buffer.getbuffer()))

    def write_npy(self, name: str, array: npt.NDArray[Any]) -> None:
        """A numeric array in numpy's own format, C order; loads with `numpy.load`."""
        whole = np.asarray(array, order="C")
        if whole.dtype.hasobject:
            raise RunError(f"{self.path / name}: cannot be written: an array of Python objects")

        def fill(file: BinaryIO) -> None:
            # as numpy.save does, but through file.write, whose errors say what is wrong (a full disk)
            header = np.lib.format.header_data_from_array_1_0(whole)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(whole.data)

        self._write(name, fill)

    def remove(self, name: str) -> None:
        """Take a file away; one that is not there is fine."""
        path = self._writable(name)
        with self._errors(f"cannot remove {name}"):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)

    def _write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        path = self._writable(name)
        temporary = path.with_name(f".pld-{secrets.token_hex(8)}.tmp")
        with self._errors(f"cannot write {name}"):
            missing = [folder for folder in path.parents if not folder.exists()]
            for folder in reversed(missing):
                _make_folder(folder)
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    os.fchmod(fd, 0o600)
                    fill(file)
                    file.flush()
                    os.fsync(fd)
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def _writable(self, name: str) -> Path:
        if not self._locked:
            raise RunError(f"{self.path}: writing {name} needs the lock; use it inside `with run.lock():`")
        return self._locate(name)

    def _locate(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise RunError(f"{self.path}: {name!r} does not name a file in the run directory")
        return self.path.joinpath(*parts)

    # --- reading ---------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a file is there; says nothing about its content."""
        return self._locate(name).is_file()

    def read_bytes(self, name: str) -> bytes:
        """A file's content. Raises `RunError` where it is missing or cannot be read (so do all readers)."""
        path = self._locate(name)
        with self._errors(f"cannot read {name}"):
            try:
                return path.read_bytes()
            except FileNotFoundError as exc:
                raise RunError(f"{path}: is missing; has this run been compiled to the end?") from exc

    def read_text(self, name: str) -> str:
        """UTF-8 text, line ends as they are. Raises `CorruptStoreError` where it is not UTF-8."""
        with self._damage(name, UnicodeDecodeError):
            return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        """A JSON value. Raises `CorruptStoreError` where the file is damaged."""
        with self._damage(name, orjson.JSONDecodeError):
            return orjson.loads(self.read_bytes(name))

    def read_parquet(self, name: str) -> pl.DataFrame:
        """A whole Parquet file. Raises `CorruptStoreError` where it is damaged."""
        data = self.read_bytes(name)
        with self._damage(name, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            return pl.read_parquet(data)

    def read_npy(self, name: str) -> npt.NDArray[Any]:
        """A numpy array, never a pickle. Raises `CorruptStoreError` where the file is damaged."""
        path = self._locate(name)
        if not path.is_file():
            raise RunError(f"{path}: is missing; has this run been compiled to the end?")
        with self._errors(f"cannot read {name}"), self._damage(name, ValueError, EOFError, SyntaxError):
            loaded: npt.NDArray[Any] = np.load(path, allow_pickle=False)
            return loaded

    def read_manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote. Raises `RunError` where there is none."""
        manifest = self.read_json(MANIFEST)
        if not isinstance(manifest, dict):
            raise CorruptStoreError(f"{self.path / MANIFEST}: is damaged: not a JSON object")
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self.write_json(MANIFEST, manifest)

    # --- errors ----------------------------------------------------------------------------------

    @contextmanager
    def _damage(self, name: str, *kinds: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except kinds as exc:
            raise CorruptStoreError(
                f"{self.path / name}: is damaged; delete it and run the command that makes it again"
            ) from exc

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            reasons = {
                errno.ENOSPC: f"no space left on the device; {_GO_ON}",
                errno.EDQUOT: f"the disk quota is used up; {_GO_ON}",
                errno.EFBIG: f"File too large for the limit here (ulimit -f); {_GO_ON}",
                errno.EACCES: "permission denied",
                errno.EROFS: "the file system is read-only",
            }
            reason = reasons.get(exc.errno or 0) or exc.strerror or type(exc).__name__
            raise RunError(f"{self.path}: {action}: {reason}") from exc


def _make_folder(path: Path) -> None:
    with suppress(FileExistsError):  # another process was faster
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # whatever the umask took away
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put a folder's entries on disk: without it a new file may be gone after a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
