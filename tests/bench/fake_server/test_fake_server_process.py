"""The server as a process: it starts, tells, and never outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench.fake_server import Behaviour, FakeServer, ceiling
from bench.fake_server.process import call

COMMAND = [sys.executable, "-m", "bench.fake_server"]


def started(*arguments: str, stdin: int = subprocess.PIPE) -> tuple[subprocess.Popen[bytes], int]:
    child = subprocess.Popen([*COMMAND, *arguments], stdin=stdin, stdout=subprocess.PIPE)
    assert child.stdout is not None
    ready = orjson.loads(child.stdout.readline())
    assert ready["pid"] == child.pid
    return child, ready["port"]


def ended(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(20)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def test_the_handle() -> None:
    with FakeServer(Behaviour(seed=3), text="one") as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        answer = call(server.port, "POST", "/v1/chat/completions", {})
        assert answer["choices"][0]["message"]["content"] == "one"
        assert (server.seen()["requests"], len(server.seen(keys=True)["keys"])) == (1, 1)
        assert server.configure(text="two")["seed"] == 3
        server.reset()
        assert server.seen()["requests"] == 0
        with pytest.raises(RuntimeError, match="did you mean text"):
            server.configure(txt="x")
        server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_the_ceiling_is_measured() -> None:
    with FakeServer(count_keys=False) as server:
        found = ceiling(server.url, seconds=0.2, connections=4, depth=2)
        assert found.requests > 0
        assert min(found.requests_per_s, found.server_cpu_s, found.client_cpu_s) > 0
        server.configure(permanent_status=400)
        with pytest.raises(ValueError, match="400"):
            ceiling(server.url, seconds=0.1)
        server.configure(permanent_status=0, faults={"length": 1.0}, count_keys=True)
        with pytest.raises(ValueError, match="same good answer"):
            ceiling(server.url, seconds=0.1, connections=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    child, _ = started()
    child.send_signal(number)
    assert ended(child) == 0


def test_it_ends_with_its_stdin() -> None:
    child, _ = started()
    assert child.stdin is not None
    child.stdin.close()
    assert ended(child) == 0


def test_without_a_pipe_it_stays_until_it_is_told() -> None:
    child, port = started(stdin=subprocess.DEVNULL)
    call(port, "GET", "/fake/seen")
    assert call(port, "POST", "/fake/shutdown") == {}
    assert ended(child) == 0


def test_it_ends_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\nfrom bench.fake_server import FakeServer\n"
        "print(FakeServer().port, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, script], capture_output=True, check=False, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    # the server shares its parent's stderr, and `run` has seen the end of that
    with pytest.raises(ConnectionRefusedError):
        call(int(parent.stdout), "GET", "/fake/seen")


@pytest.mark.parametrize("given", ["{", "[]", '{"latncy_s": 1}'])
def test_a_behaviour_that_cannot_be_used(given: str) -> None:
    child = subprocess.run([*COMMAND, "--behaviour", given], capture_output=True, check=False, text=True)
    assert child.returncode == 2
    assert "--behaviour" in child.stderr
    assert "Traceback" not in child.stderr


def test_a_fit_that_is_not_there() -> None:
    behaviour = orjson.dumps({"answers": "local", "local_fit": "/nowhere/local.json"}).decode()
    child = subprocess.run([*COMMAND, "--behaviour", behaviour], capture_output=True, check=False, text=True)
    assert child.returncode == 1
    assert child.stderr.startswith("/nowhere/local.json")
    assert child.stderr.count("\n") == 1
