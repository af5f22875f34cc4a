"""Keys come from the environment and appear nowhere else (C11): neither in a file nor in what is printed."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bench.fake_server import FakeServer
from engine.config_file import load_config
from tests.conftest import ROOT
from tests.support import corpus
from tests.support.searching import places_of
from tests.support.served import GEMINI, OPENAI, fit_file

KEY = "sk-Pl4nted/7f3a+Q9zw=k2718281828/w"
VARIABLES = {OPENAI: "PLANTED_KEY", GEMINI: "GEMINI_API_KEY"}
NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nobody has listened for decades
COMPILE = ("compile", "pld.toml")

MAIN = "from adapters.cli.main import main\nmain()\n"
# an error of ours while the client with its headers is on the stack
DEFECT = """
import adapters.gemini_client, adapters.http
for client, name in ((adapters.http.HttpClient, "post"), (adapters.gemini_client.GeminiClient, "call")):
    async def broken(self, *arguments, ask=getattr(client, name)):
        await ask(self, *arguments)
        raise RuntimeError("a defect")
    setattr(client, name, broken)
"""


@dataclass
class Desk:
    """A user's folder, home included, and all that was printed there."""

    folder: Path
    address: str
    printed: list[str] = field(default_factory=list)

    def config(self, url: str) -> None:
        more = [f'timeout_s = 20\napi_key_env = "{VARIABLES[self.address]}"\n']
        tables = "".join(
            f'[{role}]\nmodel = "{self.address.format(role=role, url=url)}"\n{more[0]}'
            for role in ("teacher", "student", "embedder")
        )
        text = corpus.write(self.folder, corpus.rows(160), more=tables).read_text(encoding="utf-8")
        text = text.replace("max_rounds = 3", "max_rounds = 1").replace(
            "min_samples = 3", 'min_samples = 3\nwithin = "label"'
        )
        (self.folder / "pld.toml").write_text(text, encoding="utf-8")

    def pld(self, *arguments: str, code: int = 0, program: str = MAIN, **variables: str) -> str:
        """Run a command as a user would; returns what it printed."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"), str(home))
        found = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=self.folder,
            env={**inherited, **places, "PYTHONPATH": str(ROOT), VARIABLES[self.address]: KEY, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert found.returncode == code, found.stderr
        self.printed += [found.stdout, found.stderr]
        return found.stdout + found.stderr

    def check(self) -> None:
        """The key is nowhere."""
        (self.folder / "printed.txt").write_text("\n".join(self.printed), encoding="utf-8")
        assert places_of(KEY, self.folder) == []


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Desk:
    return Desk(tmp_path, request.param)


@pytest.fixture
def server(desk: Desk) -> Iterator[FakeServer]:
    """A server that demands the key, and repeats it in each of its errors."""
    desk.config(NOBODY)
    behaviour: dict[str, Any] = {
        "answers": "local",
        "local_fit": fit_file(load_config(desk.folder / "pld.toml"), desk.folder),
        "api_key": KEY,
        "echo_key": True,
    }
    with FakeServer(**behaviour) as server:
        desk.config(server.url)
        yield server


both = pytest.mark.parametrize("desk", [OPENAI, GEMINI], ids=["openai", "gemini"], indirect=True)


@both
def test_of_a_key_that_is_refused(desk: Desk, server: FakeServer) -> None:
    server.configure(api_key="another")
    assert "does not accept the key" in desk.pld(*COMPILE, "--json", code=1)
    assert server.seen()["refused"]["key"] > 0
    desk.check()


@both
@pytest.mark.slow
def test_of_a_run_that_ends_well(desk: Desk, server: FakeServer) -> None:
    # some rows are refused for good, which failures.parquet tells of
    marker = {"permanent_status": 400, "permanent_marker": "ticket12"}
    server.configure(**marker, faults={"error_500": 0.05, "truncated": 0.02})
    desk.pld(*COMPILE)
    desk.pld(*COMPILE, "--json")
    run = "runs/tickets"
    desk.pld("evaluate", run, "--json")
    desk.pld("classify", run, "data.parquet", "-o", "out")
    seen = server.seen()
    assert "key" not in seen["refused"]
    assert seen["by_status"]["400"] > 0
    assert seen["by_status"]["500"] > 0
    failures = pl.read_parquet(desk.folder / run / "failures.parquet")
    assert len(failures) > 0
    left = {path.name for path in desk.folder.rglob("*")}
    assert {"responses.sqlite", "events.jsonl", "manifest.json", "evaluation.json", "rules.parquet"} <= left
    desk.check()


@both
@pytest.mark.slow
def test_of_runs_that_fail(desk: Desk, server: FakeServer) -> None:
    for status in (400, 401):
        server.configure(api_key="", permanent_status=status)
        desk.pld(*COMPILE, code=1)
    server.configure(permanent_status=0, faults={"content_filter": 1.0})
    desk.pld(*COMPILE, code=1)
    desk.config(NOBODY)
    assert "nobody answers there" in desk.pld(*COMPILE, code=1)
    desk.check()


@both
@pytest.mark.slow
def test_of_a_defect(desk: Desk, server: FakeServer) -> None:
    broken = DEFECT + MAIN
    for flags in ((), ("--json",)):
        assert "pld: unexpected RuntimeError: a defect" in desk.pld(*COMPILE, *flags, code=1, program=broken)
    # asked for, the traceback comes, without what the frames hold
    assert "Traceback" in desk.pld(*COMPILE, code=1, program=broken, PLD_DEBUG="1")
    assert server.seen()["usable"] > 0
    desk.check()


def test_what_is_searched(tmp_path: Path) -> None:
    """A key is found wherever it may be put."""
    header = f"Authorization: Bearer {KEY}"
    (tmp_path / "raw.bin").write_bytes(b"\0\xff" + header.encode())
    (tmp_path / "piece.txt").write_text(KEY[8:24])
    (tmp_path / "url.txt").write_text("?key=sk-Pl4nted%2F7f3a%2BQ9zw%3Dk2718281828%2Fw&x")
    (tmp_path / "json.txt").write_text(KEY.replace("/", "\\/"))
    (tmp_path / "hex.txt").write_text(header.encode().hex())
    for before in range(3):
        text = base64.b64encode(b"u" * before + KEY.encode() + b" and more").decode()
        (tmp_path / f"base64-{before}.txt").write_text(text)
    many = pl.DataFrame({"id": range(1000), "detail": [f"HTTP 401 {KEY}"] * 1000})
    many.write_parquet(tmp_path / "cells.parquet", compression="zstd")
    with closing(sqlite3.connect(tmp_path / "cells.sqlite")) as database:
        database.execute("CREATE TABLE answers (data BLOB)")
        database.execute("INSERT INTO answers VALUES (?)", (b"x" * 9_000 + KEY.encode() + b"x" * 9_000,))
        database.commit()
    (tmp_path / "clean.txt").write_text("sk-Pl4nted, and nothing else of it")
    (tmp_path / KEY[10:23]).touch()
    found = {place.partition(":")[0] for place in places_of(KEY, tmp_path)}
    assert found == {path.name for path in tmp_path.iterdir()} - {"clean.txt"}
