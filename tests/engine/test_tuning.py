"""The garbage collector of a long job, and which event loop it runs on."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from engine.tuning import long_job, new_event_loop

with_uvloop = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed (the extra `fast`)"
)


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """As the interpreter sets it, whatever a test does to it."""
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(*before)


def test_the_heap_is_frozen_and_the_young_generation_may_grow_until_the_end() -> None:
    before = gc.get_threshold()
    with long_job():
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == (20_000, *before[1:])
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


def test_everything_is_put_back_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="broken"), long_job():
        raise ValueError("broken")
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_jobs_that_overlap_count_as_one() -> None:
    before = gc.get_threshold()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with long_job():
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=other)
    with long_job():
        with long_job():
            thread.start()
            inside.wait(10)
        assert gc.get_threshold()[0] == 20_000
    # the first one in has left, the other is still at work
    assert gc.get_threshold()[0] == 20_000
    assert gc.get_freeze_count() > 0
    go_on.set()
    thread.join(10)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_a_disabled_collector_stays_as_it_is() -> None:
    before = gc.get_threshold()
    gc.disable()
    with long_job():
        assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == (False, before, 0)
    assert not gc.isenabled()


def test_a_threshold_of_nought_disables_too() -> None:
    gc.set_threshold(0, 10, 10)
    with long_job():
        assert gc.get_threshold()[0] == 0
        assert gc.get_freeze_count() == 0
    assert gc.get_threshold()[0] == 0


def test_a_higher_threshold_is_not_lowered() -> None:
    gc.set_threshold(100_000, 50, 50)
    with long_job():
        assert gc.get_threshold() == (100_000, 50, 50)
    assert gc.get_threshold() == (100_000, 50, 50)


def test_thresholds_set_meanwhile_are_kept() -> None:
    with long_job():
        gc.set_threshold(1_234, 5, 6)
    assert gc.get_threshold() == (1_234, 5, 6)


def test_what_the_program_froze_itself_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with long_job():
        assert gc.get_freeze_count() <= frozen  # some of it may have been freed
    assert gc.get_freeze_count() > frozen // 2


def test_cycles_are_still_freed() -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            self.more = [[] for _ in range(10)]
            Node.alive += 1

        def __del__(self) -> None:
            Node.alive -= 1

    with long_job():
        most = 0
        for _ in range(50_000):
            Node()
            most = max(most, Node.alive)
    assert most < 5_000


def kind_of_loop(prelude: str = "") -> str:
    """The module of the loop that a fresh interpreter makes."""
    code = f"{prelude}\nfrom engine.tuning import new_event_loop\nloop = new_event_loop()\n"
    code += "print(type(loop).__module__)\nloop.close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.partition(".")[0].strip()


@with_uvloop
def test_uvloop_where_it_is_installed() -> None:
    assert kind_of_loop() == "uvloop"


def test_asyncio_where_uvloop_is_absent() -> None:
    assert kind_of_loop("import sys\nsys.modules['uvloop'] = None") == "asyncio"


def test_the_loop_runs_a_program() -> None:
    async def main() -> int:
        return await asyncio.to_thread(sum, [1, 2, 3])

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(main()) == 6
