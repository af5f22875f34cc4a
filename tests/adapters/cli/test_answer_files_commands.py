"""`answer-files:` as a user meets it: exit code 75, one clear line, the same command again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.cli.main import app
from adapters.local import fit_local
from engine.store import load_dataset
from tests.support import corpus
from tests.support.answerer import Answerer, messy

runner = CliRunner()

ROLES = ("teacher", "synthesizer", "resolver", "student")


def through_files(roles: tuple[str, ...]) -> str:
    return "".join(f'[{role}]\nmodel = "answer-files:{role}"\nmax_input_tokens = 400_000\n' for role in roles)


FILES = through_files(ROLES)
SHORT = "prune = false\nconfusions_per_round = 2\n"


def pld(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local models know of the corpus."""
    folder = tmp_path_factory.mktemp("fit")
    config = corpus.config(folder)
    made = fit_local(load_dataset(config).train, config.labels, config.run.seed, config.embedder.dimensions)
    path = folder / "local.json"
    path.write_bytes(made.document)
    return path


def write(folder: Path, more: str) -> Path:
    path = corpus.write(folder, more=more)
    path.write_text(path.read_text().replace("max_rounds = 3", "max_rounds = 1"))
    return path


@pytest.mark.parametrize("roles", [ROLES[:3], pytest.param(ROLES, marks=pytest.mark.slow)])
def test_answers_in_files_give_the_prompt_of_the_local_models(
    roles: tuple[str, ...], tmp_path: Path, fit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write(tmp_path / "local", SHORT)
    assert pld("compile", local, "-q").exit_code == 0
    config = write(tmp_path / "files", SHORT + through_files(roles))
    monkeypatch.chdir(tmp_path / "files")
    answerers = [Answerer(config.parent / role, fit, messy) for role in roles]
    rounds = 0
    while (found := pld("compile", "pld.toml", "--json")).exit_code == 75:
        rounds += 1
        assert found.stdout == ""
        last = found.stderr.splitlines()[-1]
        assert last.startswith("pld: waiting for answers to ")
        assert last.endswith(", then run the same command again")
        assert "Traceback" not in found.stderr
        assert sum(answerer() for answerer in answerers) > 0, "each round asks something"
        assert rounds < 60
    assert found.exit_code == 0, found.output
    for answerer in answerers:
        assert answerer.asked
        usable: set[str] = set()
        for number, (asked, answered) in enumerate(zip(answerer.asked, answerer.answered, strict=True)):
            assert len(set(asked)) == len(asked)
            assert not usable & set(asked), f"file {number}: what was answered is not asked again"
            usable |= answered
    run = config.parent / "runs" / "tickets"
    prompt = (tmp_path / "local" / "runs" / "tickets" / "prompt.md").read_bytes()
    assert (run / "prompt.md").read_bytes() == prompt
    document = json.loads(found.stdout)
    assert document["cost_usd"] == 0
    requests = document["requests"]
    assert requests["failed"] == 0
    manifest = json.loads((run / "manifest.json").read_text())
    stages = manifest["activity"]["stages"].values()
    assert requests["sent"] + requests["cached"] == sum(one["sent"] + one["cached"] for one in stages)
    # and once more, from the cache alone
    again = json.loads(pld("compile", "pld.toml", "--json").stdout)
    assert again["requests"]["sent"] == 0
    assert again["requests"]["cached"] == requests["sent"] + requests["cached"]
    assert (run / "prompt.md").read_bytes() == prompt
    if "student" not in roles:
        return
    rounds = 0
    while (found := pld("evaluate", "runs/tickets", "--json")).exit_code == 75:
        assert "requests of evaluation" in found.stderr
        answerers[-1]()
        rounds += 1
        assert rounds < 20
    assert json.loads(found.stdout)["split"] == "test"


def test_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = write(tmp_path, '[teacher]\nmodel = "answer-files:some-model@answers"\n')
    found = pld("compile", config)
    assert found.exit_code == 75
    n = len(load_dataset(corpus.config(tmp_path / "other")).train)
    assert found.stderr.splitlines()[-1] == (
        f"pld: waiting for answers to {n} requests of extraction: have answers/requests-001.jsonl answered "
        "(OpenAI's batch format) into answers/answers-001.jsonl, then run the same command again"
    )
    assert found.stdout == ""
    first = (tmp_path / "answers" / "requests-001.jsonl").read_bytes()
    assert json.loads(first.splitlines()[0])["body"]["model"] == "some-model"
    # nobody has answered: the same line, the same files; to wait is no fault, so no traceback either
    monkeypatch.setenv("PLD_DEBUG", "1")
    again = pld("compile", config)
    assert (again.exit_code, again.stderr.splitlines()[-1]) == (75, found.stderr.splitlines()[-1])
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {".lock", "requests-001.jsonl"}
    assert (tmp_path / "answers" / "requests-001.jsonl").read_bytes() == first
    # a tenth is missing
    Answerer(tmp_path / "answers", fit, messy)()
    last = pld("compile", config).stderr.splitlines()[-1]
    assert "requests of extraction, all of them asked before in vain: have answers/requests-002.jsonl" in last
    log = (tmp_path / "runs" / "tickets" / "events.jsonl").read_text()
    assert '"error":"AwaitingAnswers"' in log
    assert "lines are not answers in OpenAI's batch format" in log


def test_estimate_writes_nothing(tmp_path: Path) -> None:
    config = write(tmp_path, FILES)
    found = pld("estimate", config, "--json")
    assert found.exit_code == 0
    models = {stage["model"] for stage in json.loads(found.stdout)["stages"]}
    assert "answer-files:teacher" in models
    assert not (tmp_path / "teacher").exists()


def test_a_cap_on_cost_holds(tmp_path: Path) -> None:
    assert pld("compile", write(tmp_path, FILES), "--max-cost", "0").exit_code == 75


def test_classify_refuses_it_before_anything_is_written(tmp_path: Path) -> None:
    config = corpus.write(tmp_path)
    assert pld("compile", config, "-q").exit_code == 0
    run, out = tmp_path / "runs" / "tickets", tmp_path / "out"
    found = pld("classify", run, tmp_path / "data.parquet", "-o", out, "--student", "answer-files:answers")
    assert found.exit_code == 2
    assert found.stderr.splitlines() == [
        "pld: answer-files:answers: answers in files come hours later, and rows in bulk want a student that "
        "answers at once; name another one (--student), such as local: or openai:NAME@http://host:port/v1"
    ]
    assert not out.exists()
    assert not (tmp_path / "answers").exists()
    # while evaluate takes it, in the configuration's folder
    assert pld("evaluate", run, "--student", "answer-files:answers").exit_code == 75
    assert (tmp_path / "answers" / "requests-001.jsonl").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('[teacher]\nmodel = "answer-files:"\n', "'' is no folder; write answer-files:DIR"),
        ('[teacher]\nmodel = "answer-files:m@"\n', "'' is no folder"),
        ('[teacher]\nmodel = "answer-files:@answers"\n', "the model's name is missing before @"),
        ('[teacher]\nmodel = "answer-files:~/answers"\n', "'~/answers' is no folder"),
        ('[teacher]\nmodel = "answer-files:m@http://host/v1"\n', "'http://host/v1' is no folder"),
        (
            '[teacher]\nmodel = "answer-files:answers"\nrequests_per_minute = 5\n',
            "answer-files:answers: takes no `requests_per_minute`; whoever answers the files sees to that",
        ),
        (
            '[embedder]\nmodel = "answer-files:answers"\n',
            "answer-files:answers: answer files hold what models write, no vectors",
        ),
    ],
)
@pytest.mark.parametrize("command", ["compile", "estimate"])
def test_what_cannot_be_is_refused(command: str, more: str, words: str, tmp_path: Path) -> None:
    found = pld(command, write(tmp_path, more))
    assert found.exit_code == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("pld: ")]
    assert words in line
    assert not (tmp_path / "runs").exists()
