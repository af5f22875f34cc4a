"""A `vllm` program that loads no model: it behaves as FAKE_VLLM says, words with spaces between.

`slow` gets ready only after a moment; `oom` ends while loading, out of memory; `late` dies of its engine soon
after it was ready; `stubborn` ignores SIGTERM; `orphan` leaves a process behind that has a session of its own
and ignores SIGTERM; `mute` never gets ready; `uncached` serves without a prefix cache. The pids of all its
processes go to the folder FAKE_VLLM_PIDS, one file each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK, CONTEXT = 128, 8192
ORPHAN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
OOM = (
    "(EngineCore pid=7) ERROR 11-23 00:21:39 [core.py:1200] torch.OutOfMemoryError: CUDA out of memory. "
    "Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 311.81 MiB is free.\n"
    "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above."
)
DEAD = (
    "(EngineCore pid=7) ERROR 11-23 00:31:39 [core.py:900] ValueError: a request that no step can hold\n"
    "(APIServer pid=6) ERROR 11-23 00:31:39 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: "
    "EngineCore encountered an issue. See stack trace (above) for the root cause.\n"
    "INFO:     Finished server process [6]"
)


def install(folder: Path) -> Path:
    """Put the program into a folder, under its name."""
    folder.mkdir(exist_ok=True)
    program = folder / "vllm"
    program.write_text(
        f"#!{sys.executable} -IS\n" + Path(__file__).read_text(encoding="utf-8"), encoding="utf-8"
    )
    program.chmod(0o755)
    return program


def main() -> None:
    manner = os.environ.get("FAKE_VLLM", "").split()
    _note(os.getpid())
    if "stubborn" in manner:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "orphan" in manner:
        _leave_orphan()
    _say("(EngineCore pid=7) INFO 11-23 00:21:35 [weights.py:12] Loading weights:  50%\r")
    if "oom" in manner:
        _say(f"\n{OOM}\n")
        sys.exit(1)
    while "mute" in manner:
        time.sleep(600)
    if "slow" in manner:
        time.sleep(1.2)
    options = dict(zip(sys.argv, sys.argv[1:], strict=False))
    server = ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler)
    Handler.name = options["--served-model-name"]
    Handler.caching = "uncached" not in manner
    Handler.late = "late" in manner
    server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """The few answers that say what a server is."""

    name = ""
    caching = True
    late = False

    def do_GET(self) -> None:
        if self.path == "/metrics" and self.late:  # the last that is asked of every server
            threading.Timer(0.5, _die).start()
        card = {"id": self.name, "max_model_len": CONTEXT}
        metrics = (
            f'vllm:cache_config_info{{block_size="{BLOCK}",enable_prefix_caching="{self.caching}"}} 1.0\n'
        )
        self._answer(
            {"/health": "", "/metrics": metrics, "/v1/models": json.dumps({"data": [card]})}[self.path]
        )

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = sum(len(message["content"].split()) for message in question["messages"])
        self._answer(json.dumps({"count": words, "tokens": list(range(words))}))

    def _answer(self, body: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Nothing: vLLM's access log is off."""


def _die() -> None:
    _say(f"{DEAD}\n")
    os._exit(0)  # as vLLM does when its engine died


def _leave_orphan() -> None:
    """A grandchild whose parent has ended."""
    if os.fork() == 0:
        child = subprocess.Popen(
            [sys.executable, "-ISc", ORPHAN], start_new_session=True, stdout=subprocess.PIPE
        )
        child.stdout.readline()
        _note(child.pid)
        os._exit(0)
    os.wait()


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(pid: int) -> None:
    (Path(os.environ["FAKE_VLLM_PIDS"]) / str(pid)).touch()


if __name__ == "__main__":
    main()
