"""Runs a command so that nothing of it outlives whoever asked for it.

Started as a script, `guard.py GRACE_S COMMAND…`, with stdin as a leash: `t` asks the command to end, `k`
kills it, and the end of the stream asks it to end too. The kernel closes the stream when its holder dies, by
whatever signal, so a killed holder leaves nothing behind. On Linux the guard adopts every process whose
parent died, which is how a server's workers become orphans, and ends once none is left. It exits as the
command did (128 + the signal's number where one ended it), or with 127 where it cannot be started.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

TERMINATE, KILL = b"t", b"k"
CANNOT_START = 127

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# the command's helpers after it ended: they clean up by themselves (shared memory, sockets)
_STRAGGLERS_S = 5.0
_GIVE_UP_S = 60.0  # a process in the kernel's hands, such as a GPU driver's, cannot be killed
_LOOK_S = 0.05
_ASKED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class Guard:
    """One command and everything that it starts."""

    def __init__(self, command: Sequence[str], grace_s: float) -> None:
        self._grace_s = grace_s
        self._deadline = float("inf")  # when it is killed
        self._status: int | None = None
        self._wake = _signal_pipe()
        self._leash: list[int] = [0]
        self._child = subprocess.Popen(  # noqa: S603 - to run it is what this is for
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has one thread
        ).pid

    def run(self) -> int:
        """Wait until the command and all it started are gone; its exit code."""
        while not self._ended() and time.monotonic() < self._deadline:
            self._listen()
        if self._status is not None:
            self._stragglers()
        self._kill()
        status = self._status
        if status is None:  # it cannot be killed
            return 128 + signal.SIGKILL
        return status if status >= 0 else 128 - status

    def _listen(self) -> None:
        left = self._deadline - time.monotonic()
        ready, _, _ = select.select([*self._leash, self._wake], [], [], max(0.0, min(left, 3600.0)))
        if self._wake in ready and _ASKED & set(os.read(self._wake, 4096)):
            self._terminate()
        if self._leash and self._leash[0] in ready:
            order = os.read(self._leash[0], 1)
            if order == KILL:
                self._deadline = time.monotonic()
            else:
                self._terminate()
            if not order:
                self._leash.clear()

    def _terminate(self) -> None:
        # the command alone: a server that is asked ends its workers in good order
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + self._grace_s
            _send(self._child, signal.SIGTERM)

    def _ended(self) -> bool:
        """Reap whatever ended, adopted processes too; whether the command is among them."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._child:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def _family(self) -> list[int]:
        self._ended()
        family = descendants(os.getpid())
        if family is None:  # no /proc: the process group is what can be known
            family = [-self._child]
        return [pid for pid in family if _send(pid, 0)]

    def _stragglers(self) -> None:
        for pid in self._family():
            _send(pid, signal.SIGTERM)
        until = min(time.monotonic() + min(_STRAGGLERS_S, self._grace_s), self._deadline)
        while self._family() and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _kill(self) -> None:
        until = time.monotonic() + _GIVE_UP_S
        while family := self._family():
            for pid in family:
                _send(pid, signal.SIGKILL)
            if time.monotonic() >= until:
                print(f"pld: cannot be killed: processes {family}", file=sys.stderr)  # noqa: T201 - the log
                return
            time.sleep(_LOOK_S)


def descendants(ancestor: int) -> list[int] | None:
    """Every running process below `ancestor`; None where the system does not tell (no /proc)."""
    if (found := list(_processes())) == []:
        return None
    children: dict[int, list[int]] = {}
    for pid, parent, _ in found:
        children.setdefault(parent, []).append(pid)
    family, ahead = [], [ancestor]
    while ahead:
        below = children.get(ahead.pop(), [])
        family += below
        ahead += below
    return family


def kill_session(session: int) -> None:
    """Kill what is left of a session whose guard was killed; without /proc, nothing can be found."""
    for pid, _, its_session in list(_processes()):
        if its_session == session:
            _send(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process, parent and session of all that run; what has ended and waits to be reaped is left out."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # after the name, which stands in parentheses and may hold some itself
            state, parent, _, session = (
                (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:4]
            )
            if state not in "ZX":
                yield int(entry.name), int(parent), int(session)


def _send(pid: int, number: int) -> bool:
    """Whether there was a process to send it to; a negative `pid` is a group."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS: a group of processes that ended
        return False
    return True


def _signal_pipe() -> int:
    """A file that gets the number of each signal to act on; they no longer end this process."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*_ASKED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reading


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # should the guard itself be killed


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(arguments: Sequence[str]) -> int:
    grace_s, *command = arguments
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        guard = Guard(command, float(grace_s))
    except OSError as exc:
        print(f"cannot start {command[0]}: {exc.strerror}", file=sys.stderr)  # noqa: T201 - the log
        return CANNOT_START
    return guard.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
