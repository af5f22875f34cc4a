"""vLLM's own engine, called from one thread: messages in, answers out.

Names and fields: https://docs.vllm.ai/en/latest/api/vllm/ (`LLM`, `SamplingParams`, `RequestOutput`).
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from adapters.offline_address import OfflineAddress
from adapters.openai_logprobs import NO_CHANCE, read_label_logprobs
from adapters.openai_wire import TOP_LOGPROBS, mended
from adapters.serving.causes import known_cause
from adapters.serving.command import GPU_BATCHED_TOKENS
from adapters.vllm_servers import ServerFacts
from engine.errors import ModelError
from engine.types import NO_RETRY, Answer, AttemptFailure, ChatOutcome, FinishReason, Message, Request, Usage

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_INSTALL = (
    "vLLM is not installed beside pld: pip install 'pld-engine[vllm]', or start a server (pld serve) and use "
    "its vllm: address"
)
_RETENTION = "prefix_cache_retention_interval"
_WIDER = "in the address, such as vllm-offline:PATH?max_model_len=8192&gpu_memory_utilization=0.8"


class Engine:
    """A model that is loaded. Raises `ModelError`, with the cause in a line, where it cannot be."""

    def __init__(self, address: OfflineAddress) -> None:
        self.name = address.name
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        try:
            self._vllm: Any = importlib.import_module("vllm")
            self._sampling: Any = importlib.import_module("vllm.sampling_params")
            on_gpu: bool = importlib.import_module("vllm.platforms").current_platform.is_cuda_alike()
        except ImportError as exc:
            raise ModelError(f"{self.name}: {_INSTALL} ({exc})") from exc
        fields = self._vllm.EngineArgs.__dataclass_fields__
        unknown = sorted(address.options.keys() - fields.keys())
        if unknown:
            raise ModelError(f"{self.name}: vLLM's engine has no setting named {', '.join(unknown)}")
        options: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        if on_gpu:
            options["max_num_batched_tokens"] = GPU_BATCHED_TOKENS
        if _RETENTION in fields:
            options[_RETENTION] = None  # a sliding window's layers keep whole prompts too
        if "use_tqdm_on_load" in fields:
            options["use_tqdm_on_load"] = False
        try:
            self._llm: Any = self._vllm.LLM(model=address.model, **{**options, **address.options})
        except Exception as exc:  # vLLM raises all sorts, of its own and of torch
            raise ModelError(f"{self.name}: cannot be loaded: {_cause(exc)}") from exc
        config = self._llm.llm_engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self.caching: bool = config.cache_config.enable_prefix_caching
        self.facts = ServerFacts(self.max_model_len, config.cache_config.block_size, self.caching)
        self._refusals: tuple[type[Exception], ...] = (ValueError, TypeError, *_client_errors())
        self._parameters = cache(self._new_parameters)

    def token_ids(self, messages: Sequence[Message]) -> list[int] | None:
        """The tokens of messages as the chat template puts them, with the beginning of an answer; None where
        it does not take them: `chat` tells that of each request."""
        tokenizer = self._llm.get_tokenizer()
        try:
            text = tokenizer.apply_chat_template(
                [_conversation_part(one) for one in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # noqa: BLE001 - templates raise what they like
            return None
        return list(tokenizer.encode(text, add_special_tokens=False))

    def chat(self, requests: Sequence[Request]) -> list[ChatOutcome]:
        """One outcome per request; a request that vLLM refuses is a failure of its own.

        Raises `ModelError` where the engine itself fails.
        """
        if not requests:
            return []
        try:
            outputs = self._llm.chat(
                [[_conversation_part(one) for one in request.messages] for request in requests],
                [self._parameters(*_asked(request)) for request in requests],
                use_tqdm=False,
            )
        except self._refusals as exc:  # raised before any request has begun
            if len(requests) == 1:
                return [AttemptFailure("refused", f"vLLM does not take it ({type(exc).__name__})", NO_RETRY)]
            half = len(requests) // 2
            return [*self.chat(requests[:half]), *self.chat(requests[half:])]
        except Exception as exc:
            # what vLLM says of it may quote a row
            cause = known_cause(_said(exc)) or type(exc).__name__
            raise ModelError(f"{self.name}: its engine failed: {cause}") from exc
        return [_outcome(request, output) for request, output in zip(requests, outputs, strict=True)]

    def close(self) -> None:
        """Free the device's memory."""
        core = self._llm.llm_engine.engine_core
        del self._llm
        core.shutdown()
        gc.collect()

    def _new_parameters(
        self,
        max_output_tokens: int,
        choices: tuple[str, ...],
        schema: Any,
        temperature: float,
        seed: int | None,
    ) -> Any:
        held: dict[str, Any] | None = {"choice": list(choices)} if choices else None
        if schema is not None:
            held = {"json": dict(schema.json_schema)}
        return self._sampling.SamplingParams(
            max_tokens=max_output_tokens,
            temperature=temperature,
            seed=seed,
            logprobs=TOP_LOGPROBS if choices else None,
            structured_outputs=None if held is None else self._sampling.StructuredOutputsParams(**held),
        )


def _client_errors() -> tuple[type[Exception], ...]:
    """What newer versions raise for a request that they do not take."""
    try:
        exceptions = importlib.import_module("vllm.exceptions")
    except ImportError:
        return ()
    found = getattr(exceptions, "VLLMClientError", None)
    return () if found is None else (found,)


def _asked(request: Request) -> tuple[Any, ...]:
    seed = request.index if request.temperature > 0 else None
    return (request.max_output_tokens, request.choices, request.schema, request.temperature, seed)


def _conversation_part(message: Message) -> dict[str, str]:
    try:
        message.content.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no tokenizer takes
        return {"role": message.role, "content": mended(message.content)}
    return {"role": message.role, "content": message.content}


def _outcome(request: Request, output: Any) -> ChatOutcome:
    said = output.outputs[0]
    usage = Usage(len(output.prompt_token_ids), len(said.token_ids), cached_tokens=output.num_cached_tokens)
    finish = _FINISH.get(said.finish_reason)
    if finish is None:
        return AttemptFailure("malformed", f"the answer ended by {said.finish_reason!r}", billed=usage)
    label = said.text.strip()
    if label not in request.choices or finish is not FinishReason.STOP:
        return Answer(said.text, usage, finish)
    content = list(_content(said))
    return Answer(label, usage, finish, read_label_logprobs(content, said.text, label, request.choices))


def _content(said: Any) -> Iterator[dict[str, Any]]:
    """The tokens of an answer in OpenAI's form, as vLLM's server gives them."""
    for token, listed in zip(said.token_ids, said.logprobs or (), strict=False):
        yield {**_token(listed[token]), "top_logprobs": [_token(one) for one in listed.values()]}


def _token(one: Any) -> Mapping[str, Any]:
    return {"token": one.decoded_token or "", "logprob": max(one.logprob, NO_CHANCE)}


def _cause(exc: BaseException) -> str:
    """Why a model was not loaded, in a line: what is known of it, else what vLLM said last."""
    said = _said(exc)
    advice = known_cause(said)
    if advice is not None:
        return f"{advice}; settings of vLLM go {_WIDER}"
    return said[0][:300] if said else type(exc).__name__


def _said(exc: BaseException) -> list[str]:
    """The lines of an error and of those behind it."""
    said: list[str] = []
    at: BaseException | None = exc
    while at is not None:
        said += [line.strip() for line in str(at).splitlines() if line.strip()]
        at = at.__cause__ or at.__context__
    return said
