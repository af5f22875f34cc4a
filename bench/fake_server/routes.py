"""Which request is for what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from bench.fake_server.wire import Wire
from bench.fake_server.wire_gemini import GeminiWire
from bench.fake_server.wire_openai import OpenAIWire

OPENAI = OpenAIWire()
GEMINI = GeminiWire()


class Kind(Enum):
    CHAT = "chat"
    EMBED = "embed"
    MODELS = "models"
    SEEN = "seen"
    CONFIGURE = "configure"
    RESET = "reset"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Route:
    """`model` stands in Gemini's paths; OpenAI's requests name theirs in the body."""

    kind: Kind
    wire: Wire
    model: str = ""


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Nothing is here (404), or not for this method (405)."""

    status: int
    wire: Wire


_FIXED = {
    "/v1/chat/completions": ("POST", Kind.CHAT),
    "/v1/embeddings": ("POST", Kind.EMBED),
    "/v1/models": ("GET", Kind.MODELS),
    "/fake/seen": ("GET", Kind.SEEN),
    "/fake/configure": ("POST", Kind.CONFIGURE),
    "/fake/reset": ("POST", Kind.RESET),
    "/fake/shutdown": ("POST", Kind.SHUTDOWN),
}
_GEMINI = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):(generateContent|batchEmbedContents|embedContent)")


@lru_cache(maxsize=1024)
def route_of(method: str, path: str) -> Route | NoRoute:
    """What a method and path mean."""
    if match := _GEMINI.fullmatch(path):
        if method != "POST":
            return NoRoute(405, GEMINI)
        return Route(Kind.CHAT if match[2] == "generateContent" else Kind.EMBED, GEMINI, match[1])
    if path not in _FIXED:
        return NoRoute(404, GEMINI if path.startswith("/v1beta/") else OPENAI)
    wanted, kind = _FIXED[path]
    return Route(kind, OPENAI) if method == wanted else NoRoute(405, OPENAI)
