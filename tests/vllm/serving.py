"""A vLLM server of our own: started in a process group, asked until it is ready, stopped with the group."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MODEL = "tiny"
MAX_MODEL_LEN = 8192
# more than all prompts of a test together: on a CPU, vLLM 0.32 dies of a seeded request whose prompt does not
# fit into one step
MAX_BATCHED_TOKENS = 16_384
BLOCK = 128
"""Tokens of a block of the prefix cache on a CPU: only whole blocks are found again."""

_READY_S = 600.0
_STOP_S = 30.0
_LOG_LINES = 60
# these keep it from looking for models and versions, and from telling anyone that it runs
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "auto",
    "TORCH_COMPILE_DISABLE": "1",  # a compiler would work for minutes at the first request
}
ENGINE = (
    *("--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN)),
    *("--max-num-batched-tokens", str(MAX_BATCHED_TOKENS)),
    *("--enable-prompt-tokens-details", "--enable-prefix-caching", "--enforce-eager"),
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment with vLLM, and a folder for what it writes."""

    path: Path
    scratch: Path

    def command(self, name: str, *arguments: str | Path) -> list[str]:
        """The command line of a program in it."""
        return [str(self.path / "bin" / name), *map(str, arguments)]

    @property
    def variables(self) -> dict[str, str]:
        caches = {
            name: str(self.scratch / "cache") for name in ("XDG_CACHE_HOME", "HF_HOME", "VLLM_CACHE_ROOT")
        }
        return {**os.environ, **_ENVIRONMENT, **caches}

    def run(self, name: str, *arguments: str | Path, timeout_s: float) -> None:
        """Run a program to its end. Raises `AssertionError` with the end of its output where it fails."""
        log = self.scratch / f"{name}.log"
        status = None
        with self.started(log, name, *arguments) as process, suppress(subprocess.TimeoutExpired):
            status = process.wait(timeout_s)
        assert status == 0, (
            f"{name} ended with status {status} (None: not within {timeout_s} s):\n{tail(log)}"
        )

    @contextmanager
    def started(self, log: Path, name: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A program in a process group of its own; at the end nothing of the group is left."""
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(name, *arguments),
                cwd=self.scratch,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _stop(process)


@dataclass(frozen=True)
class Server:
    """One that is ready."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def address(self) -> str:
        """As it stands in a configuration, for any server of OpenAI's API."""
        return f"openai:{MODEL}@{self.base}"

    @property
    def vllm_address(self) -> str:
        """The same, for what it is."""
        return f"vllm:{MODEL}@{self.base}"

    def metric(self, name: str) -> float:
        """A counter of its /metrics, over all engines."""
        text = fetch(f"http://127.0.0.1:{self.port}/metrics")
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"the server has no metric {name}"
        return sum(map(float, found))


@contextmanager
def serving(
    environment: Environment, model: Path, log: Path, *flags: str, port: int | None = None
) -> Iterator[Server]:
    """A server of `model`, ready, with further flags, at that port or a free one. Raises `AssertionError`
    with the end of its log where it never is."""
    port = port or free_port()
    options = ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, *ENGINE, *flags)
    with environment.started(log, "vllm", "serve", model, *options) as process:
        server = Server(port, log, process)
        _wait(server)
        yield server


def _wait(server: Server) -> None:
    deadline = time.monotonic() + _READY_S
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            fetch(f"http://127.0.0.1:{server.port}/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the vLLM server did not get ready:\n{tail(server.log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)  # its number is that of the group
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue


def fetch(url: str) -> str:
    """The body at a URL. Raises `OSError` where there is none."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own server
        return str(response.read().decode())


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def tail(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
