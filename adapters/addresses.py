"""Addresses of models: `SCHEME:NAME@http://host:port/v1[,http://…]` for those behind a server, and
`answer-files:NAME@DIR`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

from engine.errors import UnknownModelError

OPENAI_HOST = "api.openai.com"
OPENAI_URL = f"https://{OPENAI_HOST}/v1"
GEMINI_HOST = "generativelanguage.googleapis.com"
GEMINI_URL = f"https://{GEMINI_HOST}"

_FORMS = {"gemini": "gemini:NAME@http://host:port"}
_GEMINI_NAME = re.compile(r"\w[\w-]*(?:[./]\w[\w-]*)*", re.ASCII)
_WITH_URL = re.compile(r"(?P<name>.*?)@(?P<urls>https?://.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """A model's name on its server, and the base URLs of its servers, without a slash at the end."""

    name: str
    urls: tuple[str, ...]

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(urlsplit(url).hostname or "" for url in self.urls)

    @property
    def loopback(self) -> bool:
        """Whether every server runs on this machine."""
        return all(map(_is_loopback, self.hosts))


@dataclass(frozen=True, slots=True)
class FolderAddress:
    """A folder of requests and answers, as it was written, and the model's name in them, if any."""

    model: str | None
    folder: str

    @property
    def name(self) -> str:
        """What cache keys call it: the folder as it was written, so that a whole project can be moved."""
        return f"answer-files:{'' if self.model is None else f'{self.model}@'}{self.folder}"


def parse_answer_files(address: str) -> FolderAddress:
    """`answer-files:DIR` or `answer-files:NAME@DIR`, divided at the last @.

    Raises `UnknownModelError` with one line that says what is wrong.
    """
    _, _, rest = address.partition(":")
    model, at, folder = rest.rpartition("@")
    printable = all(char.isprintable() for char in rest)
    if not folder or folder != folder.strip() or not printable or "://" in rest or folder.startswith("~"):
        shown = rest.rpartition("@")[2] if printable else ""
        raise UnknownModelError(
            f"answer-files: {shown!r} is no folder; write answer-files:DIR, or answer-files:NAME@DIR with "
            "the model's name, where DIR is a path from the configuration's folder"
        )
    if at and (not model or model != model.strip()):
        raise UnknownModelError(
            "answer-files: the model's name is missing before @; write answer-files:NAME@DIR"
        )
    return FolderAddress(model or None, str(PurePath(folder)))


def parse_openai(address: str) -> RemoteAddress:
    """`openai:NAME`, which is at api.openai.com, or `openai:NAME@URL[,URL…]`; see `parse_remote`.

    api.openai.com goes with no other server and over https only: the key for it must get nowhere else.
    """
    parsed = parse_remote(address, default_url=OPENAI_URL)
    _keep_apart(f"openai:{parsed.name}", parsed, OPENAI_HOST)
    return parsed


def parse_vllm(address: str) -> RemoteAddress:
    """`vllm:NAME@URL[,URL…]`: a vLLM server, or replicas that serve the same model; see `parse_remote`."""
    parsed = parse_remote(address)
    if OPENAI_HOST in parsed.hosts:
        raise UnknownModelError(
            f"vllm:{parsed.name}: {OPENAI_HOST} is no vLLM server; write openai:{parsed.name}"
        )
    return parsed


def parse_gemini(address: str) -> RemoteAddress:
    """`gemini:NAME`, which is at Google, or `gemini:NAME@URL` for one server that speaks Gemini's API.

    Raises `UnknownModelError` as `parse_remote` does; Google's own server is reached over https only.
    """
    parsed = parse_remote(address, default_url=GEMINI_URL)
    model = f"gemini:{parsed.name}"
    if not _GEMINI_NAME.fullmatch(parsed.name):
        raise UnknownModelError(f"{model}: not a model's name; write one such as gemini:gemini-3.8-flash")
    _keep_apart(model, parsed, GEMINI_HOST)
    if len(parsed.urls) > 1:
        raise UnknownModelError(f"{model}: takes one server, not {len(parsed.urls)}")
    return parsed


def _keep_apart(model: str, address: RemoteAddress, host: str) -> None:
    """Raise `UnknownModelError` where the provider's host is mixed with others, or reached without TLS."""
    alone = len(address.hosts) == 1 and all(url.startswith("https:") for url in address.urls)
    if host in address.hosts and not alone:
        raise UnknownModelError(
            f"{model}: {host} goes with no other server and is reached by https:// only; write {model}"
        )


def parse_remote(address: str, *, default_url: str | None = None) -> RemoteAddress:
    """Take `SCHEME:NAME@URL[,URL…]` apart; without a URL, `default_url` stands for it.

    Raises `UnknownModelError` with one line that says what is wrong. Its text repeats no password.
    """
    scheme, _, rest = address.partition(":")
    match = _WITH_URL.fullmatch(rest)
    name, urls = (match["name"], match["urls"].split(",")) if match else (rest, [])
    shown = f"{scheme}:{name.partition('@')[0]}"  # what follows may hold a password
    if not urls:
        if default_url is None or "@" in rest or "://" in rest:
            raise UnknownModelError(f"{shown}: after the model's name goes @ and its server, {_form(scheme)}")
        urls = [default_url]
    if not name or name != name.strip() or any(not c.isprintable() for c in name):
        raise UnknownModelError(f"{shown}: the model's name is missing: {_form(scheme)}")
    return RemoteAddress(name, tuple(_base_url(shown, url) for url in urls))


def _form(scheme: str) -> str:
    return _FORMS.get(scheme, f"{scheme}:NAME@http://host:port/v1")


def _base_url(shown: str, url: str) -> str:
    if "@" in url:  # anywhere: a password may hold a slash
        raise UnknownModelError(
            f"{shown}: a user or password in an address would end up in files and logs; name the environment "
            "variable that holds the key in api_key_env"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnknownModelError(
            f"{shown}: a server's address is not a URL such as http://host:8000/v1"
        ) from None
    plain = url.isascii() and url.isprintable() and not re.search(r"[\s,;\"'<>\\^`{|}]", url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        raise UnknownModelError(
            f"{shown}: {url!r} is not the address of a server; write http://host:port/v1, several with commas"
        )
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise UnknownModelError(f"{shown}: {url!r}: leave out what follows the path (from ? or #)")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
