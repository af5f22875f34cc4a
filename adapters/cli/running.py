"""Running an engine call from a command: the event loop, Ctrl-C, and errors as one clear line."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import typer

from adapters.cli.display import Display
from engine.errors import InterruptedRunError, PldError
from engine.stopping import StopSignal

T = TypeVar("T")


def run(work: Callable[[StopSignal], Awaitable[T]], display: Display) -> T:
    """Run `work` to its end.

    Ctrl-C (or SIGTERM) once asks it to drain and save, twice cancels it. Errors become one line.
    """
    again = shlex.join(["pld", *sys.argv[1:]])
    with errors_as_one_line(f"everything finished is saved. Go on with: {again}"), display:
        return asyncio.run(_with_signals(work, display))


@contextmanager
def errors_as_one_line(when_stopped: str) -> Iterator[None]:
    """End the program with one line on stderr and the right exit code where something is raised.

    A `PldError` says what to do; a defect of ours comes with a hint at `PLD_DEBUG=1`, which shows the
    traceback. `when_stopped` is what an interruption says.
    """
    try:
        yield
    except (InterruptedRunError, asyncio.CancelledError, KeyboardInterrupt):
        _leave(f"stopped; {when_stopped}", InterruptedRunError.exit_code)
    except PldError as exc:
        if os.environ.get("PLD_DEBUG"):
            raise
        _leave(str(exc), exc.exit_code)
    except Exception as exc:
        if os.environ.get("PLD_DEBUG"):
            raise
        _leave(f"unexpected {type(exc).__name__}: {exc} (PLD_DEBUG=1 shows where)", 1)


async def _with_signals(work: Callable[[StopSignal], Awaitable[T]], display: Display) -> T:
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def interrupted() -> None:
        if not stop.requested:
            display.say("stopping: what is in flight is finished and saved; Ctrl-C again stops at once")
            stop.request()
        elif task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    return await work(stop)


def _leave(message: str, exit_code: int) -> NoReturn:
    one_line = " ".join(message.split())
    typer.echo(f"pld: {one_line}", err=True)
    raise typer.Exit(exit_code)
