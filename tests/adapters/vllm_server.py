"""A vLLM server for tests, as far as the adapter can tell: names, tokens, choices, a cache of prefixes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.adapters.openai_server import completion
from tests.adapters.responding import Asked, http
from tests.support.vllm_pages import metrics

BLOCK = 16
_AROUND = 4  # tokens of its chat template


def tokens(messages: list[Mapping[str, str]]) -> list[int]:
    """A token for each four characters."""
    text = "".join(f"{one['role']}\n{one['content']}\n" for one in messages)
    return [hash(text[at : at + 4]) for at in range(0, len(text), 4)] + [0] * _AROUND


@dataclass
class VllmServer:
    """A `Script`. `heeds` are the fields it holds answers to choices by; `needs` requests with one salt and
    prefix make it keep that prefix; `gate`, where there is one, holds all answers to rows until it is set.

    `rows` are the requests without the probes, `going` those that are held just now. A server that is `down`
    hangs up on everybody.
    """

    name: str = "m"
    context: int | None = 1000
    heeds: frozenset[str] = frozenset({"structured_outputs"})
    tells_cached: bool = True
    needs: int = 1
    counts: bool = True
    gate: asyncio.Event | None = None
    down: bool = False
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    probes: list[Mapping[str, Any]] = field(default_factory=list)
    tokenized: list[int] = field(default_factory=list)
    going: int = 0
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> bytes | asyncio.Future[bytes] | None:
        if self.down:
            return None
        match asked.path:
            case "/v1/models":
                card = {"id": self.name, "max_model_len": self.context}
                return http(200, {"object": "list", "data": [card]})
            case "/metrics":
                return http(200, metrics(running=1), {"Content-Type": "text/plain"})
            case "/tokenize":
                self.tokenized.append(len(asked.body))
                found = tokens(asked.json["messages"])
                return http(200, {"count": len(found), "tokens": found}) if self.counts else http(404)
            case _:
                return asyncio.ensure_future(self._chat(asked.json))

    async def _chat(self, body: Mapping[str, Any]) -> bytes:
        messages = body["messages"]
        probe = len(messages) == 1 and messages[0]["content"] == "Answer."
        (self.probes if probe else self.rows).append(body)
        if body["model"] != self.name:
            return http(404, {"error": {"message": "no", "type": "NotFoundError", "code": 404}})
        prompt = tokens(messages)
        if self.context is not None and len(prompt) + body["max_completion_tokens"] > self.context:
            error = {"message": messages[-1]["content"][:9], "type": "BadRequestError", "code": 400}
            return http(400, {"error": {**error, "param": "input_tokens"}})
        cached = self._cached(body)
        if self.gate is not None and not probe:
            self.going += 1
            await self.gate.wait()
            self.going -= 1
        details = {"cached_tokens": cached} if self.tells_cached else None
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 2, "prompt_tokens_details": details}
        return http(200, completion(self._label(body), usage=usage))

    def _cached(self, body: Mapping[str, Any]) -> int:
        prefix = json.dumps(body["messages"][:-1])
        key = body.get("cache_salt", ""), prefix
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= self.needs or len(body["messages"]) < 2:
            return 0
        return (len(tokens(body["messages"][:-1])) - _AROUND) // BLOCK * BLOCK

    def _label(self, body: Mapping[str, Any]) -> str:
        for name in self.heeds & body.keys():
            if name == "structured_outputs":
                return str(body[name]["choice"][-1])
            if name == "response_format":
                schema = body[name]["json_schema"]["schema"]["properties"]["label"]
                return json.dumps({"label": schema["enum"][-1]})
        return "Well, that depends."

    def restart(self) -> None:
        """It has died and come back: nothing is cached."""
        self._seen.clear()
