"""Answers and vectors as bytes, the way the journal keeps them.

The first byte is the format's version. Answers follow as JSON; vectors as their usage in JSON, a zero byte
and float32 little-endian numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from engine.errors import CorruptStoreError
from engine.types import Answer, Embedding, FinishReason, Usage

_V1 = b"\x01"
_FINISH = {reason.value: reason for reason in FinishReason}


def encode_answer(answer: Answer) -> bytes:
    """The payload of an answer. `decode_answer` gives an equal one back."""
    fields: dict[str, Any] = {
        "t": answer.text,
        "u": _usage_fields(answer.usage),
        "f": answer.finish_reason.value,
    }
    if answer.label_logprobs is not None:
        fields["p"] = dict(answer.label_logprobs)
    if answer.cut_characters:
        fields["c"] = answer.cut_characters
    try:
        return _V1 + orjson.dumps(fields)
    except orjson.JSONEncodeError:
        # a model may emit half of a surrogate pair, which UTF-8 cannot carry: keep the rest of the answer
        fields["t"] = answer.text.encode("utf-8", "replace").decode()
        return _V1 + orjson.dumps(fields)


def decode_answer(payload: bytes) -> Answer:
    """Raises `CorruptStoreError` where the payload is none that this version writes."""
    try:
        _check_version(payload)
        fields = orjson.loads(payload[1:])
        finish = _FINISH[fields["f"]]
        return Answer(fields["t"], _usage(*fields["u"]), finish, fields.get("p"), fields.get("c", 0))
    except (ValueError, KeyError, TypeError) as exc:
        raise _corrupt("answer") from exc


def encode_embedding(embedding: Embedding) -> bytes:
    """The payload of a vector. `decode_embedding` gives the same bits back."""
    vector = np.ascontiguousarray(embedding.vector, dtype="<f4")
    return _V1 + orjson.dumps(_usage_fields(embedding.usage)) + b"\x00" + vector.tobytes()


def decode_embedding(payload: bytes) -> Embedding:
    """The vector is a read-only float32 array of shape (dim,). Raises `CorruptStoreError`."""
    try:
        _check_version(payload)
        end = payload.index(b"\x00", 1)
        usage = Usage(*orjson.loads(memoryview(payload)[1:end]))
        vector = np.frombuffer(payload, dtype="<f4", offset=end + 1).astype(np.float32, copy=False)
    except (ValueError, TypeError) as exc:
        raise _corrupt("vector") from exc
    return Embedding(vector, usage)


@lru_cache(maxsize=4096)  # short answers to rows of a kind have few different bills
def _usage(
    input_tokens: int, output_tokens: int, thinking_tokens: int, cached_tokens: int | None, estimated: bool
) -> Usage:
    return Usage(input_tokens, output_tokens, thinking_tokens, cached_tokens, estimated)


def _usage_fields(usage: Usage) -> tuple[int, int, int, int | None, bool]:
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.thinking_tokens,
        usage.cached_tokens,
        usage.estimated,
    )


def _check_version(payload: bytes) -> None:
    if payload[:1] != _V1:
        raise ValueError("unknown format")


def _corrupt(what: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"the response cache holds a damaged {what}; move the cache folder away and run again "
        "(its answers will be asked for again)"
    )
