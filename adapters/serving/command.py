"""The command line and the environment that `vllm serve` is started with, and why each flag is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.serving.installation import Installation
from engine.errors import ConfigError

GPU_BATCHED_TOKENS = 16_384
KEY_VARIABLE = "VLLM_API_KEY"
# longer than any client keeps an idle connection: vLLM's 5 s end while the next request is on its way
_ENVIRONMENT = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120"}
# these decide where the server is found and by what name: pld has to know them
_OURS = {
    "--host": "--host",
    "--port": "--port",
    "--served-model-name": "--served-model-name",
    "--model": "MODEL",
}
_UNREACHABLE = ("--uds", "--ssl-keyfile", "--ssl-certfile", "--root-path", "--headless", "--grpc", "--config")
_WEIGHTS = ("config.json", "params.json")


@dataclass(frozen=True)
class ServeOptions:
    """What is to be served and how. None leaves the choice to vLLM, which knows the device's memory."""

    model: str
    """A folder, or a name on the Hugging Face Hub."""
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    quantization: str | None = None
    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    extra: tuple[str, ...] = ()
    """Flags for vLLM itself; the last of a kind counts, so they go before all others."""

    @property
    def name(self) -> str:
        """What the model is called in addresses: its name on the Hub, or its folder's."""
        if self.served_model_name is not None:
            return self.served_model_name
        return Path(self.model).resolve().name if is_path(self.model) else self.model

    @property
    def base_url(self) -> str:
        """Where this machine reaches the server, without the /v1 of its API."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def is_path(model: str) -> bool:
    """Whether a model is meant as a path: it exists, or no name on the Hub looks like that."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists()


def check_options(options: ServeOptions) -> None:
    """Find what would stop vLLM, or hide it from pld, before it has loaded for minutes.

    Raises `ConfigError` with one line that says what to do.
    """
    if is_path(options.model):
        _check_folder(options.model)
    name = options.name
    if not name or not name.isprintable() or "@" in name or name != name.strip():
        raise ConfigError(f"{name!r} cannot stand in a model's address; give another --served-model-name")
    if options.extra and not options.extra[0].startswith("-"):
        raise ConfigError(
            f"{options.extra[0]!r}: one model is served; what stands after -- are flags of `vllm serve`"
        )
    for flag in (one.partition("=")[0].replace("_", "-") for one in options.extra if one.startswith("--")):
        if flag in _OURS:
            raise ConfigError(f"{flag} is an option of pld serve: give {_OURS[flag]} before --")
        if flag in _UNREACHABLE:
            raise ConfigError(f"{flag}: pld could not tell when the server is ready; run `vllm serve` itself")
        if flag == "--api-key":
            raise ConfigError(
                f"--api-key: any user of this machine can read a command line; put the key into the variable "
                f"{KEY_VARIABLE}, which vLLM reads too"
            )


def _check_folder(model: str) -> None:
    folder = Path(model)
    if not folder.exists():
        raise ConfigError(
            f"there is no model at {model}; give a folder with its config.json and weights, or a name on the "
            "Hugging Face Hub (ORGANISATION/NAME)"
        )
    if folder.is_dir() and not any((folder / name).exists() for name in _WEIGHTS):
        raise ConfigError(
            f"{model}: is not a model that vLLM can load: its folder holds no {' or '.join(_WEIGHTS)}"
        )


def vllm_command(options: ServeOptions, vllm: Installation) -> list[str]:
    """The command line of `vllm serve`."""
    batched = options.max_num_batched_tokens
    if batched is None and vllm.gpu:
        # answers are one label: nearly all work is reading rows, and a step should read many at once
        batched = GPU_BATCHED_TOKENS
    valued = {
        "--host": options.host,
        "--port": options.port,
        "--served-model-name": options.name,
        "--max-model-len": options.max_model_len,
        "--max-num-seqs": options.max_num_seqs,
        "--max-num-batched-tokens": batched,
        "--gpu-memory-utilization": options.gpu_memory_utilization,
        "--quantization": options.quantization,
        "--tensor-parallel-size": options.tensor_parallel_size,
        "--data-parallel-size": options.data_parallel_size,
        # a sliding window's layers keep the end of each prompt only, and rows differ there; None keeps all
        "--prefix-cache-retention-interval": "None" if vllm.retention else None,
    }
    flags = [
        "--enable-prefix-caching",  # the prompt is read once, not once for each row
        "--enable-prompt-tokens-details",  # answers say how much of the prompt was cached
        "--disable-uvicorn-access-log",  # a line for each of millions of requests
    ]
    for flag, value in valued.items():
        if value is not None:
            flags += [flag, str(value)]
    return [str(vllm.program), "serve", options.model, *flags, *options.extra]


def added_variables(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for `vllm serve` beside those of this process, where it has not set them."""
    return {name: value for name, value in _ENVIRONMENT.items() if name not in variables}
