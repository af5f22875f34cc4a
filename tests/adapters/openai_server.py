"""OpenAI's JSON for tests, and a server that heeds some fields of requests and not others."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.adapters.responding import Asked, http

KEY = "sk-planted-2718281828"
ROW = "unmentionable-row-text-here"


def completion(
    content: object = "spam", finish: object = "stop", usage: object = None, **message: object
) -> dict[str, Any]:
    """A chat completion."""
    usage = usage or {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish,
    }
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def error(code: object = None, kind: object = None, param: object = None) -> dict[str, Any]:
    """An error of OpenAI's, whose message quotes the row, as messages do."""
    return {"error": {"message": f"bad: {ROW} {KEY}", "type": kind, "param": param, "code": code}}


def forbidden(*fields: str) -> dict[str, Any]:
    """How FastAPI refuses fields that it does not know."""
    found = [{"type": "extra_forbidden", "loc": ["body", one], "msg": "no", "input": ROW} for one in fields]
    return {"detail": found}


def listed(shares: Mapping[str, float], chosen: str) -> dict[str, Any]:
    """Log-probabilities of an answer of one token."""
    top = [_token(text, share) for text, share in shares.items()]
    return {"content": [{**_token(chosen, shares[chosen]), "top_logprobs": top}]}


def _token(text: str, share: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(share), "bytes": list(text.encode())}


@dataclass
class Server:
    """A `Script`: answers by the messages, held to what it is asked for by the fields in `heeds`.

    Requests with a field in `refuses` are answered with `refusal` (a status and a body; a body of None names
    a field as OpenAI does); those with `bad` in their last message get a 400 that gives no reason.
    """

    heeds: frozenset[str] = frozenset({"structured_outputs", "response_format", "logprobs"})
    refuses: frozenset[str] = frozenset()
    refusal: tuple[int, Any] = (400, None)
    bad: str = "\0"
    free_text: str = "Well, I would say it is a."
    tokens: int = 3
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def __call__(self, asked: Asked) -> bytes:
        body = asked.json
        self.asked.append(body)
        if self.bad in body["messages"][-1]["content"]:
            return http(400, {"error": {"message": f"{ROW} {KEY}", "type": "invalid_request_error"}})
        if refused := sorted(self.refuses & body.keys()):
            status, said = self.refusal
            return http(status, said or error("unsupported_parameter", "invalid_request_error", refused[0]))
        return http(200, self._answer(body))

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()
        usage = {"prompt_tokens": 12, "completion_tokens": self.tokens, "total_tokens": 12 + self.tokens}
        form = body.get("response_format", {}) if "response_format" in self.heeds else {}
        labels = self._labels(body)
        if labels:
            label = labels[digest[0] % len(labels)]
            document = completion(label, usage=usage)
            if "logprobs" in self.heeds and body.get("logprobs"):
                rest = 0.25 / (len(labels) - 1)
                shares = {one: 0.75 if one == label else rest for one in labels}
                document["choices"][0]["logprobs"] = listed(shares, label)
        elif "json_schema" in form:
            schema = form["json_schema"]["schema"]["properties"]
            enums = {name: rule.get("enum") for name, rule in schema.items()}
            values = {name: one[digest[0] % len(one)] if one else digest.hex() for name, one in enums.items()}
            document = completion(json.dumps(values), usage=usage)
        elif form:
            document = completion(json.dumps({"answer": digest.hex()}), usage=usage)
        else:
            document = completion(self.free_text + digest.hex(), usage=usage)
        return document

    def _labels(self, body: Mapping[str, Any]) -> Sequence[str]:
        if "structured_outputs" in self.heeds and "structured_outputs" in body:
            given: Sequence[str] = body["structured_outputs"]["choice"]
        elif "guided_choice" in self.heeds:
            given = body.get("guided_choice", ())
        else:
            given = ()
        return given
