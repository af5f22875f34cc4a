"""The reference pages say what is really there: every key, every file, every column."""

from __future__ import annotations

import json
import re
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from adapters.cli.main import app
from engine.bulk.index import INDEX
from engine.bulk.journal import file_name
from engine.bulk.manifest import review_file
from engine.config import Config
from engine.config_file import parse_config
from engine.config_reference import configuration_reference
from tests.conftest import ROOT
from tests.support import corpus

CONFIGURATION = ROOT / "docs" / "configuration.md"
FILES = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")


def named(heading: str) -> list[str]:
    """What the first column of the table under a heading names, in order."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", FILES, re.MULTILINE | re.DOTALL)
    assert found, f"docs/run-directory.md has no heading {heading!r}"
    cells = re.findall(r"^\| (`[^|]*) \|", found[1], re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below `folder` with its name as the page writes it: digits that count are Ns."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            yield re.sub(r"\d{2,}", lambda digits: "N" * len(digits[0]), name), path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus compiled, evaluated and classified, with one row that cannot be."""
    made = tmp_path_factory.mktemp("docs")
    corpus.write(made)
    run = made / "runs" / "tickets"
    pl.DataFrame({"text": [corpus.rows()[0]["text"], None]}).write_parquet(made / "rows.parquet")
    for command in (
        ["compile", made / "pld.toml", "--ablation"],
        ["evaluate", run],
        ["classify", run, made / "rows.parquet", "-o", made / "out"],
    ):
        found = CliRunner().invoke(app, [*map(str, command), "--quiet"])
        assert found.exit_code == 0, found.output
    return made


# --- configuration ---------------------------------------------------------------------------------


def test_the_page_of_the_configuration_is_current() -> None:
    assert CONFIGURATION.read_text(encoding="utf-8") == configuration_reference(), "run `make docs`"


def test_every_key_has_a_meaning() -> None:
    page = configuration_reference()
    for name in set(Config.model_fields) - {"base"}:
        assert f"## [{name}]\n" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    for row in rows:
        key, kind, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        assert key, row
        assert kind, row
        assert default, row
        assert meaning.endswith("."), row
    assert "base" not in {row.split("`")[1] for row in rows}


def test_the_example_of_the_page_is_a_configuration(tmp_path: Path) -> None:
    found = re.search(r"```toml\n(.*?)```", configuration_reference(), re.DOTALL)
    assert found
    assert parse_config(tomllib.loads(found[1]), base=tmp_path).task.name == "tickets"


# --- files -----------------------------------------------------------------------------------------


def test_every_file_is_described(folder: Path) -> None:
    run = folder / "runs" / "tickets"
    assert {name for name, _ in files_in(run)} == set(named("Run directory"))
    # SQLite's log is gone once no process holds the file
    cache = {name for name, _ in files_in(run.parent / ".pld-cache")}
    assert {"responses.sqlite"} <= cache <= set(named("Response cache"))
    out = {name for name, _ in files_in(folder / "out")}
    # what is there on the way, or with an option
    out |= {re.sub(r"\d+", "NNNNN", name) for name in (file_name(0), review_file(0))}
    out |= {INDEX, f"{INDEX}-wal"}
    assert out == set(named("Output folder of `pld classify`"))


def test_nothing_else_is_left_behind(folder: Path) -> None:
    known = {"pld.toml", "data.parquet", "rows.parquet", "out", "runs"}
    assert {path.name for path in folder.iterdir()} == known
    assert {path.name for path in (folder / "runs").iterdir()} == {"tickets", ".pld-cache"}


def test_every_column_is_described(folder: Path) -> None:
    tables = 0
    for place in (folder / "runs" / "tickets", folder / "out"):
        for name, path in files_in(place):
            if path.suffix == ".parquet":
                assert list(pl.read_parquet_schema(path)) == named(f"`{name}`")
                tables += 1
    assert tables == 5


def test_every_column_of_the_cache_is_described(folder: Path) -> None:
    database = sqlite3.connect(folder / "runs" / ".pld-cache" / "responses.sqlite")
    try:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == {"responses", "places", "indexed", "failures", "spending"}
        found = {row[1] for table in tables for row in database.execute(f"PRAGMA table_info({table})")}
    finally:
        database.close()
    assert found == set(named("Tables"))


def test_every_key_of_the_json_files_is_described(folder: Path) -> None:
    run = folder / "runs" / "tickets"

    def read(path: Path) -> Any:
        return json.loads(path.read_bytes())

    rounds = [read(path) for path in sorted(run.glob("rounds/*.json"))]
    assert {one["kind"] for one in rounds} == {"resolve", "long tail", "prune"}
    assert {key for one in rounds for key in one} == set(named("`rounds/NN.json`"))
    described = FILES[FILES.index("A candidate has") : FILES.index("### `prompt.json`")]
    for one in rounds:
        assert all(f"`{key}`" in described for candidate in one["candidates"] for key in candidate)
    prompt = read(run / "prompt.json")
    assert set(prompt) == set(named("`prompt.json`")) - {"label", "meaning"}
    described = FILES[FILES.index("An instruction has") : FILES.index("### `failures.parquet`")]
    assert all(f"`{key}`" in described for one in prompt["instructions"] for key in one)
    assert set(read(run / "manifest.json")) == set(named("`manifest.json`"))
    for entry in read(run / "evaluation.json").values():
        assert set(entry) == set(named("`evaluation.json`"))
        assert all(f"`{key}`" in FILES for key in entry["compiled"])
    assert set(read(folder / "out" / "manifest.json")) == set(named("`manifest.json` of a classification"))


def test_no_file_holds_a_row_as_it_is(folder: Path) -> None:
    texts = [row["text"] for row in corpus.rows()]
    for place in (folder / "runs", folder / "out"):
        for _, path in files_in(place):
            if path.suffix == ".parquet":
                held = pl.read_parquet(path).write_ndjson()
            else:
                held = path.read_bytes().decode("utf-8", "replace")
            assert not [text for text in texts if text in held], path


def test_everything_is_private(folder: Path) -> None:
    for place in (folder / "runs", folder / "out"):
        for path in (place, *place.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
