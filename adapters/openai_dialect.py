"""What a server makes of the API's optional fields, learnt from its answers: many are ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from adapters.openai_errors import ApiError
from adapters.openai_wire import ChoicesAs, Form, SchemaAs
from engine.errors import ModelError
from engine.types import TRANSIENT, Answer, AttemptFailure, ChatOutcome, FinishReason, Request

_CHOICES: tuple[ChoicesAs, ...] = ("structured_outputs", "json_schema", "guided_choice", "text")
_SCHEMAS: tuple[SchemaAs, ...] = ("json_schema", "json_object", "text")
_NOT_KNOWN = {"unsupported_parameter", "unknown_parameter", "extra_forbidden"}
_NO_REASON = {"", "invalid_request_error", "BadRequestError"}
_ASIDE = 32  # tokens of a chat template that some servers count as output

FormT = TypeVar("FormT")


class Dialect:
    """How requests are put to the servers of one model; all of them are taken to be alike.

    - A field that a server refuses by name is left out from then on, or put in another way.
    - A refusal that gives no reason, from a server that has not taken a field yet, may be about that field:
      it is left out too, log-probabilities first. Where that does not help either, the request itself was at
      fault, and everything is as before.
    - An answer that is none of a request's choices tells that the server does not hold it to them: choices
      are then asked for in another way, at last in none.

    Requests that this has cost an answer are to be asked again (`transient`). `remarks` tell the user what
    may spoil the result, each once.
    """

    def __init__(self, model: str, form: Form) -> None:
        """`model` names it in remarks and errors; `form` is what is tried first."""
        self.form = form
        self.remarks: list[str] = []
        self._model = model
        self._taken: set[object] = set()  # what some server has answered usably with
        self._before_doubt: Form | None = None

    # --- refusals ---------------------------------------------------------------------------------

    def refused(
        self, asked: Form, request: Request, error: ApiError | None, status: int
    ) -> AttemptFailure | None:
        """What follows from a refusal of a request in the form `asked`; None: the form is not at fault.

        Raises `ModelError` where the server refuses what the user has asked for.
        """
        named = set() if error is None else {field.partition(".")[0] for field in error.fields}
        if "reasoning_effort" in named and asked.effort is not None:
            raise ModelError(
                f"{self._model}: does not take thinking = {asked.effort!r} (it refuses reasoning_effort): "
                "choose another level, or leave out `thinking`"
            )
        without = _without(named, asked, request, unknown=error is not None and error.code in _NOT_KNOWN)
        if without != asked:
            self._change(asked, without)
            return _again(status, error)
        if not _unexplained(status, error, named):
            return None
        if asked != self.form:  # a doubt has changed it meanwhile
            return _again(status, error)
        doubted = self._doubted(request)
        if doubted is not None:
            self._before_doubt = self._before_doubt or self.form
            self.form = doubted
            return _again(status, error)
        if self._before_doubt is not None:
            self.form, self._before_doubt = self._before_doubt, None
        return None

    def _doubted(self, request: Request) -> Form | None:
        """The form without what has not been taken by any server so far; None: there is no such thing."""
        form = self.form
        if request.choices:
            if form.logprobs and "logprobs" not in self._taken:
                return replace(form, logprobs=False)
            if form.choices != "text" and form.choices not in self._taken:
                return replace(form, choices=_next(_CHOICES, form.choices))
        elif request.schema is None or form.schema == "text":
            return None
        elif ("schema", form.schema) not in self._taken:
            return replace(form, schema=_next(_SCHEMAS, form.schema))
        return None

    def _change(self, asked: Form, wanted: Form) -> None:
        """Change what differs between these two, unless it has changed since."""
        fields = ("choices", "schema", "temperature", "seed", "logprobs", "bound", "cache_salt")
        changes = {
            name: getattr(wanted, name)
            for name in fields
            if getattr(wanted, name) != getattr(asked, name) == getattr(self.form, name)
        }
        self.form = replace(self.form, **changes)

    # --- answers ----------------------------------------------------------------------------------

    def answered(self, asked: Form, request: Request, answer: Answer, *, thought: bool) -> ChatOutcome:
        """What an answer is worth, with what it tells of the server; `thought`: thinking came ahead of it."""
        self._taken |= _used(asked, request)
        if asked == self._before_doubt:  # the doubt was wrong
            self.form = asked
        if asked == self.form:
            self._before_doubt = None
        if thought and self.form.logprobs:  # each token of a thought would come with its alternatives
            self.form = replace(self.form, logprobs=False)
        self._check_bound(asked, request, answer)
        if answer.finish_reason is not FinishReason.STOP:
            return answer
        if request.schema is not None:
            if asked.schema == "text" or "{" not in answer.text:
                self._remark(
                    "the server does not hold answers to a JSON schema: those that do not follow it are "
                    "asked for once more, and billed twice"
                )
            return answer
        if not request.choices:
            return answer
        if asked.choices == "text":
            self._remark(
                "the server knows no way to hold answers to the labels: what is no label counts as malformed"
            )
        elif answer.text.strip() not in request.choices:
            self._change(asked, replace(asked, choices=_next(_CHOICES, asked.choices)))
            detail = f"the server does not hold answers to the choices it is given as {asked.choices}"
            return AttemptFailure("unconstrained", detail, TRANSIENT, answer.usage)
        return answer

    def _check_bound(self, asked: Form, request: Request, answer: Answer) -> None:
        most = asked.most_output_tokens(request.max_output_tokens, request.choices)
        if answer.usage.estimated or answer.usage.output_tokens <= 1.25 * most + _ASIDE:
            return
        self._remark(
            f"an answer had {answer.usage.output_tokens} tokens where {most} at most were asked for: the "
            f"server does not keep to {asked.bound}, so a cap on cost may be passed",
            once=f"does not keep to {asked.bound}",
        )
        self._change(asked, replace(asked, bound="max_tokens"))

    def _remark(self, text: str, *, once: str = "") -> None:
        if not any((once or text) in told for told in self.remarks):
            self.remarks.append(f"{self._model}: {text}")


def _again(status: int, error: ApiError | None) -> AttemptFailure:
    word = "" if error is None else error.word
    detail = f"HTTP {status}{word and f' ({word})'}: to be asked again in another form"
    return AttemptFailure("put_otherwise", detail, TRANSIENT)


def _next(ways: Sequence[FormT], way: FormT) -> FormT:
    return ways[ways.index(way) + 1]


def _used(form: Form, request: Request) -> set[object]:
    """The fields that a request has been sent with, as far as they may be doubted."""
    if request.choices:
        return {form.choices, "logprobs"} if form.logprobs else {form.choices}
    return set() if request.schema is None else {("schema", form.schema)}


def _unexplained(status: int, error: ApiError | None, named: set[str]) -> bool:
    """Whether a refusal may be about any field, for all that it tells."""
    if error is None:
        return status in (400, 422)
    if named or error.code not in _NO_REASON or error.kind not in _NO_REASON:
        return False
    # OpenAI refuses log-probabilities of models that think with 403 and not a word more
    return status in (400, 422) or (status == 403 and bool(error.kind))


def _without(named: Iterable[str], asked: Form, request: Request, *, unknown: bool) -> Form:
    """The form without the fields that a server refuses by name.

    `unknown`: it does not know them; without that a name alone may mean that the value is not valid.
    """
    form = asked
    for field in named:
        match field:
            case "temperature":
                form = replace(form, temperature=False)
            case "seed":
                form = replace(form, seed=False)
            case "logprobs" | "top_logprobs":
                form = replace(form, logprobs=False)
            case "cache_salt":
                form = replace(form, cache_salt=None)
            case "max_completion_tokens" if unknown:
                form = replace(form, bound="max_tokens")
            case "structured_outputs" | "guided_choice" if request.choices and asked.choices == field:
                form = replace(form, choices=_next(_CHOICES, asked.choices))
            case "response_format" if request.choices and asked.choices == "json_schema":
                form = replace(form, choices=_next(_CHOICES, asked.choices))
            case "response_format" if request.schema is not None and asked.schema != "text":
                form = replace(form, schema=_next(_SCHEMAS, asked.schema))
    return form
