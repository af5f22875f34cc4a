"""Keys that the server demands, and errors that repeat them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.fake_server.keys import key_in
from bench.fake_server.protocol import parse_head
from tests.bench.fake_server.client import Client, Got, against, chat

KEY = "sk-2718/281+828="
GENERATE = "/v1beta/models/fake:generateContent"


def head(*lines: str, target: str = "/") -> str:
    return key_in(parse_head("\r\n".join([f"POST {target} HTTP/1.1", "Host: x", *lines]).encode()))


def test_where_keys_stand() -> None:
    assert head(f"Authorization: Bearer {KEY}") == KEY
    assert head(f"x-goog-api-key: {KEY}") == KEY
    assert head(target="/?key=sk-2718%2F281%2B828%3D") == KEY
    assert head("Authorization: Basic abc") == head() == ""


def asked(path: str, headers: dict[str, str], **behaviour: Any) -> tuple[Got, dict[str, Any]]:
    async def use(client: Client) -> tuple[Got, dict[str, Any]]:
        document = chat() if path.startswith("/v1/") else {"contents": [{"parts": [{"text": "hi"}]}]}
        async with client.session.post(client.server.url + path, json=document, headers=headers) as answer:
            got = Got(answer.status, answer.headers, await answer.read())
        return got, (await client.get("/fake/seen")).document

    return against(use, **behaviour)


OPENAI = ("/v1/chat/completions", "Authorization", f"Bearer {KEY}")
GEMINI = (GENERATE, "x-goog-api-key", KEY)


@pytest.mark.parametrize(("path", "name", "value"), [OPENAI, GEMINI])
def test_a_key_is_demanded(path: str, name: str, value: str) -> None:
    assert asked(path, {name: value}, api_key=KEY)[0].status == 200
    got, seen = asked(path, {name: value}, api_key="another")
    assert got.status == (401 if path == OPENAI[0] else 400)
    assert KEY.encode() not in got.body
    assert seen["refused"] == {"key": 1}
    if path == GENERATE:
        assert got.document["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert asked(path, {}, api_key=KEY)[0].status == got.status


@pytest.mark.parametrize(("path", "name", "value"), [OPENAI, GEMINI])
@pytest.mark.parametrize(
    "fields",
    [{"api_key": "another"}, {"permanent_status": 404}, {"faults": {"error_500": 1.0}}],
    ids=["bad key", "permanent", "fault"],
)
def test_errors_repeat_it(path: str, name: str, value: str, fields: dict[str, Any]) -> None:
    got, _ = asked(path, {name: value}, echo_key=True, **fields)
    assert got.status >= 400
    assert KEY in got.document["error"]["message"]
    assert got.headers["X-Request-Key"] == KEY
    assert KEY in got.headers["WWW-Authenticate"]
    # without a key there is nothing to repeat, and good answers repeat nothing
    assert "X-Request-Key" not in asked(path, {}, echo_key=True, **fields)[0].headers
    good, _ = asked(path, {name: value}, echo_key=True)
    assert KEY.encode() not in good.body
