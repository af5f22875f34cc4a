"""The configuration file: what it may hold, and how clearly it is refused."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config, can_be_field, field_names_problem
from engine.config_file import load_config, parse_config
from engine.errors import ConfigError

FULL = """
[task]
name = "tweets"
description = "Which tweets break the rules?"
policy = "policy.md"
labels = ["none", "spam"]
text = "text"
label = "label"
id = "id"

[data]
file = "tweets.parquet"
split = "split"

[teacher]
model = "local:"
requests_per_minute = 1000
tokens_per_minute = 1_000_000
concurrency = 64

[embedder]
model = "local:"
dimensions = 768

[cluster]
method = "dbscan"
eps = 0.4
min_samples = 6
within = "all"

[resolve]
max_rounds = 8
max_prompt_tokens = 6000
floors = { spam = { recall = 0.8 } }

[student]
model = "local:"

[run]
seed = 7
max_cost_usd = 25.0
"""

SMALL = """
[task]
name = "tweets"
description = "Which tweets break the rules?"
labels = ["none", "spam"]

[data]
file = "tweets.parquet"
split = "split"
"""


def changed(where: str, value: Any, text: str = FULL) -> dict[str, Any]:
    """The configuration with `table.key` set to `value`, or left out where it is None."""
    raw: dict[str, Any] = copy.deepcopy(tomllib.loads(text))
    *tables, key = where.split(".")
    place = raw
    for table in tables:
        place = place.setdefault(table, {})
    if value is None:
        del place[key]
    else:
        place[key] = value
    return raw


def parse(raw: dict[str, Any]) -> Config:
    return parse_config(raw, base=Path("/base"), source="pld.toml")


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    message = str(caught.value)
    assert message.startswith("pld.toml: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message.removeprefix("pld.toml: ")


def test_a_full_configuration(tmp_path: Path) -> None:
    (tmp_path / "pld.toml").write_text(FULL)
    (tmp_path / "policy.md").write_text("  Be kind.\n")
    config = load_config(tmp_path / "pld.toml")
    assert config.labels == ("none", "spam")
    assert config.data.file == ("tweets.parquet",)
    assert config.resolve.floors == {"spam": {"recall": 0.8}}
    assert config.run.max_cost_usd == 25.0
    assert config.role("student").concurrency is None
    assert config.base == tmp_path
    assert config.policy_text() == "Be kind."


def test_settings_that_the_method_does_not_take() -> None:
    def refused(**cluster: object) -> str:
        with pytest.raises(ConfigError) as found:
            parse({**tomllib.loads(SMALL), "cluster": cluster})
        return str(found.value)

    found = 'method "calibrated" finds eps and min_samples itself: leave that out, or write method = "dbscan"'
    assert found in refused(eps=0.3, min_samples=4)
    assert "finds min_samples itself" in refused(method="calibrated", min_samples=4)
    assert 'method "hdbscan" has no eps' in refused(method="hdbscan", eps=0.3)


def test_defaults() -> None:
    config = parse(tomllib.loads(SMALL))
    assert config.policy_text() == ""
    assert (config.task.text, config.task.label, config.task.id) == ("text", "label", None)
    assert (config.teacher.model, config.embedder.model, config.student.model) == ("local:",) * 3
    assert config.cluster.model_dump() == {
        "method": "calibrated",
        "eps": None,
        "min_samples": None,
        "within": None,
    }
    assert config.cluster.settings == (0.4, 6)
    assert config.resolve.rows_per_round is None
    assert config.run.max_cost_usd is None


def test_synthesizer_and_resolver_default_to_the_teacher() -> None:
    config = parse(changed("resolver.concurrency", 3))
    assert config.role("synthesizer") == config.role("teacher") == config.teacher
    assert config.role("resolver").concurrency == 3
    assert config.role("resolver").requests_per_minute is None


def test_labels_are_a_list_or_a_table() -> None:
    assert parse(changed("task.labels", ["b", "a"], SMALL)).task.labels == {"b": "", "a": ""}
    assert parse(changed("task.labels", ["b", "a"], SMALL)).labels == ("b", "a")
    table = SMALL.replace('labels = ["none", "spam"]', 'labels.none = "all else"\nlabels.spam = "ads"')
    assert parse(tomllib.loads(table)).task.labels == {"none": "all else", "spam": "ads"}


@pytest.mark.parametrize(
    ("where", "nearest", "place"),
    [
        ("reslove", "resolve", ""),
        ("tasks.name", "task", ""),
        ("task.lables", "labels", "[task]"),
        ("data.fraction", "fractions", "[data]"),
        ("teacher.requests_per_min", "requests_per_minute", "[teacher]"),
        ("synthesizer.modle", "model", "[synthesizer]"),
        ("resolver.concurency", "concurrency", "[resolver]"),
        ("student.token_per_minute", "tokens_per_minute", "[student]"),
        ("embedder.dimension", "dimensions", "[embedder]"),
        ("cluster.epsilon", "eps", "[cluster]"),
        ("cluster.min_sample", "min_samples", "[cluster]"),
        ("resolve.max_round", "max_rounds", "[resolve]"),
        ("run.max_cost", "max_cost_usd", "[run]"),
        ("base", "task", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(where: str, nearest: str, place: str) -> None:
    key = where.rpartition(".")[2] if place else where.partition(".")[0]
    message = refusal(changed(where, 1))
    assert message.startswith(f"unknown key {key!r}{' in ' if place else ''}{place}")
    assert f"did you mean {nearest!r}?" in message


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    assert refusal(changed("run.zzz", 1)) == ("unknown key 'zzz' in [run]; known: seed, max_cost_usd, cache")


def test_a_misspelt_required_key_is_named_before_what_it_leaves_missing() -> None:
    raw = changed("task.labels", None)
    raw["task"]["label_set"] = ["a", "b"]
    assert refusal(raw).startswith("unknown key 'label_set' in [task]; did you mean 'labels'? (and 1 more)")


def test_a_list_of_one_column_is_that_column() -> None:
    plain, listed, several = (
        parse(changed("task.text", text, SMALL)) for text in ("body", ["body"], ["title", "body"])
    )
    assert listed.task.text == "body"
    assert listed == plain
    assert listed.model_dump_json(exclude_unset=True) == plain.model_dump_json(exclude_unset=True)
    assert several.task.text == ("title", "body")
    # as the manifest of a run keeps it
    assert parse(several.model_dump(mode="json", exclude_unset=True)) == several


def test_a_single_column_may_be_called_anything() -> None:
    assert parse(changed("task.text", ['say: "<b>"'], SMALL)).task.text == 'say: "<b>"'


@pytest.mark.parametrize("name", ["premise", "user text", "a_b", "Überschrift", "文本", "q1", "a (b)", "a/b"])
def test_names_that_fields_may_have(name: str) -> None:
    assert can_be_field(name)


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "_a", "-a", "a:", "a\uff1ab", "a\b", "a\nb", "a\tb", "a\u2028b", "a\u202eb", "a\\b"]
    + [f"a{mark}" for mark in "\"'`<>[]{}"],
)
def test_names_that_fields_may_not_have(name: str) -> None:
    assert not can_be_field(name)
    assert field_names_problem(["b", name])
    assert not field_names_problem([name])


@pytest.mark.parametrize("where", ["task", "data", "task.name", "task.description", "task.labels"])
def test_a_missing_key_is_named(where: str) -> None:
    assert refusal(changed(where, None, SMALL)) == f"{where} is missing"


@pytest.mark.parametrize(
    ("where", "value", "part"),
    [
        ("task.name", "", "task.name: "),
        ("task.name", "../up", "task.name: "),
        ("task.name", "two words", "task.name: "),
        ("task.description", "", "task.description: "),
        ("task.labels", ["one"], "at least two labels"),
        ("task.labels", ["a", "a"], "a label is listed twice"),
        ("task.labels", [1, 2], "task.labels: every label is a text: write it in quotes"),
        ("task.labels", [["a"], ["b"]], "every label is a text"),
        ("task.labels", "spam", "task.labels: "),
        ("task.labels", {"a": 1, "b": ""}, "task.labels.a: "),
        ("task.text", 3, "task.text: write the name of a column, or a list of names"),
        ("task.text", [], "task.text: write the name of a column, or a list of names"),
        ("task.text", ["a", 3], "task.text: write the name of a column, or a list of names"),
        ("task.text", ["a", "b", "a"], "task.text: 'a' is listed twice"),
        ("task.text", ["a", "</input>"], "task.text: '</input>' cannot name a field in a prompt: rename"),
        ("task.labels", ["a", ""], "'' cannot be a label"),
        ("task.labels", ["a", " b"], "' b' cannot be a label"),
        ("task.labels", ["a", "b\nc"], "cannot be a label"),
        ("task.labels", ["a", "</input>"], "cannot be a label"),
        ("task.labels", ["a", 'say "b"'], "cannot be a label"),
        ("data.file", 3, "data.file"),
        ("data.fractions", [0.5, 0.25, 0.25], "either `split` (a column) or `fractions`"),
        ("data.split", None, "either `split` (a column) or `fractions`"),
        ("data.train", "train.csv", "either `file`, or `train` and `validation`"),
        ("data.max_bad_share", 1.5, "data.max_bad_share: "),
        ("teacher.model", "", "teacher.model: "),
        ("teacher.requests_per_minute", 0, "teacher.requests_per_minute: "),
        ("teacher.tokens_per_minute", -1, "teacher.tokens_per_minute: "),
        ("teacher.concurrency", 0, "teacher.concurrency: "),
        ("teacher", "local:", "teacher: "),
        ("embedder.dimensions", 1, "embedder.dimensions: "),
        ("cluster.method", "kmeans", "cluster.method: "),
        ("cluster.eps", 0.0, "cluster.eps: "),
        ("cluster.eps", 2.0, "cluster.eps: "),
        ("cluster.eps", float("nan"), "cluster.eps: "),
        ("cluster.min_samples", 0, "cluster.min_samples: "),
        ("cluster.within", "labels", "cluster.within: "),
        ("resolve.max_rounds", -1, "resolve.max_rounds: "),
        ("resolve.patience", 0, "resolve.patience: "),
        ("resolve.max_prompt_tokens", 100, "resolve.max_prompt_tokens: "),
        ("resolve.rows_per_round", 0, "resolve.rows_per_round: "),
        ("resolve.cases_per_request", 2, "resolve.cases_per_request: "),
        ("resolve.confusions_per_round", 0, "resolve.confusions_per_round: "),
        ("resolve.max_edits", 0, "resolve.max_edits: "),
        ("resolve.prune", "perhaps", "resolve.prune: "),
        ("resolve.floors", {"ham": {"recall": 0.5}}, "resolve.floors: 'ham' is not a label"),
        ("resolve.floors", {"spams": {"recall": 0.5}}, "did you mean 'spam'?"),
        (
            "resolve.floors",
            {"spam": {"recal": 0.5}},
            "resolve.floors.spam.recal: Input should be 'precision'",
        ),
        ("resolve.floors", {"spam": {"recall": 80}}, "resolve.floors.spam.recall: "),
        ("run.seed", -1, "run.seed: "),
        ("run.seed", 1.5, "run.seed: "),
        ("run.max_cost_usd", -0.01, "run.max_cost_usd: "),
        ("run.max_cost_usd", float("nan"), "run.max_cost_usd: "),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(where: str, value: Any, part: str) -> None:
    assert part in refusal(changed(where, value))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"file": "a", "fractions": [0.7, 0.2, 0.2]}, "fractions must sum to 1, these sum to 1.1"),
        ({"file": "a", "fractions": [1.2, -0.1, -0.1]}, "both need a share above 0"),
        ({"file": "a", "fractions": [0.8, 0.0, 0.2]}, "both need a share above 0"),
        ({"file": "a", "fractions": [0.7, 0.3]}, "data.fractions"),
        ({"file": "a", "fractions": [float("nan")] * 3}, "fractions must sum to 1"),
        ({"train": "a"}, "`train` and `validation` are both needed"),
        ({"test": "a"}, "`train` and `validation` are both needed"),
        ({"train": "a", "validation": "b", "split": "s"}, "`split` and `fractions` go with `file`"),
        ({"train": "a", "validation": "b", "fractions": [0.6, 0.2, 0.2]}, "go with `file`"),
        ({}, "either `file`"),
    ],
)
def test_ways_to_divide_the_rows_that_make_no_sense(data: dict[str, Any], part: str) -> None:
    assert part in refusal(changed("data", data))


@pytest.mark.parametrize(
    "data",
    [
        {"file": "a", "fractions": [0.7, 0.15, 0.15]},
        {"file": ["a", "b/*.csv"], "fractions": [0.9, 0.1, 0]},
        {"train": "a", "validation": ["b", "c"], "test": "d"},
        {"train": ["a"], "validation": "b"},
    ],
)
def test_ways_to_divide_the_rows(data: dict[str, Any]) -> None:
    config = parse(changed("data", data))
    for files in (config.data.file, config.data.train, config.data.validation, config.data.test):
        assert all(isinstance(name, str) and len(name) for name in files)


def test_the_policy_is_found_from_the_file_not_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pld.toml").write_text(FULL)
    (project / "policy.md").write_text("Règles")
    monkeypatch.chdir(tmp_path)
    assert load_config("project/pld.toml").policy_text() == "Règles"
    elsewhere = tmp_path / "other.md"
    elsewhere.write_text("absolute")
    config = parse(changed("task.policy", str(elsewhere)))
    assert config.policy_text() == "absolute"


def test_a_policy_that_cannot_be_read(tmp_path: Path) -> None:
    config = parse_config(tomllib.loads(FULL), base=tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.md: the policy \(task\.policy\) cannot be read"):
        config.policy_text()
    (tmp_path / "policy.md").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"policy\.md: the policy \(task\.policy\) is not UTF-8"):
        config.policy_text()


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such configuration file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "bad.toml").write_text("[task\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: .*line 1"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bytes\.toml: .*not UTF-8"):
        load_config(tmp_path / "bytes.toml")


def test_a_configuration_cannot_be_changed() -> None:
    config = parse(tomllib.loads(SMALL))
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 8  # type: ignore[misc]
    assert "base" not in config.model_dump()
