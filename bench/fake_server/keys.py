"""API keys: where requests carry them, and errors that repeat them, as some servers' do."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs

import orjson

from bench.fake_server.protocol import Head
from bench.fake_server.wire import ErrorAnswer


def key_in(head: Head) -> str:
    """The key that a request carries, "" where it carries none.

    OpenAI's is a bearer token, Gemini's stands in a header of its own or, from older clients, in the query.
    """
    scheme, _, token = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return head.headers.get("x-goog-api-key") or parse_qs(head.query).get("key", [""])[0]


def echoing(error: ErrorAnswer, key: str) -> ErrorAnswer:
    """The error with the key in its message, in its structured part and in two headers."""
    document = orjson.loads(error.body)
    told = document["error"]
    told["message"] += f" The key was {key}."
    told["metadata"] = {"key": key}
    told["param"] = told.get("param") or key
    for detail in told.get("details", ()):
        detail["metadata"] = {**detail.get("metadata", {}), "key": key}
    headers = (("WWW-Authenticate", f'Bearer realm="{key}"'), ("X-Request-Key", key))
    return replace(error, body=orjson.dumps(document), headers=(*error.headers, *headers))
