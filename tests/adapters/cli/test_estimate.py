"""`pld estimate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from adapters import registry
from adapters.cli.estimate import short
from adapters.cli.main import app
from tests.support import corpus

runner = CliRunner()
STAGES = [
    "extraction", "embedding", "synthesis", "general rules", "resolution", "student trials", "long tail",
    "pruning", "verdict", "evaluation",
]  # fmt: skip


def pld(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_table_fits_eighty_columns(tmp_path: Path) -> None:
    found = pld("estimate", corpus.write(tmp_path))
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    table = [line for line in lines if line[:1] in "┏┃┡│├└"]
    assert all(len(line) <= 80 for line in table)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if line.startswith("│")]
    # one line for each stage: nothing is folded or cut
    assert [row[0] for row in cells] == [*STAGES, "total"]
    assert cells[0][1:3] == ["teacher", "120"]
    assert all(row[2].startswith("≤ ") for row in cells[1:])
    assert "…" not in found.stdout
    for stage in STAGES:
        assert any(line.startswith(f"{stage}: ") for line in lines)
    assert "models: teacher local:" in found.stdout
    assert "Not counted: retries" in found.stdout


def test_json_is_one_object(tmp_path: Path) -> None:
    found = pld("estimate", corpus.write(tmp_path), "--json")
    assert found.exit_code == 0
    document = json.loads(found.stdout)
    assert document["estimated"] is True
    assert [stage["stage"] for stage in document["stages"]] == STAGES
    assert document["stages"][0]["model"] == "local:"
    assert set(document["total"]) >= {"requests", "input_tokens", "output_tokens"}


def test_nothing_is_written_and_no_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an estimate opens no model")

    for name in ("fit_local", "LocalTeacher", "LocalEmbedder", "LocalStudent"):
        monkeypatch.setattr(registry, name, refuse)
    path = corpus.write(tmp_path)
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")}
    assert pld("estimate", path, "--quiet").exit_code == 0
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (
            '[student]\nmodel = "gemni:flash"\n',
            2,
            "'gemni:flash' is not the address of a known kind of model",
        ),
        (
            '[embedder]\nmodel = "gemni:flash"\n',
            2,
            "'gemni:flash' is not the address of a known kind of model",
        ),
        ("[teacher]\nconcurency = 3\n", 2, "did you mean 'concurrency'?"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, more: str, code: int, message: str) -> None:
    found = pld("estimate", corpus.write(tmp_path, more=more))
    assert (found.exit_code, found.stdout) == (code, "")
    assert message in found.stderr
    assert found.stderr.startswith("pld: ")
    assert len(found.stderr.splitlines()) == 1


def test_help_has_an_example() -> None:
    assert "Example: pld estimate " in pld("estimate", "--help").stdout


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1.00 M"),
        (12_345_678, "12.3 M"),
        (99_950_000, "100 M"),
        (999_499_999, "999 M"),
        (1_234_567_890, "1.23 G"),
        (5 * 10**12, "5.00 T"),
    ],
)
def test_short_numbers(count: int, shown: str) -> None:
    assert short(count) == shown


@given(st.integers(0, 10**14))
def test_short_numbers_are_short_and_right(count: int) -> None:
    shown = short(count)
    assert len(shown) <= 8
    number, _, unit = shown.replace(",", "").partition(" ")
    value = float(number) * {"": 1, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert abs(value - count) <= count * 0.006
