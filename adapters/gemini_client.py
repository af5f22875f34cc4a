"""google-genai's client: how it is opened, and what its errors mean."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

import aiohttp
from google import genai
from google.auth.exceptions import GoogleAuthError
from google.genai import errors, types
from google.genai.models import AsyncModels

from adapters.addresses import GEMINI_URL
from adapters.gemini_wire import ApiError, read_error
from adapters.http import transport_error
from adapters.waiting import retry_after_s
from engine.errors import ModelError
from engine.types import DOUBTFUL, NO_RETRY, TRANSIENT, AttemptFailure, Retry, rate_limited

_KEEPALIVE_S = 4.0  # some proxies close a connection that was idle for 5 s

# It warns of two keys in the environment, and names the one that is not taken here.
logging.getLogger("google_genai").setLevel(logging.ERROR)

ReplyT = TypeVar("ReplyT")


@dataclass(frozen=True, slots=True)
class Access:
    """Where Gemini is, and the key for it.

    On Vertex AI the SDK finds project, location and credentials in the environment, unless a key is given.
    `key_hint` is what an error says about credentials that are refused.
    """

    url: str = GEMINI_URL
    vertex: bool = False
    api_key: str | None = field(default=None, repr=False)
    key_hint: str = "check the key"

    @property
    def place(self) -> str:
        """Where requests go, for names and errors."""
        return "vertex" if self.vertex else self.url


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: the SDK loads the certificates three times for each, which takes 0.1 s or more."""
    return ssl.create_default_context()


class GeminiClient:
    """google-genai's client on an HTTP session of ours, and what its errors mean.

    It retries nothing: with `retry_options` of one attempt, the SDK leaves out the wait and second try that
    it otherwise makes when a connection fails. What makes the model unusable raises `ModelError` until it
    has answered (`proven`, which the adapter sets); later the same is an `AttemptFailure`. It belongs to one
    event loop at a time; nothing is opened before the first attempt. No text of a server or a row reaches an
    error, nor does an error carry what the SDK raised: that holds the response, and with it the key.
    """

    def __init__(self, what: str, access: Access) -> None:
        self.proven = False
        self._what = what
        self._access = access
        self._sdk: genai.Client | None = None
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(self, ask: Callable[[AsyncModels], Awaitable[ReplyT]]) -> ReplyT | AttemptFailure:
        """One attempt: what the SDK gives, or why there is nothing. Raises `ModelError` as the class says."""
        sdk = self._sdk
        if sdk is None or self._loop is not asyncio.get_running_loop():
            sdk = await self._open()
        try:
            return await ask(sdk.aio.models)
        except (errors.APIError, aiohttp.ClientError, OSError, GoogleAuthError) as exc:
            failed: Exception = exc
        except (ValueError, TypeError, AttributeError, LookupError):
            # the SDK's parsing of a body that is not what it should be (its own errors are ValueErrors)
            return AttemptFailure("malformed", "the response cannot be read", DOUBTFUL, unknown_bill=True)
        return self._failure(failed)

    def check_page(self) -> None:
        """A web page came for an answer: raises `ModelError` from what has not answered yet."""
        if not self.proven:
            raise ModelError(f"{self._what}: {self._access.place} answers with a web page: check the address")

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless; the next attempt opens new ones."""
        sdk, self._sdk = self._sdk, None
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if sdk is not None:
            sdk.close()
            await sdk.aio.aclose()

    async def _open(self) -> genai.Client:
        if self._sdk is not None:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(f"{self._what} is in use on another event loop")
            await self.aclose()
        self._loop = asyncio.get_running_loop()
        access = self._access
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=300),
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        options = types.HttpOptions(
            aiohttp_client=self._session,
            retry_options=types.HttpRetryOptions(attempts=1),
            async_client_args={"allow_redirects": False},  # a redirect would take the key along
        )
        if not access.vertex:  # there the SDK chooses these, and may bring a client certificate
            tls = _tls()
            options.base_url, options.api_version = access.url, "v1beta"
            options.client_args = {"verify": tls}
            options.async_client_args = {"allow_redirects": False, "verify": tls, "ssl": tls}
        # without a key the SDK would take one from the environment, and send it to any server
        key = access.api_key if access.vertex else access.api_key or "none"
        problem = ""
        try:
            self._sdk = genai.Client(vertexai=access.vertex, api_key=key, http_options=options)
        except (GoogleAuthError, ValueError):
            problem = (
                f"{self._what}: no way to {access.place} was found in the environment; {access.key_hint}"
            )
        if self._sdk is None:
            await self.aclose()
            raise ModelError(problem)
        return self._sdk

    # --- verdicts ---------------------------------------------------------------------------------

    def _failure(self, exc: Exception) -> AttemptFailure:
        if isinstance(exc, errors.APIError):
            headers = getattr(exc.response, "headers", None) or {}
            error = read_error(exc.details)
            if error.after_s is None:
                error = replace(error, after_s=retry_after_s(headers))
            return self._refusal(exc.code, error)
        if isinstance(exc, aiohttp.ClientError | OSError):
            what, hint, unreachable = transport_error(exc)
            if hint and not self.proven:
                raise ModelError(f"{self._what}: {self._access.place}: {what}; {hint}")
            if unreachable:
                return AttemptFailure("unreachable", what, TRANSIENT)
            return AttemptFailure("disconnected", what, TRANSIENT, unknown_bill=True)
        if not self.proven:
            raise ModelError(f"{self._what}: Google Cloud gives no access token; {self._access.key_hint}")
        return AttemptFailure("no_token", "Google Cloud gave no access token", TRANSIENT)

    def _refusal(self, status: int, error: ApiError) -> AttemptFailure:
        """What a status other than 200 means. Raises `ModelError` for what no retry can mend."""
        detail = f"HTTP {status}{error.word and f' ({error.word})'}"
        at = f"{self._what}: {self._access.place} answers {detail}"
        if status == 402:
            raise ModelError(
                f"{at}: the account has nothing left to spend; pay in and run the same command again"
            )
        if status == 429 and error.per_day:
            raise ModelError(
                f"{at}: the quota of the day is used up; run the same command again tomorrow, or after the "
                "quota is raised (what is answered is saved)"
            )
        if not self.proven:
            self._check_usable(status, error, at)
        if status in (429, 503):
            return AttemptFailure("rate_limited", detail, rate_limited(error.after_s))
        if status == 408 or status >= 500:
            return AttemptFailure(f"http_{status}", detail, Retry("transient", error.after_s))
        if status == 400 and error.status == "INVALID_ARGUMENT" and not error.bad_key:
            return AttemptFailure("refused", detail, NO_RETRY)
        return AttemptFailure(f"http_{status}", detail, DOUBTFUL)

    def _check_usable(self, status: int, error: ApiError, at: str) -> None:
        if status in (401, 403) or error.bad_key:
            raise ModelError(f"{at}: it does not accept the key; {self._access.key_hint}")
        if status == 404:
            raise ModelError(
                f"{at}: there is no such model, or it is not offered there; check its name and, if one is "
                "given, the address (without /v1beta at its end)"
            )
        if error.status == "FAILED_PRECONDITION":
            raise ModelError(
                f"{at}: it is not available to this account; check its billing, and the region you are in"
            )
        if status < 400:
            raise ModelError(f"{at}, no data: check the address")
