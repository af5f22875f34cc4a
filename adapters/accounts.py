"""What the servers of an address want for their answers: a key from the environment, and money.

OPENAI_API_KEY goes to api.openai.com, GEMINI_API_KEY (or GOOGLE_API_KEY) to the Gemini API, and both nowhere
else; any other server gets the key in the variable that `api_key_env` names, or none. For Vertex AI the SDK
finds project, location and credentials in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from adapters.addresses import GEMINI_HOST, OPENAI_HOST, RemoteAddress
from adapters.prices import price_of
from engine.config import ModelConfig, PriceConfig
from engine.errors import ModelError
from engine.ports import FREE, Price

_KEYS = {OPENAI_HOST: ("OPENAI_API_KEY",), GEMINI_HOST: ("GEMINI_API_KEY", "GOOGLE_API_KEY")}
_VERTEX = ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI")


def on_vertex(address: RemoteAddress) -> bool:
    """Whether the environment sends Google's models to Vertex AI, read as the SDK reads it."""
    told = next((os.environ[name] for name in _VERTEX if name in os.environ), "")
    return GEMINI_HOST in address.hosts and told.lower() in ("true", "1")


def _key_variables(address: RemoteAddress, settings: ModelConfig) -> tuple[str, ...]:
    """The environment variables that may hold the key; the first that is set counts."""
    if settings.api_key_env is not None:
        return (settings.api_key_env,)
    if on_vertex(address):
        return ()
    return next((names for host, names in _KEYS.items() if host in address.hosts), ())


def key_of(address: RemoteAddress, settings: ModelConfig) -> str | None:
    """The key for the servers of an address, None where they get none. Raises `ModelError` without it."""
    variables = _key_variables(address, settings)
    if not variables:
        return None
    for variable in variables:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(
                f"{settings.model}: what the environment variable {variable} holds cannot be a key"
            )
        if key:
            return key
    raise ModelError(
        f"{settings.model}: its key is missing: set the environment variable {' or '.join(variables)}"
    )


def key_hint_of(address: RemoteAddress, settings: ModelConfig) -> str:
    """What an error says about a key that is missing or refused."""
    variables = _key_variables(address, settings)
    if variables:
        return f"check the environment variable {' or '.join(variables)}"
    if on_vertex(address):
        return (
            "set GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION, and log in with `gcloud auth "
            "application-default login`"
        )
    return "name the environment variable that holds the key in api_key_env"


def known_price(address: RemoteAddress, prices: Mapping[str, PriceConfig]) -> Price | None:
    """What a token costs: that of its name, nothing on this machine; None where that is unknown."""
    # a server on this machine may hand on to a provider: a name that has a price keeps it
    return price_of(address.name, prices) or (FREE if address.loopback else None)
