"""Local answers: over HTTP as in process, on both wires."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from adapters.local import LocalEmbedder, LocalStudent, LocalTeacher, fit_local
from bench.fake_server.local import _Batched
from engine.distillation.answers import ExtractionAnswer, SynthesisAnswer, schema_of
from engine.fences import block, fence
from engine.prompt import CompiledPrompt
from engine.student import StudentPrompt
from engine.types import Answer, Embedding, Message, Request
from tests.adapters.local.corpus import LABELS, train
from tests.bench.fake_server.client import Client, Got, against

FIT = fit_local(train(240), LABELS, seed=7, dimensions=16)
RULES = ['If the text says "refund" (strong sign), choose billing.', "offline again"]


@pytest.fixture(scope="module")
def fit_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("fit") / "local.json"
    FIT.save(path)
    return str(path)


def in_process(model: LocalTeacher | LocalStudent, request: Request) -> Answer:
    (outcome,) = asyncio.run(model.complete([request]))
    assert isinstance(outcome, Answer)
    return outcome


def extraction(text: str = "my invoice and a refund please", label: str = "billing") -> Request:
    messages = (Message("system", "# Task"), Message("user", fence("input", text, label=label)))
    return Request("r", messages, 500, schema_of(ExtractionAnswer, LABELS))


def classification(text: str) -> Request:
    rules = "\n".join(f'If the text says "{word}" (strong sign), choose {label}.' for word, label in SIGNS)
    prompt = CompiledPrompt(f"What is it about?\n{rules}", dict.fromkeys(LABELS, ""))
    return StudentPrompt(prompt).request("r", text)


SIGNS = (("refund", "billing"), ("offline", "outage"), ("superb", "praise"))


def openai(request: Request, model: str, **fields: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": model,
        "messages": [{"role": one.role, "content": one.content} for one in request.messages],
        "max_tokens": request.max_output_tokens,
        **fields,
    }
    if request.schema is not None:
        schema = {"name": request.schema.name, "schema": dict(request.schema.json_schema), "strict": True}
        document["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.choices:
        document["structured_outputs"] = {"choice": list(request.choices)}
    return document


def post(fit_file: str, document: object, path: str = "/v1/chat/completions") -> Got:
    async def use(client: Client) -> Got:
        return await client.post(path, document)

    return against(use, answers="local", local_fit=fit_file)


def content(got: Got) -> str:
    assert got.status == 200, got.body
    text: str = got.document["choices"][0]["message"]["content"]
    return text


def test_the_teacher_answers_as_in_process(fit_file: str) -> None:
    rules = block("rules", fence("rule", RULES[0], label="billing", count=3), total=3)
    synthesis = Request("r", (Message("user", rules),), 500, schema_of(SynthesisAnswer))
    for request in (extraction(), synthesis):
        got = post(fit_file, openai(request, "my-teacher-1"))
        expected = in_process(LocalTeacher(FIT), request)
        assert content(got) == expected.text
        assert got.document["usage"]["completion_tokens"] == expected.usage.output_tokens
        assert got.document["usage"]["prompt_tokens_details"] is None


def test_the_student_chooses_as_in_process(fit_file: str) -> None:
    for text in ("it is offline", "a refund", "superb work", "nothing"):
        request = classification(text)
        expected = in_process(LocalStudent(), request)
        got = post(fit_file, openai(request, "student", logprobs=True, top_logprobs=3))
        assert content(got) == expected.text
        (token,) = got.document["choices"][0]["logprobs"]["content"]
        assert expected.label_logprobs is not None
        assert {one["token"]: one["logprob"] for one in token["top_logprobs"]} == pytest.approx(
            dict(expected.label_logprobs)
        )
        assert token["logprob"] == max(one["logprob"] for one in token["top_logprobs"])


def test_a_choice_may_stand_in_an_object(fit_file: str) -> None:
    request = classification("it is offline")
    document = openai(request, "student")
    del document["structured_outputs"]
    schema = {"type": "object", "properties": {"label": {"type": "string", "enum": list(LABELS)}}}
    document["response_format"] = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    assert orjson.loads(content(post(fit_file, document))) == {"label": "outage"}


def test_embeddings_as_in_process(fit_file: str) -> None:
    outcomes = asyncio.run(LocalEmbedder(FIT).embed(RULES))
    expected = np.stack([one.vector for one in outcomes if isinstance(one, Embedding)])
    got = post(fit_file, {"model": "embedder", "input": RULES}, "/v1/embeddings").document
    vectors = np.array([one["embedding"] for one in got["data"]], dtype=np.float32)
    np.testing.assert_array_equal(vectors, expected)
    longer = post(
        fit_file, {"model": "embedder", "input": RULES, "dimensions": 64}, "/v1/embeddings"
    ).document
    filled = np.array([one["embedding"] for one in longer["data"]], dtype=np.float32)
    np.testing.assert_array_equal(filled[:, : FIT.dim], expected)
    assert not filled[:, FIT.dim :].any()
    assert (
        post(fit_file, {"model": "embedder", "input": RULES, "dimensions": 2}, "/v1/embeddings").status == 400
    )


def test_gemini(fit_file: str) -> None:
    request = extraction()
    schema = request.schema
    assert schema is not None
    document = {
        "systemInstruction": {"parts": [{"text": request.messages[0].content}]},
        "contents": [{"role": "user", "parts": [{"text": request.messages[1].content}]}],
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseJsonSchema": dict(schema.json_schema),
            "maxOutputTokens": 500,
        },
    }
    got = post(fit_file, document, "/v1beta/models/teacher:generateContent").document
    assert got["candidates"][0]["content"]["parts"][0]["text"] == in_process(LocalTeacher(FIT), request).text
    student = classification("it is offline")
    document = {
        "systemInstruction": {"parts": [{"text": student.messages[0].content}]},
        "contents": [{"parts": [{"text": student.messages[1].content}]}],
        "generationConfig": {
            "responseMimeType": "text/x.enum",
            "responseSchema": {"type": "STRING", "enum": list(LABELS)},
            "responseLogprobs": True,
            "logprobs": 2,
        },
    }
    candidate = post(fit_file, document, "/v1beta/models/student:generateContent").document["candidates"][0]
    assert candidate["content"]["parts"] == [{"text": "outage"}]
    assert len(candidate["logprobsResult"]["topCandidates"][0]["candidates"]) == 2


def test_an_answer_is_cut_at_its_limit(fit_file: str) -> None:
    document = openai(extraction(), "teacher", max_tokens=5)
    choice = post(fit_file, document).document["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"]) == 20


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "gpt-x"}, 404),
        ({"model": None}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": 3}]}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "unknown", "schema": {}}}}, 400),
        ({"messages": [{"role": "user", "content": "no fence"}]}, 400),
        ({"stream": True}, 400),
        ({"n": 2}, 400),
        ({"max_tokens": "many"}, 400),
        ({"structured_outputs": {"choice": "a"}}, 400),
        ({"logprobs": True, "top_logprobs": 21}, 400),
    ],
)
def test_what_a_provider_would_refuse(fit_file: str, change: dict[str, Any], status: int) -> None:
    got = post(fit_file, {**openai(extraction(), "teacher"), **change})
    assert got.status == status
    assert got.document["error"]["message"]


def test_models_are_listed(fit_file: str) -> None:
    async def use(client: Client) -> Got:
        return await client.get("/v1/models")

    got = against(use, answers="local", local_fit=fit_file)
    assert [one["id"] for one in got.document["data"]] == ["teacher", "student", "embedder"]


def test_faults_and_counts_hold_for_local_answers_too(fit_file: str) -> None:
    async def use(client: Client) -> tuple[list[int], dict[str, Any]]:
        documents = [openai(extraction(f"refund {n}"), "teacher") for n in range(60)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.post("/v1/chat/completions", one)) for one in documents]
        return [task.result().status for task in tasks], (await client.get("/fake/seen")).document

    statuses, seen = against(use, answers="local", local_fit=fit_file, faults={"error_500": 0.3}, seed=2)
    assert 0 < statuses.count(500) < 60
    assert seen["usable"] == statuses.count(200) == 60 - statuses.count(500)
    assert seen["tokens"]["prompt"] > 0


def test_the_fit_can_be_given_later(fit_file: str) -> None:
    async def use(client: Client) -> list[Got]:
        missing = await client.post("/fake/configure", {"answers": "local", "local_fit": fit_file + "x"})
        await client.post("/fake/configure", {"answers": "local", "local_fit": fit_file})
        return [missing, await client.post("/v1/chat/completions", openai(extraction(), "teacher"))]

    missing, got = against(use)
    assert missing.status == 400
    assert "local.json" in missing.document["error"]
    assert content(got)


def test_a_batch_that_fails_fails_its_askers_alone() -> None:
    async def main() -> list[Any]:
        async def ask_all(numbers: Any) -> list[int]:
            await asyncio.sleep(0)
            if 0 in numbers:
                raise ZeroDivisionError
            return [10 // number for number in numbers]

        batched: _Batched[int, int] = _Batched(ask_all)
        first = await asyncio.gather(*(batched.ask(n) for n in (1, 0)), return_exceptions=True)
        second = await asyncio.gather(*(batched.ask(n) for n in range(1, 40)))
        await batched.aclose()
        return [first, second]

    first, second = asyncio.run(main())
    assert [type(one) for one in first] == [ZeroDivisionError, ZeroDivisionError]
    assert second == [10 // n for n in range(1, 40)]


def test_who_has_hung_up_is_not_answered() -> None:
    async def main() -> list[int]:
        asked: list[int] = []
        go = asyncio.Event()

        async def ask_all(numbers: Any) -> list[int]:
            asked.extend(numbers)
            await go.wait()
            return list(numbers)

        batched: _Batched[int, int] = _Batched(ask_all)
        first, second, third = (asyncio.ensure_future(batched.ask(n)) for n in (1, 2, 3))
        await asyncio.sleep(0)
        second.cancel()
        go.set()
        assert await first == 1
        assert await third == 3
        await asyncio.wait([second])
        return asked

    assert asyncio.run(main()) == [1, 3]
