"""The engine's calls for code that is not asynchronous: scripts, notebooks, other people's loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from engine.bulk import classify
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.distillation.sweeping import sweep
from engine.tuning import long_job, new_event_loop

P = ParamSpec("P")
T = TypeVar("T")


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """`function` as a call that returns when it is done, with the same parameters, results and errors.

    Where an event loop is running already (a notebook has one) the work goes on in a thread of its own, and
    the caller's loop waits.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _run(function(*args, **kwargs))
        with ThreadPoolExecutor(1, thread_name_prefix="pld") as pool:
            return pool.submit(lambda: _run(function(*args, **kwargs))).result()

    call.__name__ = call.__qualname__ = f"{function.__name__}_sync"
    call.__module__ = __name__
    return call


def _run(work: Coroutine[Any, Any, T]) -> T:
    with long_job(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


compile_prompt_sync = blocking(compile_prompt)
evaluate_sync = blocking(evaluate)
classify_sync = blocking(classify)
sweep_sync = blocking(sweep)
