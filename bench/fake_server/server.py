"""Connections: bytes in, replies out, one after the other on each, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from bench.fake_server.behaviour import Behaviour
from bench.fake_server.protocol import HttpError, HttpRequest, RequestReader, closing, response
from bench.fake_server.replies import Manner, Reply
from bench.fake_server.routes import OPENAI
from bench.fake_server.service import Attempt, Service

HOST = "127.0.0.1"
_BACKLOG = 4096
_MAX_AHEAD = 256 * 1024  # bytes that a client may send ahead of its answers
_LINGER_S = 1.0
_RESET_AFTER_S = 0.02  # the first half of a body has to be on its way before the connection is reset
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, 0 seconds


class Connection(asyncio.Protocol):
    """One client. Requests may be pipelined; they are answered in order, one at a time."""

    _transport: asyncio.Transport
    _gone: asyncio.Future[None]

    def __init__(self, service: Service, connections: set[Connection]) -> None:
        self._service = service
        self._connections = connections
        self._reader = RequestReader()
        self._playing: asyncio.Task[None] | None = None
        self._full = False  # the client does not read
        self._held = False  # we do not read
        self._closing = False

    # --- what asyncio calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)
        self._gone = asyncio.get_running_loop().create_future()
        self._service.connections_accepted += 1
        self._service.connections_open += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._closing = True
        self._connections.discard(self)
        self._service.connections_open -= 1
        self._gone.set_result(None)
        if self._playing is not None:
            self._playing.cancel()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._playing is None and not self._full:
            self._serve()
        elif self._reader.buffered > _MAX_AHEAD and not self._held:
            self._held = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._playing is None:
            self._serve()

    # --- requests ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer what has arrived, up to the first reply that takes time."""
        if self._held:
            self._held = False
            self._transport.resume_reading()
        reader, service = self._reader, self._service
        while not (self._closing or self._full):
            try:
                request = reader.next()
            except HttpError as exc:
                service.counts.invalid += 1
                body = OPENAI.error(400, str(exc)).body
                self._close_with(response(exc.status, body))
                return
            if request is None:
                return
            outcome = service.accept(request)
            if type(outcome) is Reply and outcome.manner is Manner.WHOLE and not outcome.delay_s:
                self._send(outcome, request)
            else:
                self._playing = asyncio.get_running_loop().create_task(self._play(outcome, request))
                return

    def _send(self, reply: Reply, request: HttpRequest) -> None:
        if request.head.keep_alive:
            self._transport.write(reply.data)
        else:
            self._close_with(closing(reply.data))
        self._service.finished(reply)

    def _close_with(self, data: bytes) -> None:
        self._closing = True
        self._transport.write(data)
        self._transport.close()

    async def _play(self, outcome: Reply | Attempt, request: HttpRequest) -> None:
        """Answer one request that takes time, then go on with those that came in the meantime."""
        try:
            reply = outcome if isinstance(outcome, Reply) else await self._service.answer(outcome)
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            if reply.manner is Manner.WHOLE:
                self._send(reply, request)
            else:
                await self._misplay(reply, keep_alive=request.head.keep_alive)
                self._service.finished(reply)
        except BaseException:  # cancelled as the client hung up, or a bug: then it must not wait forever
            self._service.counts.gave_up()
            self._transport.abort()
            raise
        finally:
            self._playing = None
        if not self._full:
            self._serve()

    async def _misplay(self, reply: Reply, *, keep_alive: bool) -> None:
        """Send a reply in the way its fault says."""
        behaviour, transport, data = self._service.behaviour, self._transport, reply.data
        if reply.manner is Manner.HANG:
            await asyncio.get_running_loop().create_future()
        elif reply.manner is Manner.DISCONNECT:
            self._closing = True
            transport.close()
        elif reply.manner is Manner.TRUNCATED:
            self._close_with(data[: reply.spoilt_at])
        elif reply.manner is Manner.RESET:
            self._closing = True
            transport.write(data[: reply.spoilt_at])
            await asyncio.sleep(_RESET_AFTER_S)
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            )
            transport.abort()
        else:
            transport.write(data[: reply.spoilt_at])
            for start in range(reply.spoilt_at, len(data), behaviour.drip_bytes):
                await asyncio.sleep(behaviour.drip_interval_s)
                transport.write(data[start : start + behaviour.drip_bytes])
            if not keep_alive:
                self._closing = True
                transport.close()

    def end(self, *, at_once: bool) -> list[asyncio.Future[None]]:
        """Close the connection, after what is written unless `at_once`; gives what has still to end."""
        self._closing = True
        if at_once or self._playing is not None:
            self._transport.abort()
        else:
            self._transport.close()
        return [self._gone] if self._playing is None else [self._gone, self._playing]


class Server:
    """A fake LLM server in this event loop."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.service = Service(behaviour or Behaviour(), on_shutdown=self.stop)
        self.stopping = asyncio.Event()
        self.port = 0
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{HOST}:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listen; 0: on any free port. Raises `OSError` where the port is taken."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self.service, self._connections), HOST, port, backlog=_BACKLOG
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self.service.watch.start()

    def stop(self) -> None:
        """Take no more connections, and let `stopping` be known."""
        if self._listener is not None:
            self._listener.close()
        self.stopping.set()

    async def aclose(self) -> None:
        """Stop, and cut what is still open."""
        self.stop()
        self.service.watch.stop()
        for at_once in (False, True):  # a client that does not read must not hold the server
            ends = [end for connection in list(self._connections) for end in connection.end(at_once=at_once)]
            if ends:
                await asyncio.wait(ends, timeout=None if at_once else _LINGER_S)
        await self.service.aclose()


@contextlib.asynccontextmanager
async def serving(behaviour: Behaviour | None = None) -> AsyncIterator[Server]:
    """A server in this event loop for as long as the block lasts."""
    server = Server(behaviour)
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()
