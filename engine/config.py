"""What a configuration says: its tables, checked."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.errors import ConfigError

ChatRole: TypeAlias = Literal["teacher", "synthesizer", "resolver", "student"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
ThinkingLevel: TypeAlias = Literal["minimal", "low", "medium", "high"]
Thinking: TypeAlias = ThinkingLevel | int
"""How much a model may think: a level, or a number of tokens."""
TooLong: TypeAlias = Literal["fail", "cut"]
"""What becomes of a row that is too long for a model's context."""


def can_be_label(label: str) -> bool:
    """Whether a label can stand in a prompt: a line without quotes, angle brackets or surrounding space."""
    return bool(label) and label == label.strip() and not any(c in label for c in "\n\r\t\"'`<>")


def can_be_field(name: str) -> bool:
    """Whether a column's name can stand ahead of its text in a prompt: a line that begins with a letter or
    digit, without quotes, brackets, colons, backslashes or surrounding space.
    """
    plain = name.isprintable() and name == name.strip() and not any(c in name for c in "\"'`<>[]{}:\uff1a\\")
    return plain and name[:1].isalnum()


def field_names_problem(names: Sequence[str]) -> str:
    """Why columns cannot be the fields of one text; "" where they can. A single one is not named there."""
    if len(names) < 2:
        return ""
    for name in names:
        if names.count(name) > 1:
            return f"{name!r} is listed twice"
        if not can_be_field(name):
            return (
                f"{name!r} cannot name a field in a prompt: rename the column to a line that begins with a "
                "letter or digit, without quotes, brackets, colons or backslashes"
            )
    return ""


PAPER_EPS, PAPER_MIN_SAMPLES = 0.4, 6
LEAST_CALIBRATED = 3
"""A calibrated clustering asks for at least so many rules to make a core."""


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say after a word that is not among those that are `known`."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class TaskConfig(_Table):
    """What is decided, and which columns say so."""

    name: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Names the run: its folder is `runs/NAME`. Letters, digits, `.`, `_` and `-`.",
    )
    description: str = Field(min_length=1, description="What is decided, in your words; part of the prompt.")
    policy: Path | None = Field(
        None, description="The written policy, a text file, for teacher, synthesizer and resolver."
    )
    labels: dict[str, str] = Field(
        description='All labels: a list, or a table of `label = "what it means"` (part of the prompt).'
    )
    text: str | tuple[str, ...] = Field(
        "text",
        description='Column with the text to classify; or several, `["premise", "hypothesis"]`, that make up '
        "one text, each under its name, in this order. All but one of several may be empty or null.",
    )
    label: str = Field("label", description="Column with the true label, one of `labels`.")
    id: str | None = Field(None, description="Column with a unique id; unset: ids are hashes of the content.")

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
            raise ValueError('write the name of a column, or a list of names: ["premise", "hypothesis"]')
        if problem := field_names_problem(names):
            raise ValueError(problem)
        # a list of one is that one: runs and caches do not tell the two apart
        return names[0] if len(names) == 1 else tuple(names)

    @field_validator("labels", mode="before")
    @classmethod
    def _labels(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not all(isinstance(label, str) for label in value):
                raise ValueError("every label is a text: write it in quotes")
            if len(set(value)) != len(value):
                raise ValueError("a label is listed twice")
            return dict.fromkeys(value, "")
        return value

    @model_validator(mode="after")
    def _enough_labels(self) -> TaskConfig:
        if len(self.labels) < 2:
            raise ValueError("labels: at least two labels are needed, there is nothing to decide")
        for label in self.labels:
            if not can_be_label(label):
                raise ValueError(
                    f"labels: {label!r} cannot be a label: use a non-empty line without quotes, "
                    "angle brackets or surrounding space"
                )
        return self


class DataConfig(_Table):
    """Where the labelled rows are, and how they are divided: `file` with `split` or `fractions`, or files for
    each split.
    """

    file: tuple[str, ...] = Field(
        (),
        description="All rows, Parquet, CSV or NDJSON: a path, a list of paths or a glob.",
    )
    split: str | None = Field(None, description="Column that says train, validation or test for each row.")
    fractions: tuple[float, float, float] | None = Field(
        None,
        description="Shares of train, validation and test, with sum 1: rows are divided at random, with "
        "`run.seed`, each label in the same shares.",
    )
    train: tuple[str, ...] = Field(
        (), description="Instead of `file`: the training rows, a path, a list of paths or a glob."
    )
    validation: tuple[str, ...] = Field((), description="Likewise the validation rows; needed with `train`.")
    test: tuple[str, ...] = Field(
        (), description="Likewise the test rows, for the final verdict; without them it stays provisional."
    )
    max_bad_share: Share = Field(
        0.05,
        description="Rows that cannot be used are set aside; more than this share of them stops the job.",
    )

    @field_validator("file", "train", "validation", "test", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        own_files = bool(self.train or self.validation or self.test)
        if own_files == bool(self.file):
            raise ValueError("give either `file`, or `train` and `validation` (and `test`)")
        if own_files:
            if not (self.train and self.validation):
                raise ValueError("`train` and `validation` are both needed (`test` is for the verdict)")
            if self.split is not None or self.fractions is not None:
                raise ValueError("`split` and `fractions` go with `file`, not with files for each split")
        elif (self.split is None) == (self.fractions is None):
            raise ValueError("say how rows are divided: either `split` (a column) or `fractions`")
        if self.fractions is not None:
            if not math.isclose(sum(self.fractions), 1.0, abs_tol=1e-6):
                raise ValueError(f"fractions must sum to 1, these sum to {sum(self.fractions):g}")
            if min(self.fractions) < 0 or min(self.fractions[:2]) == 0:
                raise ValueError("train and validation both need a share above 0")
        return self


class ModelConfig(_Table):
    """A model's address and the limits it is asked under."""

    model: str = Field(
        "local:",
        min_length=1,
        description="The model's address. `local:` needs no key, account or GPU; "
        "`vllm:NAME@http://host:port/v1` is a model behind a vLLM server (replicas with commas; not for "
        "[embedder]); `vllm-offline:PATH` is one that vLLM runs in this process, settings of its engine "
        "behind it as in `vllm-offline:PATH?max_model_len=8192` (not for [embedder]); `openai:NAME` is a "
        "model of api.openai.com, `openai:NAME@http://host:port/v1` one of another server with its API "
        "(several with commas); `gemini:NAME` is a model of Google's Gemini API, or of Vertex AI where "
        "`GOOGLE_GENAI_USE_VERTEXAI` is `true`; `answer-files:DIR` or `answer-files:NAME@DIR` writes "
        "requests into the folder DIR in OpenAI's batch format and reads answers from `answers-*.jsonl` "
        "there (NAME stands in the requests as their model: OpenAI wants one, `vllm run-batch` does not). "
        "Not for [embedder].",
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="Requests sent in any minute, at most; unset: no limit."
    )
    tokens_per_minute: int | None = Field(
        None, gt=0, description="Input and output tokens in any minute, at most; unset: no limit."
    )
    concurrency: int | None = Field(
        None,
        gt=0,
        description="Requests in flight at most; unset: 64, one batch of an in-process model, or 1,024 for "
        "each server of a `vllm:` address, of which as many are used as keep its batch full.",
    )
    timeout_s: float = Field(
        300.0, gt=0, description="Seconds after which one attempt over the network is given up and repeated."
    )
    api_key_env: str | None = Field(
        None,
        description="Name of the environment variable with the key for the model's server; unset: "
        "`OPENAI_API_KEY` for api.openai.com, `GEMINI_API_KEY` or `GOOGLE_API_KEY` for the Gemini API, no "
        "key for any other server.",
    )
    max_input_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens that may be put into one request to a server; unset: 32,000. Not for [embedder].",
    )
    thinking: Thinking | None = Field(
        None,
        description="How much a `gemini:`, `openai:` or `vllm:` model may think before it answers: a level, "
        "or, for Gemini, a number of tokens (2.5 takes only that; 0: none at all). Billed as output; room "
        "for it is added to the bound on each answer. Unset: the model's own default; an `openai:` model not "
        "known to think gets no such room. Not for [embedder].",
    )
    too_long: TooLong = Field(
        "fail",
        description="What becomes of a row that is too long for the context of a `vllm:` or `vllm-offline:` "
        "model: `fail` makes it a failure with that reason, `cut` leaves out its middle, with a mark in its "
        "place, and says so beside the answer. Not for [embedder].",
    )

    @field_validator("thinking", mode="before")
    @classmethod
    def _level_or_tokens(cls, value: Any) -> Any:
        if value is None or value in get_args(ThinkingLevel) or (type(value) is int and value >= 0):
            return value
        raise ValueError('write "minimal", "low", "medium" or "high", or a number of tokens')

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            # the value is not shown: it may be the key
            raise ValueError("write the name of an environment variable, in capitals, not the key itself")
        return value


class EmbedderConfig(ModelConfig):
    """The embedder, and how long its vectors are."""

    dimensions: int = Field(
        768,
        ge=2,
        description="Length of the vectors, at most; `local:` uses fewer, and a model whose vectors may not "
        "be cut keeps its own.",
    )

    @field_validator("max_input_tokens")
    @classmethod
    def _one_text_at_a_time(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("is for models that write; an embedder takes one rule at a time")
        return value

    @field_validator("thinking")
    @classmethod
    def _does_not_think(cls, value: Thinking | None) -> Thinking | None:
        if value is not None:
            raise ValueError("is for models that write; an embedder does not think")
        return value

    @field_validator("too_long")
    @classmethod
    def _cuts_nothing(cls, value: TooLong) -> TooLong:
        if value != "fail":
            raise ValueError("is for models that write; an embedder takes one rule at a time")
        return value


class ClusterConfig(_Table):
    """How rules become clusters."""

    method: Literal["calibrated", "dbscan", "hdbscan"] = Field(
        "calibrated",
        description='`"calibrated"`: DBSCAN with settings that the rules give (`clustering.json` says why); '
        '`"dbscan"`: DBSCAN with `eps` and `min_samples` as given; '
        '`"hdbscan"`: HDBSCAN. All on cosine distance.',
    )
    eps: float | None = Field(
        None,
        gt=0.0,
        lt=2.0,
        description='Largest cosine distance of two neighbours, for `"dbscan"`; larger: fewer, broader '
        "instructions; unset: 0.4.",
    )
    min_samples: int | None = Field(
        None,
        ge=1,
        description='For `"dbscan"` the rules within `eps`, itself included, that make a rule the core of a '
        'cluster; for `"hdbscan"` that, and the rules of the smallest cluster; unset: 6.',
    )
    within: Literal["all", "label"] | None = Field(
        None,
        description="Cluster all rules together or each label's apart; unset: what suits the embedder, and "
        'with `"calibrated"` the rules.',
    )

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> ClusterConfig:
        given = [name for name in ("eps", "min_samples") if getattr(self, name) is not None]
        if self.method == "calibrated" and given:
            raise ValueError(
                f'method "calibrated" finds {" and ".join(given)} itself: leave that out, or write '
                'method = "dbscan"'
            )
        if self.method == "hdbscan" and self.eps is not None:
            raise ValueError('method "hdbscan" has no eps: leave it out, or write method = "dbscan"')
        return self

    @property
    def least_rules(self) -> int:
        """How many rules a cluster has at least, but for border rules that two of them share."""
        return LEAST_CALIBRATED if self.method == "calibrated" else self.settings[1]

    @property
    def settings(self) -> tuple[float, int]:
        """eps and min_samples as given, with what holds where they are not."""
        return (
            PAPER_EPS if self.eps is None else self.eps,
            PAPER_MIN_SAMPLES if self.min_samples is None else self.min_samples,
        )


class ResolveConfig(_Table):
    """The closed loop against the student's errors."""

    max_rounds: int = Field(8, ge=0, description="Rounds at most; 0 leaves the first prompt as it is.")
    patience: int = Field(2, ge=1, description="Stop after so many rounds in a row without a better prompt.")
    max_prompt_tokens: int = Field(
        6000, ge=200, description="No new prompt may be longer, in estimated tokens."
    )
    rows_per_round: int | None = Field(
        None, ge=1, description="Training rows the student is tried on each round; unset: all of them."
    )
    cases_per_request: int | None = Field(
        None, ge=3, description="Failures and successes shown to the resolver at once; unset: what suits it."
    )
    confusions_per_round: int = Field(
        6, ge=1, description="Confusions (true label, predicted label) worked on in a round, commonest first."
    )
    max_edits: int = Field(4, ge=1, description="Changes that one answer of the resolver may make.")
    long_tail: int = Field(
        4,
        ge=0,
        description="Rules outside every cluster to try as instructions after the last round, at most.",
    )
    prune: bool = Field(
        True, description="After the last round, drop instructions without which validation loses nothing."
    )
    floors: dict[str, dict[Literal["precision", "recall", "f1"], Share]] = Field(
        {},
        description="Precision, recall or f1 of a label that no new prompt may fall below on validation: "
        "`{ hate = { recall = 0.8 } }`.",
    )


class PriceConfig(_Table):
    """What a model's tokens cost, in US dollars per million."""

    input: float = Field(ge=0, description="US dollars per million input tokens.")
    output: float = Field(0.0, ge=0, description="US dollars per million output tokens, thinking included.")


class RunConfig(_Table):
    """What holds for the whole run."""

    seed: int = Field(7, ge=0, description="Every random choice comes from it.")
    max_cost_usd: float | None = Field(
        None,
        ge=0,
        description="Cap on what a run may cost: no request is sent that could pass it, and a model "
        "without a known price is refused; unset: no cap.",
    )
    cache: Path | None = Field(
        None,
        description="Folder of the response cache; unset: `.pld-cache` beside the run directory.",
    )


class Config(_Table):
    """The whole file. `base` is the folder that relative paths start from."""

    task: TaskConfig
    data: DataConfig
    teacher: ModelConfig = Field(ModelConfig(), description="Writes one rule for each training row.")
    synthesizer: ModelConfig | None = Field(
        None, description="Merges each cluster of rules into one instruction; unset: as [teacher]."
    )
    resolver: ModelConfig | None = Field(
        None, description="Edits the instructions where the student errs; unset: as [teacher]."
    )
    embedder: EmbedderConfig = Field(EmbedderConfig(), description="Turns each rule into a vector.")
    cluster: ClusterConfig = ClusterConfig()
    resolve: ResolveConfig = ResolveConfig()
    student: ModelConfig = Field(
        ModelConfig(), description="The small model that the prompt is compiled for, and that classifies."
    )
    run: RunConfig = RunConfig()
    prices: dict[str, PriceConfig] = Field(
        {},
        description="What models cost, by the name in their address; goes before the built-in price table.",
    )
    base: Path = Field(Path(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _floors_name_labels(self) -> Config:
        for label in self.resolve.floors:
            if label not in self.task.labels:
                raise ValueError(
                    f"resolve.floors: {label!r} is not a label{nearest(label, self.task.labels)}"
                )
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.task.labels)

    def role(self, name: ChatRole) -> ModelConfig:
        """The settings of a role; synthesizer and resolver fall back to the teacher's."""
        settings: ModelConfig | None = getattr(self, name)
        return settings or self.teacher

    def policy_text(self) -> str:
        """The written policy, or "" where there is none.

        Raises `ConfigError` if the file cannot be read.
        """
        if self.task.policy is None:
            return ""
        path = self.base / self.task.policy
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigError(f"{path}: the policy (task.policy) cannot be read: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{path}: the policy (task.policy) is not UTF-8 text") from exc
