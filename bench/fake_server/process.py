"""The fake server as a process of its own, and the handle that a benchmark or a test holds."""

from __future__ import annotations

import asyncio
import gc
import http.client
import importlib
import importlib.util
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import orjson

from bench.fake_server.behaviour import Behaviour
from bench.fake_server.server import HOST, Server

_STOP_S = 5.0
_CALL_S = 30.0


class FakeServer:
    """A running fake server; stopped by `stop` or the end of the `with` block, and with this process.

    Raises `RuntimeError` where it does not start or refuses a call.
    """

    def __init__(self, behaviour: Behaviour | None = None, **fields: Any) -> None:
        """Starts it; `fields` replace single fields of the behaviour. Returns when it listens."""
        told = {**(behaviour or Behaviour()).to_json(), **fields}
        command = [sys.executable, "-m", "bench.fake_server", "--port", "0", "--behaviour"]
        self._child = subprocess.Popen(  # noqa: S603 - our own module
            [*command, orjson.dumps(told).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the client: it still has answers to wait for
        )
        line = self._child.stdout.readline() if self._child.stdout else b""
        if not line:
            self.stop()
            raise RuntimeError(f"the fake server did not start (exit code {self._child.returncode})")
        self.port = int(orjson.loads(line)["port"])
        self.pid = self._child.pid

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a path."""
        return f"http://{HOST}:{self.port}"

    def seen(self, *, keys: bool = False) -> dict[str, Any]:
        """What it saw, as `/fake/seen` tells it; with `keys`, by body."""
        return call(self.port, "GET", "/fake/seen?keys=1" if keys else "/fake/seen")

    def configure(self, **fields: Any) -> dict[str, Any]:
        """Replace fields of its behaviour; gives all of them."""
        return call(self.port, "POST", "/fake/configure", fields)

    def reset(self) -> None:
        """Forget what was seen, fill the buckets."""
        call(self.port, "POST", "/fake/reset")

    def stop(self) -> None:
        """Stop it and wait for its end. Calling it twice is harmless."""
        child = self._child
        if child.stdin:
            child.stdin.close()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout:
            child.stdout.close()


def call(port: int, method: str, path: str, document: object = None) -> dict[str, Any]:
    """One call of a control route. Raises `RuntimeError` with what the server says against it."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_CALL_S)
    try:
        connection.request(method, path, body=b"" if document is None else orjson.dumps(document))
        answer = connection.getresponse()
        content: dict[str, Any] = orjson.loads(answer.read())
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"the fake server answers {answer.status}: {content.get('error')}")
    return content


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop: uvloop's, where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def run(behaviour: Behaviour, port: int) -> None:
    """Serve until SIGTERM, SIGINT, /fake/shutdown, or the end of stdin where that is a pipe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # a connection is a file
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        runner.run(_serve(behaviour, port))


async def _serve(behaviour: Behaviour, port: int) -> None:
    server = Server(behaviour)
    await server.start(port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    stdin = sys.stdin.fileno()
    piped = stat.S_ISFIFO(os.fstat(stdin).st_mode)
    if piped:  # held open by whoever started this process, so that it does not outlive them

        def read() -> None:
            if not os.read(stdin, 4096):
                server.stop()

        loop.add_reader(stdin, read)
    ready = {"port": server.port, "pid": os.getpid()}
    sys.stdout.write(orjson.dumps(ready).decode() + "\n")
    sys.stdout.flush()
    gc.collect()
    gc.freeze()
    try:
        await server.stopping.wait()
    finally:
        if piped:
            loop.remove_reader(stdin)
        await server.aclose()
