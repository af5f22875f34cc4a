"""A server process under guard, and the way until it is ready."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapters.serving import guard
from adapters.serving.causes import cause_of_end, last_line
from adapters.vllm_servers import VllmServers
from engine.errors import ConfigError, ModelError

GRACE_S = 15.0
_LOOK_S = 0.5


class GuardedServer:
    """A running server. Whatever happens to this process, its guard ends all that the server started."""

    def __init__(self, process: asyncio.subprocess.Process, leash: int, log: Path) -> None:
        self.log = log
        self._process = process
        self._leash = leash
        self._end = asyncio.create_task(self._wait())
        self._began = time.monotonic()

    @property
    def session(self) -> int:
        """The number of the session that all its processes are in, guard included."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._began

    def terminate(self) -> None:
        """Ask it to end; what has not ended after the grace is killed. Returns at once."""
        self._order(guard.TERMINATE)

    def kill(self) -> None:
        """Kill it and all it started. Returns at once."""
        self._order(guard.KILL)

    async def ends_within(self, seconds: float) -> bool:
        """Whether it has ended after that time, with all that it started."""
        await asyncio.wait({self._end}, timeout=seconds)
        return self._end.done()

    async def ended(self) -> int:
        """Wait for its end and that of all it started; the server's exit code, 128 + N for signal N."""
        return await asyncio.shield(self._end)

    async def failure(self) -> ModelError:
        """What to raise when it has ended unasked: the cause, as its log has it, and where the log is."""
        code = await self.ended()
        cause = cause_of_end(self.log, code)
        return ModelError(f"the server ended with exit code {code}: {cause}; its log: {self.log}")

    def _order(self, order: bytes) -> None:
        with suppress(BrokenPipeError):  # it is ending already
            os.write(self._leash, order)

    async def _wait(self) -> int:
        code = await self._process.wait()
        if code < 0:  # not the server's: the guard itself was killed
            guard.kill_session(self._process.pid)
            code = 128 - code
        return code


@asynccontextmanager
async def guarded(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, grace_s: float = GRACE_S
) -> AsyncIterator[GuardedServer]:
    """A server whose output goes to the file `log`, private to the user; the log before it is kept as `.1`.

    At the end it is asked to end, and nothing that it started is left. Raises `ConfigError` where the log
    cannot be written.
    """
    with _fresh(log) as output:
        held, leash = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                # isolated and without site-packages: the guard is small, and needs nothing of either
                *(sys.executable, "-I", "-S", guard.__file__, str(grace_s), *command),
                stdin=held,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a terminal's Ctrl-C is for this process to pass on
            )
        except BaseException:
            os.close(leash)
            raise
        finally:
            os.close(held)
    server = GuardedServer(process, leash, log)
    try:
        yield server
    finally:
        server.terminate()
        await server.ended()
        os.close(leash)


async def until_ready(server: GuardedServer, asked: VllmServers, tell: Callable[[float, str], None]) -> bool:
    """Wait until the server answers; False where it ended before.

    `asked` is that server alone. `tell` is called twice a second with the seconds so far and the last line
    of the server's log.
    """
    while not await server.ends_within(_LOOK_S):
        if await asked.ready(asked.bases[0]):
            return True
        tell(server.seconds, last_line(server.log))
    return False


def open_port(host: str, port: int) -> int:
    """The port, or with 0 a free one, if a server can listen there now.

    vLLM lets several servers share a port, and then requests go to any of them. Raises `ModelError` where
    something listens already, `ConfigError` where nothing ever could.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            return int(listening.getsockname()[1])
    except socket.gaierror as exc:
        raise ConfigError(f"--host {host}: is no address ({exc.strerror})") from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ModelError(
                f"port {port} of {host} is in use, perhaps by another server; give another with --port"
            ) from exc
        raise ConfigError(f"cannot listen on port {port} of {host}: {exc.strerror}") from exc


def _fresh(log: Path) -> BinaryIO:
    try:
        if log.is_file():
            log.replace(log.with_name(f"{log.name}.1"))
        return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")
    except OSError as exc:
        raise ConfigError(f"--log {log}: cannot be written ({exc.strerror})") from exc
