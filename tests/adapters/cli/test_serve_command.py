"""`pld serve` as a user meets it: what stands on stdout, how it ends, and what is left."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.addresses import parse_remote
from adapters.cli.main import app
from adapters.cli.serve import address_of
from adapters.registry import scheme_of
from adapters.serving.command import ServeOptions
from adapters.serving.server import open_port
from engine.errors import InterruptedRunError
from engine.prompt import CompiledPrompt
from engine.store import RunDirectory
from engine.store.compiled import save_prompt
from tests.conftest import ROOT
from tests.support import fake_vllm
from tests.support.processes import Pids, comes_true

MODEL = "org/model"
PROMPT = CompiledPrompt("Sort the tickets. " * 100, {"billing": "money", "technical": "it does not work"})


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pids:
    """A fake vLLM, first on PATH, and its processes."""
    folder = tmp_path / "pids"
    folder.mkdir()
    fake_vllm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(folder))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Pids(folder)


@pytest.fixture
def port() -> int:
    return open_port("127.0.0.1", 0)


def compiled(folder: Path) -> None:
    run = RunDirectory.create(folder)
    with run.lock():
        save_prompt(run, PROMPT)


class Terminal:
    """A `pld serve` of its own process, and what it printed."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def errors(self) -> list[str]:
        return self._errors.read_text().splitlines()

    def line(self) -> str:
        """The next line on stdout, which comes when the server is ready."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def press(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code; nothing more stands on stdout."""
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        return self.process.wait(60)


@contextmanager
def serving(tmp_path: Path, port: int, *options: str, manner: str = "") -> Iterator[Terminal]:
    command = [sys.executable, "-c", "from adapters.cli.main import main; main()", "serve", MODEL]
    errors = tmp_path / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "FAKE_VLLM": manner, "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        try:
            yield Terminal(process, errors)
        finally:
            process.kill()


def test_the_address_is_one_that_models_are_opened_by() -> None:
    address = address_of(ServeOptions(MODEL, port=8123))
    assert scheme_of(address)
    assert (parse_remote(address).name, parse_remote(address).urls) == (MODEL, ("http://127.0.0.1:8123/v1",))


def test_the_address_is_all_of_stdout_and_ctrl_c_ends_it(tmp_path: Path, pids: Pids, port: int) -> None:
    with serving(tmp_path, port, manner="orphan") as pld:
        address = pld.line()
        assert address == address_of(ServeOptions(MODEL, port=port))
        assert len(pids.alive()) == 2
        pld.press(signal.SIGINT)
        assert pld.end() == InterruptedRunError.exit_code
    assert pids.alive() == []
    assert any(f"--student {address}" in line for line in pld.errors)
    assert pld.errors[-1] == "pld: stopped; the server is gone, and all that it started"
    assert (tmp_path / f"vllm-{port}.log").exists()


def test_sigterm_while_it_loads(tmp_path: Path, pids: Pids, port: int) -> None:
    with serving(tmp_path, port, manner="mute") as pld:
        assert comes_true(lambda: bool(pids.alive()))
        pld.press(signal.SIGTERM)
        assert pld.end() == InterruptedRunError.exit_code
    assert pids.alive() == []


def test_ctrl_c_twice_kills(tmp_path: Path, pids: Pids, port: int) -> None:
    with serving(tmp_path, port, manner="stubborn") as pld:
        pld.line()
        pld.press(signal.SIGINT)
        assert comes_true(lambda: any("Ctrl-C again kills" in line for line in pld.errors))
        pld.press(signal.SIGINT)
        assert pld.end() == InterruptedRunError.exit_code
    assert pids.alive() == []


def test_a_killed_pld_leaves_nothing(tmp_path: Path, pids: Pids, port: int) -> None:
    with serving(tmp_path, port, manner="orphan") as pld:
        pld.line()
        pld.process.kill()
        assert pld.end() == -signal.SIGKILL
    assert pids.gone()


# --- in this process -------------------------------------------------------------------------------


def serve(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_dry_run_prints_the_command_for_a_shell(tmp_path: Path, pids: Pids) -> None:
    compiled(tmp_path / "run")
    done = serve(MODEL, "--run", "run", "--dry-run", "--tensor-parallel-size", "2", "--", "--dtype", "half x")
    assert done.exit_code == 0, done.stderr
    words = shlex.split(done.stdout)
    program = words.index("serve") - 1
    assert words[program] == str(tmp_path / "bin" / "vllm")
    assert all("=" in word for word in words[:program])
    assert words[program + 2] == MODEL
    assert 4096 < int(words[words.index("--max-model-len") + 1]) < 8192
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[-2:] == ["--dtype", "half x"]
    assert pids.noted == []


def test_no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    done = serve(MODEL)
    assert done.exit_code == 1
    assert done.stderr.startswith("pld: vLLM is not installed")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("./nowhere",), 2, "there is no model at ./nowhere"),
        ((MODEL, "--run", "nowhere"), 1, "nowhere: no such run directory"),
        ((MODEL, "--", "--api-key", "x"), 2, "VLLM_API_KEY"),
        ((MODEL, "--vllm", "nowhere"), 1, "--vllm nowhere"),
        ((MODEL, "--host", "no such host"), 2, "is no address"),
        ((MODEL, "--port", "70000"), 2, "65535"),
        ((MODEL, "--max-model-len", "64", "--run", "run", "--dry-run"), 0, "the prompt alone is about"),
    ],
)
@pytest.mark.usefixtures("pids")
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], exit_code: int, said: str) -> None:
    compiled(tmp_path / "run")
    done = serve(*arguments)
    assert done.exit_code == exit_code
    assert said in " ".join(done.stderr.split())


@pytest.mark.usefixtures("pids")
def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve(MODEL, "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert "is in use" in done.stderr


def test_a_server_that_dies_later_is_one_clear_line(
    pids: Pids, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "late")
    done = serve(MODEL, "--port", port, "--quiet")
    assert done.exit_code == 1
    assert done.stdout == f"{address_of(ServeOptions(MODEL, port=port))}\n"
    assert pids.alive() == []
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "pld: the server ended with exit code 0: ValueError: a request that no step can hold"
    )
    assert f"vllm-{port}.log" in line


def test_json_is_one_object_with_what_the_run_asks_for(
    tmp_path: Path, pids: Pids, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "run")
    monkeypatch.setenv("FAKE_VLLM", "late uncached")
    done = serve(MODEL, "--port", port, "--run", "run", "--json", "--log", "own.log")
    found = json.loads(done.stdout)
    assert found["address"] == address_of(ServeOptions(MODEL, port=port))
    assert (found["max_model_len"], found["block_size"]) == (fake_vllm.CONTEXT, fake_vllm.BLOCK)
    assert found["prefix_caching"] is False
    assert found["prompt_tokens"] > 300
    assert ["prefix cache is off" in one for one in found["warnings"]] == [True]
    assert Path(found["log"]).samefile(tmp_path / "own.log")
    errors = done.stderr.splitlines()
    assert any(line.startswith("warning: the prompt is read anew") for line in errors)
    assert any("pld classify run INPUT" in line for line in errors)


def test_out_of_memory_while_it_loads(pids: Pids, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "oom")
    done = serve(MODEL, "--port", str(port), "--quiet")
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("pld: the server ended with exit code 1: out of GPU memory: lower")
    assert pids.alive() == []


def test_an_open_port_without_a_key_is_warned_of(
    pids: Pids, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "oom")
    everywhere = ("--host", "0.0.0.0", "--port", str(port), "--quiet")  # noqa: S104
    assert "can use the model" in serve(MODEL, *everywhere).stderr
    monkeypatch.setenv("VLLM_API_KEY", "secret-value")
    done = serve(MODEL, *everywhere)
    assert "can use the model" not in done.stderr
    assert "secret-value" not in done.output
