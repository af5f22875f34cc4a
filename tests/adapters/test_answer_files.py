"""Requests and answers in files: the contract, the format, and everything that files go through."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import answer_files, answer_folder
from adapters.answer_files import AnswerFiles
from adapters.answer_lines import read_line, refuses_temperature
from engine.errors import ModelError
from engine.types import (
    TRANSIENT,
    Answer,
    AnswerSchema,
    AttemptFailure,
    ChatOutcome,
    FinishReason,
    Message,
    Request,
)
from tests.conftest import ROOT
from tests.contracts.batch_model import BatchModelContract, keys, texts

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def files(folder: Path, **settings: Any) -> AnswerFiles:
    return AnswerFiles(folder, name="answer-files:answers", **settings)


def ask(n: int, **more: Any) -> Request:
    return Request(f"r{n}", (Message("system", "shared"), Message("user", f"text {n}")), 20, **more)


def line(key: bytes | str, outcome: ChatOutcome) -> str:
    """A line of OpenAI's batch output, as a provider writes it."""
    document: dict[str, Any] = {
        "id": f"batch_req_{random.random()}",
        "custom_id": key if isinstance(key, str) else key.hex(),
    }
    if isinstance(outcome, Answer):
        return json.dumps(document | {"response": response(200, completion(outcome.text)), "error": None})
    kind = "invalid_request_error" if outcome.retry.kind == "no" else "server_error"
    status = 400 if outcome.retry.kind == "no" else 500
    error = {"error": {"message": "no", "type": kind, "code": None, "param": None}}
    return json.dumps(document | {"response": response(status, error), "error": None})


def response(status: int, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": "x", "body": body}


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def asked(folder: Path) -> list[list[dict[str, Any]]]:
    """The lines of each requests file, by number."""
    return [
        [json.loads(one) for one in path.read_text().splitlines()]
        for path in sorted(folder.glob("requests-*.jsonl"))
    ]


def ids(folder: Path) -> list[list[bytes]]:
    return [[bytes.fromhex(one["custom_id"]) for one in lines] for lines in asked(folder)]


def put(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("".join(f"{one}\n" for one in lines))


class TestAnswerFiles(BatchModelContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "answers"

    def model(self) -> AnswerFiles:
        return files(self.folder)

    def deliver(self, replies: Mapping[bytes, ChatOutcome]) -> None:
        number = len(list(self.folder.glob("requests-*.jsonl")))
        put(self.folder, f"answers-{number:03d}.jsonl", *(line(*reply) for reply in replies.items()))

    def handed(self) -> list[list[bytes]]:
        return ids(self.folder)


# --- requests -------------------------------------------------------------------------------------


def test_requests_are_in_openais_batch_format(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "answers"
    schema = AnswerSchema("extraction", {"type": "object", "properties": {"a": {"type": "string"}}})
    requests = [ask(1, schema=schema), ask(2, choices=("yes", "no")), ask(3, temperature=0.5, index=2)]
    submitted = run(files(folder, model="some-model").submit(requests))
    assert list(submitted.jobs) == ["requests-001.jsonl"]
    first, second, third = asked(folder)[0]
    assert list(first) == ["custom_id", "method", "url", "body"]
    assert first["custom_id"] == requests[0].digest("answer-files:answers").hex()
    assert (first["method"], first["url"]) == ("POST", "/v1/chat/completions")
    assert first["body"] == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "shared"}, {"role": "user", "content": "text 1"}],
        "max_completion_tokens": 20,
        "temperature": 0.0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "extraction", "schema": schema.json_schema, "strict": False},
        },
    }
    shape = second["body"]["response_format"]["json_schema"]
    assert shape["schema"]["properties"] == {"label": {"type": "string", "enum": ["yes", "no"]}}
    assert (third["body"]["temperature"], third["body"]["seed"]) == (0.5, 2)
    assert "model" not in json.loads(json.dumps(asked_of(tmp_path / "plain", requests[:1])[0]))["body"]


def asked_of(folder: Path, requests: Sequence[Request]) -> list[dict[str, Any]]:
    run(files(folder).submit(requests))
    return asked(folder)[0]


def test_files_are_private_and_only_made_when_something_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert run(files(folder).collect([ask(1)])) == {}
    assert not (tmp_path / "a").exists()
    before = os.umask(0)
    try:
        run(files(folder).submit([ask(1)]))
    finally:
        os.umask(before)
    assert {path.name for path in folder.iterdir()} == {".lock", "requests-001.jsonl"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_users_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run(files(tmp_path).submit([ask(1)]))
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_files_have_at_most_so_many_requests_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_files, "MAX_REQUESTS", 3)
    requests = [ask(n) for n in range(8)]
    submitted = run(files(tmp_path).submit(requests))
    assert [len(lines) for lines in asked(tmp_path)] == [3, 3, 2]
    assert list(submitted.jobs) == [f"requests-00{n}.jsonl" for n in (1, 2, 3)]
    size = len((tmp_path / "requests-003.jsonl").read_bytes())
    monkeypatch.setattr(answer_files, "MAX_FILE_BYTES", size + 4)  # numbers of two digits follow
    run(files(tmp_path).submit([ask(n) for n in range(8, 13)]))
    assert [len(lines) for lines in asked(tmp_path)][3:] == [2, 2, 1]
    # one that is too large for any file still goes
    monkeypatch.setattr(answer_files, "MAX_FILE_BYTES", 10)
    run(files(tmp_path).submit([ask(20), ask(21)]))
    assert [len(lines) for lines in asked(tmp_path)][6:] == [1, 1]


@pytest.mark.parametrize(
    ("count", "to_do"),
    [
        (
            1,
            "have requests-001.jsonl answered (OpenAI's batch format) into answers-001.jsonl",
        ),
        (
            2,
            "have requests-001.jsonl and requests-002.jsonl answered (OpenAI's batch format) into "
            "answers-001.jsonl and answers-002.jsonl",
        ),
        (
            5,
            "have the 5 files from requests-001.jsonl to requests-005.jsonl answered (OpenAI's batch "
            "format), each into the file of its number, answers-001.jsonl and so on",
        ),
    ],
)
def test_what_to_do_is_said(count: int, to_do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answer_files, "MAX_REQUESTS", 1)
    assert run(files(tmp_path).submit([ask(n) for n in range(count)])).to_do == to_do


def test_a_kill_between_files_leads_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_files, "MAX_REQUESTS", 3)
    requests = [ask(n) for n in range(8)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(files(whole).submit(requests))
    real = Path.replace
    replaced = []

    def killed(path: Path, target: Path) -> Path:
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(files(torn).submit(requests))
    # what a killed process leaves of a file that it was writing
    (torn / ".requests-002.jsonl.tmp").write_bytes(b'{"custom_id"')
    (torn / ".requests-002.json").write_bytes(b'{"00": "x"}')
    run(files(torn).submit(requests))
    assert {p.name: p.read_bytes() for p in torn.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


@pytest.mark.parametrize("broken", ["file", "unreadable", "full"])
def test_a_folder_that_cannot_be_used_is_one_clear_error(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "answers"
    if broken == "file":
        folder.write_text("")
    elif broken == "unreadable":
        folder.mkdir()
        (folder / "answers-1.jsonl").mkdir()  # no file: left alone
        (folder / "answers-2.jsonl").symlink_to(folder / "answers-3.jsonl")  # nor this one
        run(files(folder).collect([ask(1)]))
        (folder / ".lock").mkdir()
    else:
        monkeypatch.setattr(
            os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
    with pytest.raises(ModelError, match=r"answer-files:answers: .*run the same command again"):
        run(files(folder).submit([ask(1)]))
    assert not list(folder.glob(".*.tmp")) if folder.is_dir() else True


# --- answers --------------------------------------------------------------------------------------

OUTCOMES: list[tuple[dict[str, Any], ChatOutcome | tuple[str, str]]] = [
    ({"response": response(200, completion("yes"))}, Answer("yes")),
    ({"response": {"body": completion("yes")}}, Answer("yes")),
    ({"response": response(200, completion("yes", "length")), "error": {}}, Answer("yes")),
    ({"response": response(200, completion(None, refusal="I will not"))}, Answer("")),
    ({"response": response(200, completion("", "content_filter"))}, Answer("")),
    ({"response": response(200, completion(""))}, ("empty", "doubtful")),
    ({"response": response(200, completion("x", "strange"))}, ("malformed", "doubtful")),
    ({"response": response(200, {})}, ("malformed", "transient")),
    ({"response": response(200, None)}, ("malformed", "transient")),
    ({"response": response(200, "x")}, ("malformed", "transient")),
    ({"response": response(200, {"error": {"code": "content_filter"}})}, ("blocked", "no")),
    (
        {"response": response(500, {"error": {"message": "m", "type": "server_error"}})},
        ("http_500", "transient"),
    ),
    ({"response": response(429, {"error": {"code": "rate_limit_exceeded"}})}, ("http_429", "transient")),
    ({"response": response(401, {"error": {"code": "invalid_api_key"}})}, ("http_401", "transient")),
    ({"response": response(404, {"error": {"code": "model_not_found"}})}, ("http_404", "transient")),
    ({"response": response(400, {"error": {"type": "invalid_request_error"}})}, ("refused", "no")),
    ({"response": response(400, {"error": {"code": "context_length_exceeded"}})}, ("too_long", "no")),
    ({"response": response(400, {"error": {"code": "content_policy_violation"}})}, ("blocked", "no")),
    # vLLM: the error beside a response without a body, nested or as a string
    (
        {
            "response": {"status_code": 400, "request_id": "x", "body": None},
            "error": {
                "error": {"message": "m", "type": "BadRequestError", "param": "input_tokens", "code": 400}
            },
        },
        ("too_long", "no"),
    ),
    ({"response": {"status_code": 400, "body": None}, "error": "some text"}, ("http_400", "transient")),
    # OpenAI: no response at all
    ({"response": None, "error": {"code": "batch_expired", "message": "m"}}, ("no_response", "transient")),
    ({"error": {"message": "m"}}, ("no_response", "transient")),
    ({}, ("no_response", "transient")),
    ({"response": [1], "error": 3}, ("no_response", "transient")),
]


@pytest.mark.parametrize("number", range(len(OUTCOMES)))
def test_what_a_line_means(number: int, tmp_path: Path) -> None:
    document, expected = OUTCOMES[number]
    model, request = files(tmp_path), ask(1)
    key = request.digest(model.name)
    put(tmp_path, "answers-1.jsonl", json.dumps({"custom_id": key.hex(), **document}))
    outcome = run(model.collect([request]))[key]
    if isinstance(expected, Answer):
        assert isinstance(outcome, Answer)
        assert outcome.text == expected.text
        assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (7, 3)
    else:
        assert isinstance(outcome, AttemptFailure)
        assert (outcome.reason, outcome.retry.kind) == expected
        assert "\n" not in outcome.detail
        assert "some text" not in outcome.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 999) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "status_code",
                    "body",
                    "choices",
                    "message",
                    "content",
                    "error",
                    "code",
                    "type",
                    "usage",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON, JSON, st.sampled_from([(), ("yes", "no")]))
@settings(max_examples=150)
def test_whatever_stands_in_a_line_is_an_outcome(
    whole: object, body: object, error: object, choices: tuple[str, ...]
) -> None:
    for response_ in (whole, response(200, body), response(400, body), response(200, {"choices": [body]})):
        document = {"custom_id": "x", "response": response_, "error": error}
        assert isinstance(read_line(ask(1, choices=choices), document), Answer | AttemptFailure)
        refuses_temperature(document)


def test_finish_reasons_and_choices_are_read_as_over_the_wire(tmp_path: Path) -> None:
    model = files(tmp_path)
    requests = [ask(1), ask(2), ask(3, choices=("yes", "no")), ask(4, choices=("yes", "no"))]
    replies = [completion("cut", "length"), completion("x", "content_filter")]
    replies += [completion('{"label": "no"}'), completion("no")]
    put(
        tmp_path,
        "answers-1.jsonl",
        *(
            json.dumps({"custom_id": key.hex(), "response": response(200, reply)})
            for key, reply in zip(keys(model, requests), replies, strict=True)
        ),
    )
    found = [run(model.collect(requests))[key] for key in keys(model, requests)]
    assert [one.finish_reason for one in found if isinstance(one, Answer)][:2] == [
        FinishReason.LENGTH,
        FinishReason.BLOCKED,
    ]
    assert texts(model, requests, run(model.collect(requests)))[2:] == ["no", "no"]


def test_the_first_usable_answer_by_file_name_counts(tmp_path: Path) -> None:
    model, request = files(tmp_path), ask(1)
    (key,) = keys(model, [request])
    put(tmp_path, "answers-b.jsonl", line(key, Answer("b")))
    put(
        tmp_path,
        "answers-a.jsonl",
        line(key, AttemptFailure("x")),
        line(key, Answer("first")),
        line(key, Answer("second")),
    )
    put(tmp_path, "answers-A-errors.jsonl", line(key, AttemptFailure("x")))
    assert texts(model, [request], run(model.collect([request]))) == ["first"]


def test_lines_that_cannot_be_used_are_counted_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, requests = files(tmp_path), [ask(n) for n in range(3)]
    run(model.submit(requests))
    good = [line(key, Answer("yes")) for key in keys(model, requests)]
    bad = ["[1]", '{"a": 1}', '{"custom_id": 3}', "secret text", "\0\0", '"x"', "{}"]
    lines = [
        "\ufeff" + good[0],
        *bad,
        "",
        line("foreign", Answer("x")),
        line(bytes(32), Answer("x")),
        good[1],
    ]
    (tmp_path / "answers-1.jsonl").write_text("\r\n".join([*lines, good[2][:50]]), encoding="utf-8")
    (tmp_path / "answers-empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("x")
    found = run(model.collect(requests))
    assert set(found) == set(keys(model, requests[:2]))
    assert list(model.remarks) == [
        "answers-1.jsonl: 7 lines are not answers in OpenAI's batch format and are left out "
        "(line 2, 3, 4, 5, 6, …)",
        "answers-1.jsonl: the last line is cut off and is left out",
        "answers-1.jsonl: 2 lines answer no request of a requests file here and are left out",
        "answers-empty.jsonl: is empty",
    ]
    run(model.collect(requests))
    assert len(model.remarks) == 4


def test_answers_under_another_name_are_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, request = files(tmp_path), ask(1)
    (tmp_path / "rows.jsonl").write_text("the user's own")
    run(model.collect([request]))
    assert list(model.remarks) == []
    run(model.submit([request]))
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "batch_output.jsonl").write_text(line(keys(model, [request])[0], Answer("x")))
    assert run(model.collect([request])) == {}
    assert "batch_output.jsonl is not read: give files with answers a name such as answers-001.jsonl" in (
        model.remarks
    )
    (tmp_path / "batch_output.jsonl").rename(tmp_path / "answers-batch_output.jsonl")
    assert texts(model, [request], run(model.collect([request]))) == ["x"]


def test_a_file_that_grows_is_read_from_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, requests = files(tmp_path), [ask(n) for n in range(4)]
    run(model.submit(requests))
    good = [line(key, Answer(f"a{n}")) for n, key in enumerate(keys(model, requests))]
    path = tmp_path / "answers-1.jsonl"
    read: list[int] = []
    take = answer_folder.LineFile._key

    def counted(file: answer_folder.LineFile, content: bytes) -> bytes | None:
        if file.path == path:
            read.append(len(content))
        return take(file, content)

    monkeypatch.setattr(answer_folder.LineFile, "_key", counted)
    with path.open("w") as file:
        file.write(f"{good[0]}\n{good[1][:30]}")
        file.flush()
        assert len(run(model.collect(requests))) == 1
        file.write(f"{good[1][30:]}\n{good[2]}")  # without an end, but whole
        file.flush()
        assert len(run(model.collect(requests))) == 3
        file.write(f"\n{good[3]}\n")
    whole = run(model.collect(requests))
    assert texts(model, requests, whole) == ["a0", "a1", "a2", "a3"]
    assert len(read) == 2 + 2 + 2
    run(model.collect(requests))
    assert len(read) == 6
    # a last line without an end may still change
    with path.open("a") as file:
        file.write(line(keys(model, requests)[0], AttemptFailure("x", retry=TRANSIENT)))
    run(model.collect(requests))
    assert texts(model, requests, run(model.collect(requests))) == ["a0", "a1", "a2", "a3"]
    content = path.read_text().splitlines()[:-1]
    path.write_text("\n".join([*content, line(bytes(32), Answer("somebody else's"))]))
    run(model.collect(requests))
    assert texts(model, requests, run(model.collect(requests))) == ["a0", "a1", "a2", "a3"]
    # and one that was written anew is read anew, also where it is longer
    put(tmp_path, path.name, *(line(key, Answer("new" * 50)) for key in keys(model, requests)))
    assert set(texts(model, requests, run(model.collect(requests)))) == {"new" * 50}
    path.unlink()
    assert run(model.collect(requests)) == {}


def test_old_errors_do_not_pass_for_new_answers(tmp_path: Path) -> None:
    """A request that failed is in a second file; its first error must not close that one."""
    model, requests = files(tmp_path), [ask(1), ask(2)]
    first, second = keys(model, requests)
    run(model.submit(requests))
    error = line(first, AttemptFailure("x", retry=TRANSIENT))
    put(tmp_path, "answers-001.jsonl", error, error, line(second, AttemptFailure("x", retry=TRANSIENT)))
    run(files(tmp_path).submit(requests))
    assert run(files(tmp_path).poll("requests-002.jsonl")) == "pending"
    run(files(tmp_path).submit(requests))
    assert len(ids(tmp_path)) == 2
    # the very same line once more is another answer
    put(tmp_path, "answers-002.jsonl", error)
    assert run(model.poll("requests-002.jsonl")) == "done"
    run(files(tmp_path).submit(requests))
    assert ids(tmp_path)[2] == [first, second]
    # answers that replace those of the round before
    put(tmp_path, "answers-001.jsonl", line(first, AttemptFailure("y", retry=TRANSIENT)))
    (tmp_path / "answers-002.jsonl").unlink()
    assert run(files(tmp_path).poll("requests-003.jsonl")) == "done"
    outcomes = run(files(tmp_path).collect(requests))
    assert {one.reason for one in outcomes.values() if isinstance(one, AttemptFailure)} == {"unanswered"}


def test_old_errors_stay_old_when_files_are_renamed_or_get_their_last_line_end(tmp_path: Path) -> None:
    model, requests = files(tmp_path), [ask(1)]
    (key,) = keys(model, requests)
    run(model.submit(requests))
    first, second = (line(key, AttemptFailure("x", retry=TRANSIENT)) for _ in range(2))
    (tmp_path / "answers-1.jsonl").write_text(first)
    put(tmp_path, "answers-2.jsonl", second)
    run(model.submit(requests))
    assert run(model.poll("requests-002.jsonl")) == "pending"
    with (tmp_path / "answers-1.jsonl").open("a") as file:
        file.write("\n")
    assert run(model.poll("requests-002.jsonl")) == "pending"
    (tmp_path / "answers-1.jsonl").rename(tmp_path / "answers-3.jsonl")
    assert run(model.poll("requests-002.jsonl")) == "pending"
    put(tmp_path, "answers-4.jsonl", first)
    assert run(model.poll("requests-002.jsonl")) == "done"


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    requests = [ask(1), ask(2)]
    run(files(tmp_path / "old").submit(requests))
    first, _ = keys(files(tmp_path), requests)
    put(tmp_path / "old", "answers-001.jsonl", line(first, AttemptFailure("x", retry=TRANSIENT)))
    run(files(tmp_path / "old").submit(requests))
    (tmp_path / "old").rename(tmp_path / "new")
    run(files(tmp_path / "new").submit(requests))
    assert len(ids(tmp_path / "new")) == 2


def test_a_model_that_takes_no_temperature_is_asked_without(tmp_path: Path) -> None:
    model, requests = files(tmp_path), [ask(1), ask(2)]
    run(model.submit(requests))
    error = {"type": "invalid_request_error", "code": "unsupported_value", "param": "temperature"}
    document = {"custom_id": keys(model, requests)[0].hex(), "response": response(400, {"error": error})}
    put(tmp_path, "answers-001.jsonl", json.dumps(document))
    (outcome,) = run(model.collect(requests)).values()
    assert isinstance(outcome, AttemptFailure)
    assert (outcome.reason, outcome.retry.kind) == ("no_temperature", "transient")
    run(files(tmp_path).submit([*requests, ask(3)]))
    assert ["temperature" in one["body"] for one in asked(tmp_path)[1]] == [False] * 3


def test_no_line_is_held_in_memory(tmp_path: Path) -> None:
    model = files(tmp_path)
    requests = [ask(n) for n in range(100)]
    put(tmp_path, "answers-1.jsonl", *(line(key, Answer("long " * 10_000)) for key in keys(model, requests)))
    tracemalloc.start()
    try:
        run(model.collect(requests[:1]))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000 < (tmp_path / "answers-1.jsonl").stat().st_size / 10
    assert peak < 2_000_000


def test_an_endless_line_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_folder, "_LONGEST_LINE", 1000)
    model, request = files(tmp_path), ask(1)
    (key,) = keys(model, [request])
    good = line(key, Answer("yes"))
    (tmp_path / "answers-1.jsonl").write_text(f"[{'1,' * 3000}1]\n{good}\n[{'1,' * 3000}")
    assert texts(model, [request], run(model.collect([request]))) == ["yes"]
    assert len(model.remarks) == 3  # that one, the torn one, and that nothing was asked here


def test_processes_share_a_folder(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from adapters.answer_files import AnswerFiles\n"
        "from engine.types import Message, Request\n"
        "first = int(sys.argv[2])\n"
        "requests = [Request('r', (Message('user', str(n)),), 20) for n in range(first, first + 300)]\n"
        "asyncio.run(AnswerFiles(Path(sys.argv[1]), name='m').submit(requests))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(first)], cwd=ROOT) for first in (0, 100)]
    assert [process.wait() for process in processes] == [0, 0]
    handed = [key for job in ids(tmp_path) for key in job]
    assert len(handed) == len(set(handed)) == 400


MESS = st.sampled_from(["answer", "answer", "error", "drop", "duplicate", "corrupt", "foreign", "gone"])


@given(st.integers(1, 12), st.randoms(use_true_random=False), st.data())
@settings(max_examples=25)
def test_whatever_comes_back_rounds_end_and_nothing_answered_is_asked_twice(
    n: int, rng: random.Random, data: st.DataObject
) -> None:
    async def check(folder: Path) -> None:
        requests = [ask(i) for i in range(n)]
        usable: dict[bytes, str] = {}
        gone: set[bytes] = set()
        for turn in range(1, 10):
            model = files(folder)
            found = await model.collect(requests)
            assert {key: one.text for key, one in found.items() if isinstance(one, Answer)} == usable
            final = {
                key
                for key, one in found.items()
                if isinstance(one, AttemptFailure) and one.retry.kind == "no"
            }
            left = [r for r in requests if r.digest(model.name) not in {*usable, *final}]
            if not left:
                break
            await model.submit(left)
            jobs = ids(folder)
            assert len(jobs) == turn <= 3
            assert not {*usable, *gone} & set(jobs[-1])
            lines: list[str] = []
            for key in jobs[-1]:
                kind = data.draw(MESS)
                if kind in ("answer", "duplicate"):
                    usable[key] = f"answer {turn}"
                    lines += [line(key, Answer(usable[key]))] * (1 if kind == "answer" else 2)
                elif kind == "error":
                    lines.append(line(key, AttemptFailure("x", retry=TRANSIENT)))
                elif kind == "gone":
                    gone.add(key)
                    lines.append(line(key, AttemptFailure("x")))
                elif kind == "corrupt":
                    lines.append(line(key, Answer("corrupt")).replace("{", "(", 1))
                elif kind == "foreign":
                    lines.append(line(rng.randbytes(32), Answer("foreign")))
            rng.shuffle(lines)
            known = "".join(one for one in lines if not one.startswith("("))
            if not any(key.hex() in known for key in jobs[-1]):  # somebody was there all the same
                lines.append(line(jobs[-1][0], AttemptFailure("x", retry=TRANSIENT)))
            torn = line(rng.choice(jobs[-1]), Answer("torn"))[: rng.randrange(60, 100)]
            ending = rng.choice(["\n", "\r\n"])
            text = rng.choice(["", "\ufeff"]) + ending.join([*lines, torn])
            (folder / f"answers-{rng.randrange(10)}-{turn}.jsonl").write_bytes(text.encode())
        else:
            raise AssertionError("the rounds have to end")

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))
