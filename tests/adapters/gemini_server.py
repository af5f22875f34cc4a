"""Gemini's JSON for tests, and a server that answers what it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.types import Usage
from tests.adapters.responding import Asked, http

KEY = "AIza-planted-2718281828"
ROW = "unmentionable-row-text-here"
TOLD = {"promptTokenCount": 12, "candidatesTokenCount": 3, "totalTokenCount": 15}
USAGE = Usage(12, 3, 0, 0)


def generated(
    text: object = "spam", finish: object = "STOP", usage: object = None, **candidate: object
) -> dict[str, Any]:
    """A response of generateContent."""
    parts = [] if text is None else [{"text": text}]
    one = {"content": {"parts": parts, "role": "model"}, "finishReason": finish, "index": 0, **candidate}
    return {"candidates": [one], "usageMetadata": TOLD if usage is None else usage, "modelVersion": "m"}


def problem(code: int, status: str = "", *details: Mapping[str, Any]) -> dict[str, Any]:
    """An error of Google's, whose message quotes the row and the key, as messages do."""
    named = [{**detail, "@type": f"type.googleapis.com/google.rpc.{detail['@type']}"} for detail in details]
    return {"error": {"code": code, "message": f"bad: {ROW} {KEY}", "status": status, "details": named}}


def reason(word: str) -> dict[str, Any]:
    return {"@type": "ErrorInfo", "reason": word, "domain": "googleapis.com"}


def quota(*ids: str) -> dict[str, Any]:
    metric = "generativelanguage.googleapis.com/generate_content_requests"
    return {"@type": "QuotaFailure", "violations": [{"quotaMetric": metric, "quotaId": one} for one in ids]}


def delay(after: object) -> dict[str, Any]:
    return {"@type": "RetryInfo", "retryDelay": after}


PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"


@dataclass
class Server:
    """A `Script`: answers by the contents, held to an enum and to JSON; `bad` contents are refused."""

    bad: str = "\0"

    def __call__(self, asked: Asked) -> bytes:
        contents, options = asked.json["contents"], asked.json["generationConfig"]
        if self.bad in json.dumps(contents):
            return http(400, problem(400, "INVALID_ARGUMENT"))
        digest = hashlib.sha256(json.dumps(contents).encode()).digest()
        labels = options.get("responseSchema", {}).get("enum")
        text = labels[digest[0] % len(labels)] if labels else json.dumps({"answer": digest.hex()})
        usage = {
            "promptTokenCount": 600,
            "cachedContentTokenCount": 256,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 608,
        }
        return http(200, generated(text, usage=usage))
