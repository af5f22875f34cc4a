"""Answers that do not depend on what is asked."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from bench.fake_server.behaviour import Behaviour
from bench.fake_server.wire import EmbedCall, Wire
from engine.types import Answer, FloatVector, Usage

MODEL = "fake"
_PLACE = "{digest}"
_HOLE = "0" * 16  # as long as a digest in hex


class CannedAnswers:
    """One text for every chat request, and a vector for every text: the same text, the same vector."""

    def __init__(self, behaviour: Behaviour) -> None:
        usage = Usage(
            behaviour.prompt_tokens,
            behaviour.completion_tokens,
            behaviour.thinking_tokens,
            behaviour.cached_tokens,
        )
        text = behaviour.text
        if behaviour.echo == "digest" and _PLACE not in text:
            text = f"{text} {_PLACE}"
        self._echo = behaviour.echo == "digest"
        self._answer = Answer(text, usage)
        self._dimensions = behaviour.dimensions
        self._bodies: dict[Wire, list[bytes]] = {}

    @property
    def usage(self) -> Usage:
        """Tokens of a chat answer."""
        return self._answer.usage

    def chat(self, key: bytes) -> Answer:
        """The answer to the body with this key."""
        if not self._echo:
            return self._answer
        return replace(self._answer, text=self._answer.text.replace(_PLACE, key.hex()))

    def chat_body(self, wire: Wire, key: bytes) -> bytes:
        """The same as JSON, made once for each wire: only the digest is put in."""
        parts = self._bodies.get(wire)
        if parts is None:
            answer = self._answer
            if self._echo:
                answer = replace(answer, text=answer.text.replace(_PLACE, _HOLE))
            body = wire.chat(MODEL, answer, "fake")
            parts = self._bodies[wire] = body.split(_HOLE.encode()) if self._echo else [body]
        return parts[0] if len(parts) == 1 else key.hex().encode().join(parts)

    def embed(self, call: EmbedCall) -> tuple[list[FloatVector], Usage]:
        """Unit vectors (dim,) drawn from each text's hash."""
        size = call.dimensions or self._dimensions
        tokens = sum(len(text) // 4 + 1 for text in call.texts)
        return [_vector(text, size) for text in call.texts], Usage(tokens)


def _vector(text: str, size: int) -> FloatVector:
    seed = hashlib.blake2b(text.encode(), digest_size=8).digest()
    vector = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(size, dtype=np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
