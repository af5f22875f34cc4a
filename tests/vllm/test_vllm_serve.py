"""`pld serve` with the real vLLM: what it serves caches the prompt, and nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.prompt import CompiledPrompt
from engine.store import RunDirectory
from engine.store.compiled import save_prompt
from tests.conftest import ROOT
from tests.support.processes import running
from tests.vllm.serving import BLOCK, Environment, fetch, free_port, tail

pytestmark = pytest.mark.vllm

PATIENCE_S = 900.0
PROMPT = CompiledPrompt("Sort the tickets into the right queue. " * 120, {"billing": "", "technical": ""})
# on a CPU a compiler would work for minutes
FLAGS = ("--max-num-batched-tokens", "16384", "--", "--dtype", "bfloat16", "--enforce-eager")


class Serving:
    """A `pld serve`, its log, and every process that it ever had."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.log = folder / "vllm.log"
        self._errors = folder / "errors"
        self._seen: set[int] = set()

    def look(self) -> list[psutil.Process]:
        """Its processes as of now."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self._seen |= {one.pid for one in found}
        return found

    def engines(self) -> list[psutil.Process]:
        """Those of its processes that run vLLM's engine."""
        found = []
        for one in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):  # some live for a moment only
                if "EngineCore" in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def object(self) -> dict[str, Any]:
        """What it prints when it is ready."""
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, f"{self._errors.read_text()}\n{tail(self.log)}"
            text += line
        self.look()
        found: dict[str, Any] = json.loads(text)
        return found

    def end(self) -> tuple[int, str]:
        """Its exit code and its last line."""
        code = self.process.wait(PATIENCE_S)
        return code, (self._errors.read_text().splitlines() or [""])[-1]

    def left(self) -> list[int]:
        return [pid for pid in self._seen if running(pid)]


@contextmanager
def serving(environment: Environment, model: Path, folder: Path, *options: str) -> Iterator[Serving]:
    command = [
        sys.executable,
        "-c",
        "from adapters.cli.main import main; main()",
        "serve",
        str(model),
        "--json",
    ]
    given = ("--vllm", str(environment.path), "--port", str(free_port()), "--log", str(folder / "vllm.log"))
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            [*command, *given, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=environment.scratch,
            env={**environment.variables, "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        try:
            yield Serving(process, folder)
        finally:
            process.kill()


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def ask(base: str, row: str) -> dict[str, Any]:
    """The usage of one answer."""
    messages = [{"role": "system", "content": PROMPT.text}, {"role": "user", "content": row}]
    question = {"model": "served", "messages": messages, "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{base}/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)["usage"]
    return found


def test_it_serves_caches_and_ends_cleanly(
    environment: Environment, tiny_model: Path, tmp_path: Path
) -> None:
    run = RunDirectory.create(tmp_path / "run")
    with run.lock():
        save_prompt(run, PROMPT)
    options = ("--run", str(run.path), "--served-model-name", "served", *FLAGS)
    with serving(environment, tiny_model, tmp_path, *options) as pld:
        said = pld.object()
        assert said["warnings"] == []
        assert (said["block_size"], said["prefix_caching"]) == (BLOCK, True)
        assert said["prompt_tokens"] < said["max_model_len"] <= 16_384
        assert said["vllm"]
        ask(said["base_url"], "the invoice is wrong")
        cached = ask(said["base_url"], "it does not start")["prompt_tokens_details"]["cached_tokens"]
        assert said["prompt_tokens"] - 2 * BLOCK < cached <= said["prompt_tokens"]
        metrics = fetch(said["base_url"].removesuffix("/v1") + "/metrics")
        assert 'prefix_cache_retention_interval="None"' in metrics
        assert len(pld.look()) >= 3, "the guard, the server and its engine"
        pld.process.send_signal(signal.SIGINT)
        assert pld.end() == (130, "pld: stopped; the server is gone, and all that it started")
        assert pld.left() == []


def test_a_dead_engine_is_one_clear_line(environment: Environment, tiny_model: Path, tmp_path: Path) -> None:
    with serving(environment, tiny_model, tmp_path, *FLAGS) as pld:
        pld.object()
        (engine,) = pld.engines()
        engine.kill()
        code, line = pld.end()
        assert code == 1
        assert line.startswith("pld: the server ended with exit code ")
        assert str(pld.log) in line
        assert pld.left() == []


def test_a_pld_killed_while_it_loads_leaves_nothing(
    environment: Environment, tiny_model: Path, tmp_path: Path
) -> None:
    with serving(environment, tiny_model, tmp_path, *FLAGS) as pld:
        assert comes_true(lambda: bool(pld.engines()))
        os.kill(pld.process.pid, signal.SIGKILL)
        pld.process.wait()
        assert comes_true(lambda: not pld.left())


def test_a_flag_that_it_does_not_know(environment: Environment, tiny_model: Path, tmp_path: Path) -> None:
    with serving(environment, tiny_model, tmp_path, "--", "--frobnicate") as pld:
        code, line = pld.end()
        assert code == 1
        assert "does not take that flag" in line
        assert "--frobnicate" in line
