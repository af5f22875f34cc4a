"""The composition root: model addresses to models. The only place that knows which adapter a scheme means.

An address is `SCHEME:REST`. `local:` has no rest: it names the keyword-rule models of `adapters.local`,
which need no key, account or GPU. Their teacher and embedder are fitted on the training rows, into
`local.json` of the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.local import FIT_FILE, LocalEmbedder, LocalStudent, LocalTeacher, fit_local
from engine.config import ChatRole, Config
from engine.errors import UnknownModelError
from engine.ports import ChatModel, Embedder, Models
from engine.store import RunDirectory
from engine.types import Sample

SCHEMES = {"local": "keyword-rule models that need no key, account or GPU (address: local:)"}


def scheme_of(address: str) -> str:
    """The scheme of a model address. Raises `UnknownModelError`, listing the known ones, for any other."""
    scheme, colon, rest = address.partition(":")
    if not colon or scheme not in SCHEMES:
        known = "; ".join(f"{name}: {what}" for name, what in SCHEMES.items())
        raise UnknownModelError(f"{address!r} is not the address of a known kind of model; known: {known}")
    if scheme == "local" and rest:
        raise UnknownModelError(f"{address!r}: the local models have no variants; write 'local:'")
    return scheme


def is_local(address: str) -> bool:
    """Whether an address names a local keyword-rule model."""
    return scheme_of(address) == "local"


def check_addresses(config: Config) -> None:
    """Raise `UnknownModelError` for an address that no adapter knows; nothing is opened."""
    roles: tuple[ChatRole, ...] = ("teacher", "synthesizer", "resolver", "student")
    for address in (*(config.role(role).model for role in roles), config.embedder.model):
        scheme_of(address)


def open_student(address: str) -> ChatModel:
    """The student at `address`. Raises `UnknownModelError` for an address that no adapter knows."""
    scheme_of(address)
    return LocalStudent()


def open_models(config: Config, train: Sequence[Sample], run: RunDirectory) -> Models:
    """All models of a run, for `engine.compile_prompt`.

    `train` are the training rows, `run` the locked run directory, where `local.json` goes. Raises
    `UnknownModelError` for an address that no adapter knows, before anything is fitted.
    """
    check_addresses(config)
    fit = fit_local(train, config.labels, config.run.seed, config.embedder.dimensions)
    run.write_bytes(FIT_FILE, fit.document)
    writer: ChatModel = LocalTeacher(fit)
    embedder: Embedder = LocalEmbedder(fit)
    return Models(
        teacher=writer,
        synthesizer=writer,
        resolver=writer,
        embedder=embedder,
        student=open_student(config.student.model),
    )
