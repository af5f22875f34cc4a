"""Running an engine call from a command: the event loop, Ctrl-C, and errors as one clear line."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar, cast

import typer

from adapters.cli.display import Display
from engine.errors import AwaitingAnswers, InterruptedRunError, PldError
from engine.stopping import StopSignal
from engine.tuning import long_job, new_event_loop

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(work: Callable[[StopSignal], Awaitable[T]], display: Display) -> T:
    """Run `work` to its end.

    Ctrl-C (or SIGTERM) once asks it to drain and save, twice cancels it; three times ends the process where a
    thread would hold it up. Errors become one line.
    """
    with (
        errors_as_one_line(_how_to_go_on()),
        display,
        _signal_handlers_kept(),
        long_job(),
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        return runner.run(_with_signals(work, display))


def command_line() -> str:
    """What the user typed, ready to be typed again."""
    return shlex.join(["pld", *sys.argv[1:]])


def _how_to_go_on() -> str:
    return f"everything finished is saved. Go on with: {command_line()}"


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
        if os.environ.get("PLD_DEBUG") and not isinstance(exc, AwaitingAnswers):  # that is no fault
            raise
        _leave(str(exc), exc.exit_code)
    except Exception as exc:
        if os.environ.get("PLD_DEBUG"):
            raise
        _leave(f"unexpected {type(exc).__name__}: {exc} (PLD_DEBUG=1 shows where)", 1)


async def _with_signals(work: Callable[[StopSignal], Awaitable[T]], display: Display) -> T:
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    task = cast("asyncio.Task[T]", asyncio.current_task())
    presses = 0

    def interrupted() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            display.say("stopping: what is in flight is finished and saved; Ctrl-C again stops at once")
            stop.request()
        elif presses == 2:
            task.cancel()
        else:
            # closing the loop waits for its threads, and clustering may take minutes; what is finished
            # outlives this as it outlives a kill
            display.close()
            typer.echo(f"pld: stopped; {_how_to_go_on()}", err=True)
            os._exit(InterruptedRunError.exit_code)

    # they stay until the loop is closed
    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupted)
    return await work(stop)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put the signal handlers back that were there before; uvloop leaves its own behind."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python, and cannot be
                signal.signal(number, handler)


def _leave(message: str, exit_code: int) -> NoReturn:
    one_line = " ".join(message.split())
    typer.echo(f"pld: {one_line}", err=True)
    raise typer.Exit(exit_code)
