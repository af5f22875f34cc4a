"""events.jsonl: what it holds, how large it gets, and that nobody ever waits for it."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from adapters.cli import eventlog
from adapters.cli.eventlog import ATTEMPTS_PER_S, EventLog, logged
from adapters.cli.main import app
from adapters.cli.running import command_line
from engine.events import (
    Attempted,
    ConcurrencyChanged,
    Event,
    LaneVitals,
    Notice,
    StageFinished,
    StageProgress,
    StageStarted,
)
from tests.conftest import ROOT
from tests.support import corpus

LANE = LaneVitals(
    "gemini-3-flash", 61, 64, 412.123456789, 60_000, 1.2e6, 2_000_000, 1.2, 25.0, "server", 0.01, 0.97
)
FAILED = Attempted("extraction", "gemini-3-flash", "r0001", 1, "timeout", 2.0)


def progress(done: int, stage: str = "extraction") -> StageProgress:
    return StageProgress(stage, done, 0, 0, done, 0, 61, 600 * done, 40 * done, 0.1 * done, LANE)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(folder: Path) -> list[dict[str, Any]]:
    """The file's lines; each has to be a JSON object."""
    data = (folder / eventlog.NAME).read_bytes()
    assert data.endswith(b"\n")
    found = [json.loads(line) for line in data.splitlines()]
    assert all(isinstance(one, dict) for one in found)
    return found


def kinds(folder: Path) -> list[str]:
    return [line["event"] for line in lines(folder)]


def test_every_event_is_a_line_with_its_time_and_fields(tmp_path: Path, told: list[Event]) -> None:
    events = [
        StageStarted("extraction", 10),
        progress(3),
        FAILED,
        ConcurrencyChanged("extraction", "gemini-3-flash", 32, 12.0),
        Notice("watch out", warning=True),
        StageFinished("extraction", "10 sent", 1.5),
    ]
    with logged(tmp_path, told.append) as emit:
        for event in events:
            emit(event)
    assert told == events
    first, *middle, last = lines(tmp_path)
    assert first["event"] == "process_started"
    assert set(first) == {"time", "event", "version", "command", "pid"}
    assert (first["version"], first["pid"]) == (eventlog._version(), os.getpid())
    assert first["command"] == command_line()
    assert [line["event"] for line in middle] == [
        "stage_started",
        "stage_progress",
        "attempted",
        "concurrency_changed",
        "notice",
        "stage_finished",
    ]
    assert middle[0] | {"time": ""} == {
        "event": "stage_started",
        "stage": "extraction",
        "total": 10,
        "time": "",
    }
    assert middle[1]["input_tokens"] == 1_800
    assert middle[1]["lane"]["requests_per_s"] == 412.123457
    assert middle[2]["delay_s"] == 2.0
    assert (last["event"], last["error"]) == ("process_ended", None)
    times = [line["time"] for line in (first, *middle, last)]
    assert times == sorted(times)
    frame = pl.read_ndjson(tmp_path / eventlog.NAME)
    parsed = frame["time"].str.to_datetime("%Y-%m-%dT%H:%M:%S%.3fZ", strict=True)
    assert parsed.null_count() == 0


def test_nothing_is_written_before_the_first_request(tmp_path: Path, told: list[Event]) -> None:
    def work() -> None:
        with EventLog(tmp_path, tell=told.append) as log:
            told_to(log, StageStarted("data"), Notice("2 rows"), StageFinished("data", "240 rows", 0.1))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert list(tmp_path.iterdir()) == []


def told_to(log: EventLog, *events: Event) -> None:
    for event in events:
        log(event)


def test_what_stopped_the_work_is_named(tmp_path: Path, told: list[Event]) -> None:
    def work() -> None:
        with EventLog(tmp_path, tell=told.append) as log:
            log(progress(1))
            raise KeyError("a row's own words")

    with pytest.raises(KeyError):
        work()
    assert lines(tmp_path)[-1]["error"] == "KeyError"
    assert "own words" not in (tmp_path / eventlog.NAME).read_text()


def test_progress_once_a_second_and_the_last_of_each_pass(
    tmp_path: Path, told: list[Event], clock: Clock
) -> None:
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        for number in range(2):
            log(StageStarted("extraction"))
            for tenth in range(101):
                clock.now += 0.1
                log(progress(1000 * number + tenth))
            log(StageFinished("extraction", "", 1.0))
    done = [line["done"] for line in lines(tmp_path) if line["event"] == "stage_progress"]
    assert 20 <= len(done) <= 24
    assert 100 in done
    assert done[-1] == 1100
    assert kinds(tmp_path)[-3:] == ["stage_progress", "stage_finished", "process_ended"]


def test_a_long_stage_is_told_every_ten_seconds(tmp_path: Path, told: list[Event], clock: Clock) -> None:
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        log(StageStarted("classify"))
        for _ in range(24 * 3600):
            clock.now += 1.0
            log(progress(1, "classify"))
    assert 9_000 < len(lines(tmp_path)) < 9_300
    assert (tmp_path / eventlog.NAME).stat().st_size < 8_000_000


def test_an_interrupted_stage_keeps_its_last_progress(
    tmp_path: Path, told: list[Event], clock: Clock
) -> None:
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        told_to(log, StageStarted("extraction"), progress(1), progress(2), progress(3))
    assert [line["done"] for line in lines(tmp_path) if "done" in line] == [1, 3]


def test_a_storm_of_failures_is_counted(tmp_path: Path, told: list[Event], clock: Clock) -> None:
    sent = 0
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        log(progress(0))
        for _ in range(5_000):
            clock.now += 0.001
            log(FAILED)
            sent += 1
    found = lines(tmp_path)
    attempts = [line for line in found if line["event"] == "attempted"]
    assert 5 * ATTEMPTS_PER_S <= len(attempts) <= 6 * ATTEMPTS_PER_S
    assert len(attempts) + sum(line.get("suppressed", 0) for line in found) == sent


def test_resumed_runs_append(tmp_path: Path, told: list[Event]) -> None:
    for number in range(3):
        with EventLog(tmp_path, tell=told.append) as log:
            log(progress(number))
    assert kinds(tmp_path) == ["process_started", "stage_progress", "process_ended"] * 3


def test_a_line_torn_by_a_kill_is_taken_away(tmp_path: Path, told: list[Event]) -> None:
    whole = b'{"event":"process_started"}\n{"event":"notice"}\n'
    for torn in (whole + b'{"time":"2026-', b'{"time":', whole):
        (tmp_path / eventlog.NAME).write_bytes(torn)
        with EventLog(tmp_path, tell=told.append) as log:
            log(progress(1))
        kept = kinds(tmp_path)
        assert kept[-3:] == ["process_started", "stage_progress", "process_ended"]
        assert kept[:-3] == (["process_started", "notice"] if torn.startswith(whole) else [])


def test_the_file_is_private_whatever_the_umask(tmp_path: Path, told: list[Event]) -> None:
    before = os.umask(0o777)
    try:
        with EventLog(tmp_path, tell=told.append) as log:
            log(progress(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / eventlog.NAME).stat().st_mode) == 0o600


def test_a_file_that_cannot_be_opened_costs_one_warning(tmp_path: Path, told: list[Event]) -> None:
    (tmp_path / eventlog.NAME).mkdir()
    with EventLog(tmp_path, tell=told.append) as log:
        for done in range(5_000):
            log(progress(done))
            if told:
                break
            time.sleep(0.001)
        told_to(log, progress(1), StageFinished("extraction", "", 1.0))
    (warning,) = told
    assert isinstance(warning, Notice)
    assert warning.warning
    assert "events.jsonl: cannot be written: Is a directory" in warning.text


@pytest.fixture
def little_room() -> Iterator[int]:
    """No file may grow beyond so many bytes: as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    yield 1_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_ends_the_log_and_not_the_work(tmp_path: Path, told: list[Event], clock: Clock) -> None:
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        log(progress(0))
        log(StageFinished("extraction", "", 1.0))
    fitted = len(lines(tmp_path))
    with EventLog(tmp_path, tell=told.append, clock=clock) as log:
        for done in range(100):
            clock.now += 1
            log(progress(done))
    (warning,) = told
    assert isinstance(warning, Notice)
    assert "the event log ends here, the work goes on" in warning.text
    assert len(lines(tmp_path)) == fitted  # and no line is torn


def test_names_that_are_not_utf8_are_written_all_the_same(tmp_path: Path, told: list[Event]) -> None:
    with EventLog(tmp_path, tell=told.append) as log:
        log(Notice("caf\udce9.csv: is gone"))
        log(progress(1))
    assert lines(tmp_path)[1]["text"] == "caf?.csv: is gone"


def test_passwords_in_addresses_are_left_out(
    tmp_path: Path, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = "vllm:m@http://me:secret@one:8000/v1,http://you:secret@two:8000/v1"
    monkeypatch.setattr(sys, "argv", ["pld", "classify", "run", "--student", student])
    with EventLog(tmp_path, tell=told.append) as log:
        log(progress(1))
    command = lines(tmp_path)[0]["command"]
    assert "secret" not in command
    assert "vllm:m@http://…@one:8000/v1,http://…@two:8000/v1" in command


# --- the commands ----------------------------------------------------------------------------------


def test_c11_no_text_of_a_row_comes_into_it(tmp_path: Path) -> None:
    data = corpus.rows()
    planted = "PLANTEDxyz"
    for row in data:
        row["text"] += f" {planted}{row['id']}"
    data.append(
        {"id": "broken", "text": f"{planted} broken", "label": f"no-{planted[-3:]}", "split": "train"}
    )
    corpus.write(tmp_path, data)
    run = tmp_path / "runs/tickets"
    commands = (
        ["compile", tmp_path / "pld.toml"],
        ["evaluate", run],
        ["classify", run, tmp_path / "data.parquet", "-o", tmp_path / "out"],
    )
    for command in commands:
        found = CliRunner().invoke(app, [*map(str, command), "--quiet"])
        assert found.exit_code == 0, found.output
    assert kinds(run).count("process_started") == 2
    assert set(kinds(run)) >= {"stage_started", "stage_progress", "stage_finished", "notice"}
    assert "stage_finished" in kinds(tmp_path / "out")
    for folder in (run, tmp_path / "out"):
        assert planted not in (folder / eventlog.NAME).read_text()


KILLED = """
import os, sys, time
from pathlib import Path
from adapters.cli import eventlog
from engine.events import StageFinished, StageProgress
eventlog._BATCH_S = 3600.0
path = Path(sys.argv[1]) / eventlog.NAME
with eventlog.EventLog(path.parent, tell=print) as log:
    log(StageProgress("extraction", 1, 0, 0, 1, 0, 1, 1, 1, 0.1))
    log(StageFinished("extraction", "", 1.0))
    for _ in range(1000):
        if path.exists() and path.stat().st_size:
            break
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
"""


def test_the_end_of_a_stage_outlives_a_kill(tmp_path: Path) -> None:
    code = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, check=False).returncode
    assert code == -9
    assert kinds(tmp_path) == ["process_started", "stage_progress", "stage_finished"]
