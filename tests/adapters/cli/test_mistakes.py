"""The usual mistakes, one row each: a clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from adapters.cli.main import app
from tests.adapters.responding import Responding, http, responding
from tests.conftest import ROOT
from tests.support import corpus


class Desk:
    """A user's folder, which is the working directory, and a compiled run elsewhere."""

    def __init__(self, folder: Path, compiled: Path) -> None:
        self.folder = folder
        self.run = compiled / "runs" / "tickets"
        self.data = compiled / "data.parquet"
        self.frame = pl.DataFrame(corpus.rows())

    def file(self, name: str, content: bytes = b"x") -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    def config(self, *changes: tuple[str, str], more: str = "") -> None:
        """Write data.parquet and pld.toml, with some words of the configuration changed."""
        path = corpus.write(self.folder, more=more)
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


SetUp = Callable[[Desk], object]


def config(*changes: tuple[str, str], more: str = "") -> SetUp:
    """A configuration with some words changed."""
    return lambda desk: desk.config(*changes, more=more)


def rows(*columns: pl.Expr) -> SetUp:
    """A configuration, and rows with some columns changed."""

    def set_up(desk: Desk) -> None:
        desk.config()
        desk.frame.with_columns(*columns).write_parquet(desk.folder / "data.parquet")

    return set_up


def data(name: str, content: Callable[[pl.DataFrame], bytes]) -> SetUp:
    """A configuration, and a data file with what is made of the usual rows."""

    def set_up(desk: Desk) -> None:
        desk.config(('"data.parquet"', f'"{name}"'))
        desk.file(name, content(desk.frame))

    return set_up


def csv(frame: pl.DataFrame) -> bytes:
    return frame.write_csv().encode()


def cut_off(frame: pl.DataFrame) -> bytes:
    path = Path("whole.parquet")
    frame.write_parquet(path)
    return path.read_bytes()[:-100]


def file(name: str) -> SetUp:
    """A configuration, and another file."""

    def set_up(desk: Desk) -> None:
        desk.config()
        desk.file(name)

    return set_up


def begun(desk: Desk) -> None:
    """A run directory as a compilation leaves it that was killed at once: a lock file, no manifest."""
    desk.config()
    desk.file("begun/run.lock", f"{'0' * 32}\n{1:10d}\n".encode())


def classified(desk: Desk) -> None:
    """The output of a classification, of other texts."""
    desk.config()
    found = pld("classify", desk.run, desk.data, "-o", "out", "--text", "label")
    assert found.exit_code == 0, found.stderr


def student(address: str, more: str = "") -> SetUp:
    """A configuration with a student behind a server."""
    return config(more=f'[student]\nmodel = "{address}"\n{more}')


def nothing(desk: Desk) -> None:
    """All is as it should be."""


class Mistake:
    """How things lie, what is typed, the exit code, and what the line says, in this order."""

    def __init__(self, name: str, set_up: SetUp, command: str, code: int, *words: str) -> None:
        self.name = name
        self.set_up = set_up
        self.command = command
        self.code = code
        self.words = words


NUMBERS = pl.int_range(pl.len()).alias("text")
LABELS = "['billing', 'outage', 'praise']"
COMPILE = "compile pld.toml"
CLASSIFY = "classify {run} {data} -o out"

MISTAKES = [
    # the configuration
    Mistake("no config", nothing, "compile absent.toml", 2, "absent.toml: no such configuration file"),
    Mistake("a folder as config", nothing, "compile .", 2, ".: is a folder; name the .toml file in it"),
    Mistake("data as config", nothing, "compile {data}", 2, "data.parquet: is not a TOML file"),
    Mistake("broken TOML", config(("[data]", "[data")), COMPILE, 2, "pld.toml: not valid TOML", "line 6"),
    Mistake(
        "unknown key",
        config(more="[teacher]\nconcurency = 3\n"),
        COMPILE,
        2,
        "pld.toml: unknown key 'concurency' in [teacher]; did you mean 'concurrency'?",
    ),
    Mistake(
        "unknown table",
        config(more="[studnet]\n"),
        COMPILE,
        2,
        "pld.toml: unknown key 'studnet'; did you mean 'student'?",
    ),
    Mistake("no task name", config(('name = "tickets"\n', "")), COMPILE, 2, "task.name is missing"),
    Mistake("one label", config((LABELS, "['a']")), COMPILE, 2, "labels: at least two labels are needed"),
    Mistake(
        "no split", config(('split = "split"', "")), COMPILE, 2, "either `split` (a column) or `fractions`"
    ),
    Mistake("negative cap", config(), f"{COMPILE} --max-cost -1", 2, "--max-cost"),
    Mistake(
        "unknown model",
        config(more='[teacher]\nmodel = "gemni:flash"\n'),
        COMPILE,
        2,
        "'gemni:flash' is not the address of a known kind of model; known: local",
    ),
    Mistake(
        "an address without a server",
        student("openai:m@localhost:8000/v1"),
        COMPILE,
        2,
        "openai:m: after the model's name goes @ and its server, openai:NAME@http://host:port/v1",
    ),
    Mistake(
        "no model name", student("openai:@http://localhost/v1"), COMPILE, 2, "the model's name is missing"
    ),
    Mistake(
        "an address that goes on",
        student("openai:m@http://localhost:8000/v1?key=1"),
        COMPILE,
        2,
        "openai:m: 'http://localhost:8000/v1?key=1': leave out what follows the path",
    ),
    Mistake(
        "a password in an address",
        student("openai:m@http://me:secret@localhost:8000/v1"),
        COMPILE,
        2,
        "openai:m: a user or password in an address",
        "api_key_env",
    ),
    Mistake(
        "no key for OpenAI",
        student("openai:gpt-4o"),
        COMPILE,
        1,
        "openai:gpt-4o: its key is missing: set the environment variable OPENAI_API_KEY",
    ),
    Mistake(
        "no key for Gemini",
        student("gemini:gemini-3.8-flash"),
        COMPILE,
        1,
        "gemini:gemini-3.8-flash: its key is missing: set the environment variable GEMINI_API_KEY or "
        "GOOGLE_API_KEY",
    ),
    Mistake(
        "a Gemini that is no model",
        student("gemini:gemini 3"),
        COMPILE,
        2,
        "gemini:gemini 3: not a model's name; write one such as gemini:gemini-3.8-flash",
    ),
    Mistake(
        "tokens for a model that takes a level",
        student("openai:m@http://localhost:1/v1", "thinking = 100\n"),
        COMPILE,
        2,
        "openai:m@http://localhost:1/v1: takes a level for `thinking`",
    ),
    Mistake(
        "a level for a model that takes tokens",
        student("gemini:gemini-2.5-flash", 'thinking = "low"\n'),
        COMPILE,
        2,
        "gemini:gemini-2.5-flash: takes a number of tokens for `thinking`",
    ),
    Mistake(
        "a level that is none",
        student("gemini:gemini-3.8-flash", 'thinking = "deep"\n'),
        COMPILE,
        2,
        'student.thinking: write "minimal", "low", "medium" or "high", or a number of tokens',
    ),
    Mistake(
        "an embedder that thinks",
        config(more="[embedder]\nthinking = 5\n"),
        COMPILE,
        2,
        "embedder.thinking: is for models that write; an embedder does not think",
    ),
    Mistake(
        "no key where one is named",
        student("openai:m@http://localhost:1/v1", 'api_key_env = "PLD_NO_SUCH_KEY"\n'),
        COMPILE,
        1,
        "its key is missing: set the environment variable PLD_NO_SUCH_KEY",
    ),
    Mistake(
        "the key itself in the configuration",
        student("openai:m@http://localhost:1/v1", 'api_key_env = "sk-secret"\n'),
        COMPILE,
        2,
        "student.api_key_env: write the name of an environment variable, in capitals, not the key itself",
    ),
    Mistake(
        "an unknown price under a cap",
        student("openai:m@http://10.0.0.1/v1"),
        f"{COMPILE} --max-cost 2",
        1,
        'the price of m is unknown, so the cap of $2 cannot be kept; add [prices."m"]',
    ),
    Mistake(
        "no policy",
        config(("[data]", 'policy = "policy.md"\n[data]')),
        COMPILE,
        2,
        "policy.md: the policy (task.policy) cannot be read: No such file or directory",
    ),
    # the data
    Mistake("no data", config(("data.parquet", "absent.csv")), COMPILE, 1, "absent.csv: no such file"),
    Mistake("empty glob", config(("data.parquet", "*.csv")), COMPILE, 1, "*.csv: no file matches"),
    Mistake("a folder as data", config(("data.parquet", ".")), COMPILE, 1, "is a folder; name its files"),
    Mistake(
        "wrong column",
        config(('id = "id"', 'text = "txt"')),
        COMPILE,
        1,
        "data.parquet: no column 'txt'; did you mean 'text'?",
    ),
    Mistake(
        "wrong split column",
        config(('split = "split"', 'split = "part"')),
        COMPILE,
        1,
        "data.parquet: no column 'part'; there are: 'id', 'text', 'label', 'split'",
    ),
    Mistake(
        "one column for two things",
        config(('id = "id"', 'id = "text"')),
        COMPILE,
        1,
        "column 'text' is named for more than one of text, label, id and split",
    ),
    Mistake(
        "a label that the config lacks",
        config((LABELS, "['billing', 'outage']")),
        COMPILE,
        1,
        "data.parquet: ",
        "unknown label 'praise'",
        "First: data.parquet row ",
        "task.labels",
    ),
    Mistake(
        "texts for labels",
        config(('id = "id"', 'text = "label"\nlabel = "text"')),
        COMPILE,
        1,
        "unknown label of ",
        "is this the label column?",
    ),
    Mistake(
        "empty split",
        rows(pl.col("split").replace("validation", "train")),
        COMPILE,
        1,
        "no usable validation row is left",
        "[data]",
    ),
    Mistake(
        "one class only",
        rows(pl.lit("billing").alias("label")),
        COMPILE,
        1,
        "all 120 training rows have the label 'billing'",
        "at least two labels",
    ),
    Mistake(
        "numbers for texts",
        rows(NUMBERS),
        COMPILE,
        1,
        "data.parquet: column 'text' holds Int64, not texts; texts are in 'id', 'label', 'split'",
    ),
    Mistake(
        "numbers for texts, CSV",
        data("rows.csv", lambda frame: csv(frame.with_columns(NUMBERS))),
        COMPILE,
        1,
        "rows.csv: column 'text' holds numbers, not texts; name the column with the texts in task.text",
    ),
    Mistake(
        "numbers for texts, NDJSON",
        data("rows.jsonl", lambda frame: frame.with_columns(NUMBERS).write_ndjson().encode()),
        COMPILE,
        1,
        "rows.jsonl: 240 of 240 rows",
        "text: not a string",
        "the column with the texts (task.text)?",
    ),
    Mistake(
        "binary named .csv",
        data("rows.csv", lambda frame: bytes(range(256)) * 4),
        COMPILE,
        1,
        "rows.csv: is not UTF-8 text; if it is text, convert it",
    ),
    Mistake(
        "Parquet named .csv",
        data("rows.csv", lambda frame: b"PAR1" + bytes(9)),
        COMPILE,
        1,
        "rows.csv: is a Parquet file; name it .parquet",
    ),
    Mistake(
        "CSV named .parquet", data("rows.parquet", csv), COMPILE, 1, "rows.parquet: is not a Parquet file"
    ),
    Mistake(
        "a spreadsheet", data("a.xlsx", csv), COMPILE, 1, "a.xlsx: unknown format; Parquet (.parquet), CSV"
    ),
    Mistake(
        "latin-1",
        data("rows.csv", lambda frame: csv(frame).replace(b"the", b"th\xe9")),
        COMPILE,
        1,
        "rows.csv: ",
        "not valid UTF-8",
        "First: rows.csv row ",
        "(line ",
        "iconv -f CP1252 -t UTF-8",
    ),
    Mistake(
        "Parquet cut off",
        data("cut.parquet", cut_off),
        COMPILE,
        1,
        "cut.parquet: is damaged: it cannot be read as Parquet",
    ),
    Mistake("empty file", data("rows.csv", lambda frame: b""), COMPILE, 1, "rows.csv: is empty"),
    Mistake("no rows", data("rows.csv", lambda frame: csv(frame.clear())), COMPILE, 1, "rows.csv: no rows"),
    Mistake(
        "no header",
        data("rows.csv", lambda frame: csv(frame).partition(b"\n")[2]),
        COMPILE,
        1,
        "rows.csv: no column 'text'; is the first line a header? It has 4 fields",
    ),
    Mistake(
        "a JSON array",
        data("rows.json", lambda frame: frame.write_json().encode()),
        COMPILE,
        1,
        "rows.json: is a JSON array; write one object per line",
    ),
    Mistake(
        "too many bad rows",
        rows(pl.when(pl.int_range(pl.len()) >= 40).then("text").alias("text")),
        COMPILE,
        1,
        "data.parquet: 40 of 240 rows (16.7%) cannot be used",
        "40 of text: missing",
        "First: data.parquet row 1",
        "Correct the file, or raise data.max_bad_share",
    ),
    Mistake(
        "duplicate ids",
        rows(pl.col("id").str.slice(0, 3)),
        COMPILE,
        1,
        "of id: duplicate id",
        "First: data.parquet row 2",
        "leave task.id out",
    ),
    # the run directory
    Mistake(
        "below a file", file("f"), f"{COMPILE} --run f/run", 1, "f/run: cannot be created: Not a directory"
    ),
    Mistake("a file as run", file("f"), f"{COMPILE} --run f", 1, "f: is a file; name a folder"),
    Mistake("no permission", config(), f"{COMPILE} --run /proc/x", 1, "/proc/x: cannot be created: "),
    Mistake(
        "other things in it",
        file("pictures/cat.png"),
        f"{COMPILE} --run pictures",
        1,
        "pictures: is not empty and no run directory; choose another folder",
    ),
    Mistake(
        "the run of another task",
        config(('"tickets"', '"other"')),
        COMPILE + " --run {run}",
        1,
        "runs/tickets: holds the task 'tickets', not 'other'; choose another directory with --run",
    ),
    Mistake(
        "a classification", classified, f"{COMPILE} --run out", 1, "out: holds no compilation; choose another"
    ),
    # evaluate
    Mistake("evaluate: no run", nothing, "evaluate absent", 1, "absent: no such run directory"),
    Mistake("evaluate: some folder", nothing, "evaluate .", 1, ".: is not a run directory"),
    Mistake("evaluate: not compiled", begun, "evaluate begun", 1, "begun", "been compiled to the end?"),
    Mistake("evaluate: a classification", classified, "evaluate out", 1, "out: holds no compilation"),
    Mistake("evaluate: unknown split", nothing, "evaluate {run} --split tset", 2, "--split"),
    Mistake(
        "evaluate: student", nothing, "evaluate {run} --student gpt", 2, "'gpt' is not the address", "local:"
    ),
    # classify
    Mistake("classify: no run", nothing, "classify absent {data} -o out", 1, "absent: no such run directory"),
    Mistake("classify: not compiled", begun, "classify begun {data} -o out", 1, "been compiled to the end?"),
    Mistake("classify: no file", nothing, "classify {run} a.csv -o out", 1, "a.csv: no such file"),
    Mistake("classify: empty glob", nothing, "classify {run} '*.csv' -o out", 1, "*.csv: no file matches"),
    Mistake(
        "classify: student", nothing, f"{CLASSIFY} --student gpt", 2, "'gpt' is not the address", "local:"
    ),
    Mistake(
        "classify: no key",
        nothing,
        f"{CLASSIFY} --student openai:gpt-4o",
        1,
        "set the environment variable OPENAI_API_KEY",
    ),
    Mistake(
        "classify: an unknown price under a cap",
        nothing,
        f"{CLASSIFY} --student openai:m@http://10.0.0.1/v1 --max-cost 2",
        1,
        "the price of m is unknown",
    ),
    Mistake(
        "evaluate: an unknown price under a cap",
        nothing,
        "evaluate {run} --student openai:m@http://10.0.0.1/v1 --max-cost 2",
        1,
        "the price of m is unknown",
    ),
    Mistake(
        "classify: a variant", nothing, f"{CLASSIFY} --student local:x", 2, "have no variants; write 'local:'"
    ),
    Mistake(
        "classify: wrong text column",
        nothing,
        f"{CLASSIFY} --text txt",
        1,
        "data.parquet: no column 'txt'; did you mean 'text'?",
    ),
    Mistake("classify: wrong id column", nothing, f"{CLASSIFY} --id key", 1, "data.parquet: no column 'key'"),
    Mistake(
        "classify: wrong column to keep",
        nothing,
        f"{CLASSIFY} --keep spilt",
        1,
        "data.parquet: no column 'spilt'; did you mean 'split'?",
    ),
    Mistake("classify: a name taken", nothing, f"{CLASSIFY} --keep label", 2, "--keep label=input_label"),
    Mistake("classify: no name", nothing, f"{CLASSIFY} --keep label=", 2, "give COLUMN, or COLUMN=NAME"),
    Mistake("classify: kept twice", nothing, f"{CLASSIFY} --keep id=a --keep id=b", 2, "'id' twice"),
    Mistake("classify: review above 1", nothing, f"{CLASSIFY} --review-below 60", 2, "review_below must lie"),
    Mistake(
        "classify: a column of numbers",
        rows(NUMBERS),
        "classify {run} data.parquet -o out",
        1,
        "data.parquet: column 'text' holds Int64, not texts; texts are in 'id', 'label', 'split'",
    ),
    Mistake(
        "classify: rows without the column",
        data("rows.csv", lambda frame: csv(frame.rename({"text": "message"}))),
        "classify {run} rows.csv -o out",
        1,
        "rows.csv: no column 'text'; there are: 'id', 'message'",
    ),
    Mistake(
        "classify: cut off",
        data("cut.parquet", cut_off),
        "classify {run} cut.parquet -o out",
        1,
        "cut.parquet: is damaged: it cannot be read as Parquet",
    ),
    Mistake(
        "classify: the folder of another job",
        classified,
        CLASSIFY,
        1,
        "out: it was begun with another text column: label, not text; choose another output folder (-o)",
    ),
    Mistake(
        "classify: into the compiled run",
        nothing,
        "classify {run} {data} -o {run}",
        1,
        "runs/tickets: holds another kind of run; choose another output folder (-o)",
    ),
    Mistake("classify: into a file", file("out"), CLASSIFY, 1, "out: is a file; name a folder"),
    # init
    Mistake("init: no file", nothing, "init absent.csv", 1, "absent.csv: no such file"),
    Mistake("init: is there", config(), "init {data}", 2, "pld.toml: is there already", "-o", "--force"),
    Mistake(
        "init: no folder", nothing, "init {data} -o a/pld.toml", 1, "a/pld.toml: cannot be written: No such"
    ),
    Mistake(
        "init: wrong column", nothing, "init {data} --label lable", 1, "'lable'", "did you mean 'label'?"
    ),
    Mistake("init: bad name", nothing, "init {data} --name 'my task'", 2, "--name", "letters, digits"),
    Mistake("init: cut off", data("cut.parquet", cut_off), "init cut.parquet -o new.toml", 1, "is damaged"),
]


def pld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compiled")
    corpus.write(made)
    assert pld("compile", made / "pld.toml").exit_code == 0
    return made


@pytest.fixture
def desk(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    for name in (
        "PLD_DEBUG",
        "OPENAI_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "GOOGLE_GENAI_USE_VERTEXAI",
        "GOOGLE_GENAI_USE_ENTERPRISE",
    ):
        monkeypatch.delenv(name, raising=False)
    return Desk(tmp_path, compiled)


def tree(*folders: Path) -> dict[Path, bytes]:
    """Every folder, and every file with its content; of a lock file only that it is there."""
    return {
        path: path.read_bytes() if path.is_file() and path.name != "run.lock" else b""
        for folder in folders
        for path in folder.rglob("*")
    }


def the_line(stderr: str) -> str:
    """The error's line: the last on stderr, and no other looks like it."""
    *before, last = stderr.splitlines()
    assert last.startswith("pld: ")
    assert not [line for line in before if line.startswith("pld: ")]
    return last


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_gets_one_line_and_leaves_nothing_behind(mistake: Mistake, desk: Desk) -> None:
    mistake.set_up(desk)
    before = tree(desk.folder, desk.run)
    found = pld(*(word.format(run=desk.run, data=desk.data) for word in shlex.split(mistake.command)))
    assert found.exit_code == mistake.code, found.stderr
    # what the command line itself refuses is shown in its own usage box
    line = found.stderr if found.stderr.startswith("Usage: ") else the_line(found.stderr)
    assert re.search(".*?".join(map(re.escape, mistake.words)), line, re.DOTALL), line
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    assert "unexpected" not in found.stderr
    assert "secret" not in found.stderr
    # every text of the corpus holds such a word
    assert not re.search(r"ticket\d", found.stderr)
    assert tree(desk.folder, desk.run) == before


class Elsewhere:
    """A server in a thread of its own, as the command line runs an event loop itself."""

    def __init__(self, response: bytes) -> None:
        self._response = response

    def __enter__(self) -> Responding:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._block = responding(self._response)
        return asyncio.run_coroutine_threadsafe(self._block.__aenter__(), self._loop).result()

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._block.__aexit__(None, None, None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


NO_MODEL = {"error": {"message": "ticket1 no", "type": "invalid_request_error", "code": "model_not_found"}}
NOT_FOUND = {"error": {"code": 404, "message": "ticket1 no", "status": "NOT_FOUND"}}
BAD_KEY = {
    "error": {
        "code": 400,
        "message": "ticket1 no",
        "status": "INVALID_ARGUMENT",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
    }
}


@pytest.mark.parametrize(
    ("scheme", "response", "words"),
    [
        ("openai", None, ": nobody answers there; is the server running, and the port right?"),
        (
            "openai",
            http(404, NO_MODEL),
            "HTTP 404 (model_not_found): there is no such model or no such path; check the",
        ),
        (
            "openai",
            http(401),
            "HTTP 401: it does not accept the key; name the environment variable that holds the key in",
        ),
        (
            "openai",
            http(200, b"<!doctype html>"),
            "answers with a web page: write the address of the API itself, which",
        ),
        (
            "openai",
            http(301, b"", {"Location": "https://x/"}),
            "HTTP 301, no data: write the address of the API itself",
        ),
        ("gemini", None, ": nobody answers there; is the server running, and the port right?"),
        (
            "gemini",
            http(404, NOT_FOUND),
            "HTTP 404 (NOT_FOUND): there is no such model, or it is not offered there; check its name",
        ),
        (
            "gemini",
            http(400, BAD_KEY),
            "HTTP 400 (API_KEY_INVALID): it does not accept the key; name the environment variable that",
        ),
        ("gemini", http(200, b"<!doctype html>"), "answers with a web page: check the address"),
    ],
    ids=[
        *("nobody", "no model", "no key", "web page", "moved"),
        *("Gemini: nobody", "Gemini: no model", "Gemini: no key", "Gemini: web page"),
    ],
)
def test_a_server_that_cannot_be_used(scheme: str, response: bytes | None, words: str, desk: Desk) -> None:
    with ExitStack() as stack:
        base = (
            stack.enter_context(Elsewhere(response)).base
            if response
            else f"http://127.0.0.1:{free_port()}/v1"
        )
        if scheme == "gemini":
            base = base.removesuffix("/v1")
        address = f"{scheme}:m@{base}"
        before = tree(desk.run)
        desk.config(more=f'[teacher]\nmodel = "{address}"\n')
        for arguments in (
            ["compile", "pld.toml"],
            ["classify", desk.run, desk.data, "-o", "out", "--student", address],
            ["evaluate", desk.run, "--student", address],
        ):
            found = pld(*arguments)
            assert found.exit_code == 1, found.stderr
            assert words in the_line(found.stderr)
            assert f"pld: {scheme}:m: {base}" in the_line(found.stderr)
            assert found.stdout == ""
            assert "unexpected" not in found.stderr
            assert not re.search(r"ticket\d", found.stderr)
    # no row is held to have failed, and with the mistake mended the same folders are gone on with
    assert {path.name for path in tree(desk.run)} >= {path.name for path in before}
    assert not (desk.folder / "runs/tickets/prompt.md").exists()
    assert not list((desk.folder / "out").glob("*.parquet"))
    desk.config()
    assert pld("compile", "pld.toml").exit_code == 0
    assert (desk.folder / "runs/tickets/prompt.md").read_bytes() == (desk.run / "prompt.md").read_bytes()


def test_a_run_in_use_by_another_process(desk: Desk) -> None:
    desk.config()
    with (desk.run / "run.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (["compile", "pld.toml", "--run", desk.run], ["evaluate", desk.run]):
            found = pld(*arguments)
            assert found.exit_code == 1
            words = r"runs/tickets: another process is working in this run \(pid \d+\)"
            assert re.search(words, the_line(found.stderr))


def test_with_the_mistake_mended_the_same_command_works(desk: Desk) -> None:
    desk.config(("data.parquet", "other.parquet"))
    assert pld("compile", "pld.toml").exit_code == 1
    (desk.folder / "data.parquet").rename(desk.folder / "other.parquet")
    assert pld("compile", "pld.toml").exit_code == 0


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from adapters.cli.main import main
main()
"""


def with_little_room(limit: int, *arguments: str | Path) -> str:
    """What a command says that can write no file larger than `limit` bytes: as where a disk is full."""
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 1, found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    assert "unexpected" not in found.stderr
    return the_line(found.stderr)


# too little for the cache, for what the cache gathers
@pytest.mark.parametrize("limit", [1_000, 200_000])
def test_no_space_while_compiling(limit: int, desk: Desk) -> None:
    desk.config()
    line = with_little_room(limit, "compile", "pld.toml")
    assert re.search(r"runs/(tickets|\.pld-cache/responses\.sqlite): ", line)
    assert "run the same command again" in line
    assert not (desk.folder / "runs/tickets/prompt.md").exists()
    assert not list(desk.folder.rglob("*.tmp"))
    # with room again, the same command goes on and ends as if nothing had been
    assert pld("compile", "pld.toml").exit_code == 0
    assert (desk.folder / "runs/tickets/prompt.md").read_bytes() == (desk.run / "prompt.md").read_bytes()


@pytest.mark.parametrize("limit", [200, 3_000])
def test_no_space_while_classifying(limit: int, desk: Desk) -> None:
    line = with_little_room(limit, "classify", desk.run, desk.data, "-o", "out")
    assert line.startswith("pld: out")
    assert re.search("run the same command again|the same command goes on", line)
    assert not list(desk.folder.rglob("*.tmp"))
    assert pld("classify", desk.run, desk.data, "-o", "out").exit_code == 0
    assert pl.read_parquet(desk.folder / "out/part-*.parquet").height == 240


def test_no_space_for_the_configuration(desk: Desk) -> None:
    line = with_little_room(100, "init", desk.data)
    assert line.startswith("pld: pld.toml: cannot be written: ")
    assert tree(desk.folder) == {}
