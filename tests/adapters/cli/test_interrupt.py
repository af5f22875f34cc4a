"""Ctrl-C: once drains, saves and prints how to go on; twice stops at once. On either event loop."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from adapters.cli.display import Display
from adapters.cli.main import app
from adapters.cli.running import run
from engine.errors import InterruptedRunError
from engine.stopping import StopSignal
from tests.conftest import ROOT
from tests.engine.distillation.test_pipeline import artifacts
from tests.engine.test_tuning import with_uvloop
from tests.support import corpus

WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None\n"
LOOPS = ["asyncio", pytest.param("uvloop", marks=with_uvloop)]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The event loop that commands run on."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return str(request.param)


class Screen:
    """A display without a terminal, and what it said."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.display = Display(console=Console(file=self.file, highlight=False))


def press(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_drains(loop: str, number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    saved = []

    async def work(stop: StopSignal) -> None:
        assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == loop
        asked = asyncio.Event()
        stop.on_request(asked.set)
        press(number)
        await asked.wait()
        await asyncio.sleep(0)
        saved.append("what was in flight")
        stop.check()

    with pytest.raises(typer.Exit) as left:
        run(work, screen.display)
    assert left.value.exit_code == InterruptedRunError.exit_code
    assert saved == ["what was in flight"]
    assert "Ctrl-C again stops at once" in screen.file.getvalue()
    assert "pld: stopped; everything finished is saved. Go on with: pld" in capsys.readouterr().err


@pytest.mark.usefixtures("loop")
def test_twice_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    async def work(stop: StopSignal) -> None:
        stop.on_request(press)
        press()
        try:
            async with asyncio.timeout(20):
                await asyncio.Event().wait()  # what is in flight does not come back
        finally:
            closed.append("the models")

    with pytest.raises(typer.Exit) as left:
        run(work, Screen().display)
    assert left.value.exit_code == InterruptedRunError.exit_code
    assert closed == ["the models"]
    assert "pld: stopped" in capsys.readouterr().err


@pytest.mark.usefixtures("loop")
def test_what_was_there_before_is_there_afterwards() -> None:
    heard = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def work(stop: StopSignal) -> int:
        return 6

    try:
        for number in before:
            signal.signal(number, lambda number, _frame: heard.append(number))
        ours = [signal.getsignal(number) for number in before]
        thresholds = gc.get_threshold()
        assert run(work, Screen().display) == 6
        assert [signal.getsignal(number) for number in before] == ours
        assert gc.get_threshold() == thresholds
        for number in before:
            press(number)
        assert heard == list(before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


IMPATIENT = """
import asyncio, os, signal, threading, time
from adapters.cli.display import Display
from adapters.cli.running import run

cancelled = threading.Event()

def clusters_for_minutes(asked):
    asked.wait(30)
    os.kill(os.getpid(), signal.SIGINT)
    cancelled.wait(30)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(300)

async def work(stop):
    asked = threading.Event()
    stop.on_request(asked.set)
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.to_thread(clusters_for_minutes, asked)
    finally:
        cancelled.set()

run(work, Display())
"""


def test_the_third_time_waits_for_no_thread(loop: str) -> None:
    prelude = WITHOUT_UVLOOP if loop == "asyncio" else ""
    command = [sys.executable, "-c", prelude + IMPATIENT]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert found.returncode == InterruptedRunError.exit_code
    assert found.stderr.splitlines()[-1] == "pld: stopped; everything finished is saved. Go on with: pld"
    assert "Traceback" not in found.stderr


# --- the commands ----------------------------------------------------------------------------------


def start(loop: str, *arguments: str | Path) -> subprocess.Popen[str]:
    prelude = WITHOUT_UVLOOP if loop == "asyncio" else ""
    return subprocess.Popen(
        [sys.executable, "-c", prelude + "from adapters.cli.main import main; main()", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt_at(process: subprocess.Popen[str], words: str) -> tuple[int, str]:
    """Send SIGINT when `words` stand on stderr; the exit code and all of stderr."""
    assert process.stderr is not None
    told = ""
    while words not in told:
        line = process.stderr.readline()
        assert line, f"ended before {words!r}: {told}"
        told += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    return process.returncode, told + rest


@pytest.mark.slow
def test_compile_interrupted_goes_on_as_told(tmp_path: Path, loop: str) -> None:
    corpus.write(tmp_path / "whole", corpus.rows(1200))
    corpus.write(tmp_path / "cut", corpus.rows(1200))
    runner = CliRunner()
    assert runner.invoke(app, ["compile", str(tmp_path / "whole/pld.toml")]).exit_code == 0
    config = str(tmp_path / "cut/pld.toml")
    code, told = interrupt_at(start(loop, "compile", config), "resolution …")
    assert code == 130
    last = told.splitlines()[-1]
    assert "everything finished is saved" in last
    assert last.endswith(f"Go on with: pld compile {config}")
    assert "Traceback" not in told
    assert runner.invoke(app, ["compile", config]).exit_code == 0
    assert artifacts(tmp_path / "cut/runs/tickets") == artifacts(tmp_path / "whole/runs/tickets")


@pytest.mark.slow
def test_classify_interrupted_goes_on_as_told(tmp_path: Path, loop: str) -> None:
    corpus.write(tmp_path)
    runner = CliRunner()
    assert runner.invoke(app, ["compile", str(tmp_path / "pld.toml")]).exit_code == 0
    texts = [f"{row['text']} {number}" for number in range(600) for row in corpus.rows(100)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "rows.parquet")
    arguments = ["classify", tmp_path / "runs/tickets", tmp_path / "rows.parquet", "-o", tmp_path / "out"]
    arguments += ["--part-rows", "5000"]
    code, told = interrupt_at(start(loop, *arguments), "classify …")
    assert code == 130
    assert "Go on with: pld classify" in told
    assert runner.invoke(app, [str(one) for one in arguments]).exit_code == 0
    parts = pl.read_parquet(tmp_path / "out/part-*.parquet")
    assert sorted(parts["row"]) == list(range(len(texts)))
