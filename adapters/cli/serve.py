"""`pld serve`: a vLLM server with the flags that fit the job, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from adapters.addresses import RemoteAddress
from adapters.cli.display import Display
from adapters.cli.figures import print_json
from adapters.cli.running import errors_as_one_line
from adapters.cli.wording import duration
from adapters.serving.command import (
    KEY_VARIABLE,
    ServeOptions,
    added_variables,
    check_options,
    vllm_command,
)
from adapters.serving.installation import Installation, find_vllm
from adapters.serving.job import ROW_TOKENS, Job, model_context
from adapters.serving.server import GuardedServer, guarded, open_port, until_ready
from adapters.vllm_servers import ServerFacts, VllmServers
from engine.errors import InterruptedRunError
from engine.store.compiled import load_prompt
from engine.tuning import new_event_loop

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PLAIN_INTERVAL_S = 10.0
_CALM_INTERVAL_S = 60.0  # after the first five minutes
_MOST_OF_A_LINE = 100  # vLLM also logs its whole configuration in one
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_command(
    model: Annotated[str, typer.Argument(help="A folder with a model, or its name on the Hugging Face Hub.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Flags for `vllm serve` itself.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="A compiled run: the context is made for its prompt, and its caching checked."),
    ] = None,
    row_tokens: Annotated[
        int, typer.Option(help="With --run: tokens of the longest row that has to fit.", min=1)
    ] = ROW_TOKENS,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name in addresses; default: its own, or its folder's.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of context; default: made for --run, else the model's.", min=1)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Rows in one step; default: vLLM's, by the device's memory.", min=1)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens in one step; default: 16384 on a GPU, else vLLM's.", min=1),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of the device's memory to take; default: vLLM's.", min=0.01, max=1),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Such as fp8; default: what the model's configuration says.")
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs that share one copy of the model.", min=1)
    ] = None,
    data_parallel_size: Annotated[
        int | None, typer.Option(help="Copies of the model behind this one address.", min=1)
    ] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(envvar="PLD_VLLM", help="The vllm program, or its environment; default: that on PATH."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="File for the server's output; default: vllm-PORT.log here.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and start nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON object on stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Serve a model with vLLM for `pld classify`, and leave no process behind.

    Starts `vllm serve` with the prefix cache on, waits until the model answers, and prints its address on
    stdout. It stays until Ctrl-C (a second one kills); when it ends, however it ends, every process of the
    server ends too. What the server says goes to its log; where it fails, the cause is said in one line.

    Example: pld serve Qwen/Qwen3-4B --run runs/tweets --gpu-memory-utilization 0.8 -- --enforce-eager
    """
    display = Display(quiet=quiet)
    with errors_as_one_line("the server is gone, and all that it started"):
        options = ServeOptions(
            model=model,
            host=host,
            port=port,
            served_model_name=served_model_name,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            quantization=quantization,
            tensor_parallel_size=tensor_parallel_size,
            data_parallel_size=data_parallel_size,
            extra=tuple(extra or ()),
        )
        check_options(options)
        job = None if run is None else Job.of(load_prompt(run))
        if job is not None:
            most = model_context(model)
            if max_model_len is None:
                options = replace(options, max_model_len=job.context(row_tokens, most))
            for doubt in job.doubts(options.max_model_len):
                display.say(f"warning: {doubt}")
        installed = find_vllm(vllm)
        if port == 0 or not dry_run:
            options = replace(options, port=open_port(host, port))
        if dry_run:
            variables = [f"{name}={value}" for name, value in added_variables().items()]
            typer.echo(shlex.join([*variables, *vllm_command(options, installed)]))
            return
        file = Path(f"vllm-{options.port}.log") if log is None else log
        serving = _Serving(options, installed, file, job, display, as_json=as_json, quiet=quiet, run=run)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serving.until_stopped())


class _Serving:
    """One server from its start to its end, and what is said of it."""

    def __init__(
        self,
        options: ServeOptions,
        installed: Installation,
        log: Path,
        job: Job | None,
        display: Display,
        *,
        as_json: bool,
        quiet: bool,
        run: Path | None,
    ) -> None:
        self._options = options
        self._installed = installed
        self._log = log
        self._job = job
        self._display = display
        self._as_json = as_json
        self._quiet = quiet
        self._run = run
        self._server: GuardedServer | None = None
        self._presses = 0

    async def until_stopped(self) -> None:
        """Raises `InterruptedRunError` when it was stopped, `ModelError` when it ended by itself."""
        options = self._options
        command = vllm_command(options, self._installed)
        environment = {**os.environ, **added_variables()}
        key = os.environ.get(KEY_VARIABLE)
        if options.host not in _LOOPBACK and key is None:
            self._display.say(
                f"warning: whoever reaches port {options.port} of {options.host} can use the model; a key in "
                f"the variable {KEY_VARIABLE} keeps others out"
            )
        base = f"{options.base_url}/v1"
        asked = VllmServers(RemoteAddress(options.name, (base,)), api_key=key)
        with self._listening():
            async with (
                aclosing(asked),
                guarded(command, environment, self._log) as server,
            ):
                self._server = server
                self._pass_on()  # what came while it was started
                with self._loading() as tell:
                    ready = await until_ready(server, asked, tell)
                if ready and not self._presses:
                    facts = await asked.facts(base)
                    prompt = await asked.token_ids(base, self._job.messages) if self._job else None
                    if not self._presses:
                        self._say_ready(server.seconds, facts, None if prompt is None else len(prompt))
                    await server.ended()
                if not self._presses:
                    raise await server.failure()
        raise InterruptedRunError("stopped")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """One signal asks the server to end, another kills it."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._pressed)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _pressed(self) -> None:
        self._presses += 1
        if self._presses == 1:
            self._display.say("stopping the server; Ctrl-C again kills it")
        self._pass_on()

    def _pass_on(self) -> None:
        if self._server is None or not self._presses:
            return
        if self._presses == 1:
            self._server.terminate()
        else:
            self._server.kill()

    @contextmanager
    def _loading(self) -> Iterator[Callable[[float, str], None]]:
        """How to tell what the server is doing: on a terminal a line that changes, elsewhere one at times."""
        display = self._display
        if not self._quiet:
            version = f" {self._installed.version}" if self._installed.version else ""
            display.say(f"starting vLLM{version}; its log: {self._log}")
        if not self._quiet and display.console.is_interactive:
            with display.console.status("starting vLLM") as status:
                width = display.console.width - 4  # the spinner
                yield lambda seconds, line: status.update(Text(_doing(seconds, line)[:width]))
            return
        next_s = _PLAIN_INTERVAL_S

        def tell(seconds: float, line: str) -> None:
            nonlocal next_s
            if seconds >= next_s and not self._quiet:
                next_s = seconds + (_PLAIN_INTERVAL_S if seconds < 300 else _CALM_INTERVAL_S)
                display.say(_doing(seconds, line))

        yield tell

    def _say_ready(self, seconds: float, facts: ServerFacts, prompt_tokens: int | None) -> None:
        options, display = self._options, self._display
        findings = [] if self._job is None else self._job.findings(facts, prompt_tokens)
        for finding in findings:
            display.say(f"warning: {finding}")
        if not self._quiet:
            context = f", {facts.max_model_len:,} tokens of context" if facts.max_model_len else ""
            display.say(f"{options.name} is ready after {duration(seconds)}{context}")
            classify = ["pld", "classify", str(self._run or "RUN"), "INPUT", "-o", "OUT"]
            display.say(f"in another terminal: {shlex.join([*classify, '--student', address_of(options)])}")
        if self._as_json:
            print_json(
                {
                    "address": address_of(options),
                    "base_url": f"{options.base_url}/v1",
                    "model": options.model,
                    "vllm": self._installed.version,
                    "max_model_len": facts.max_model_len,
                    "block_size": facts.block_size,
                    "prefix_caching": facts.caching,
                    "prompt_tokens": prompt_tokens,
                    "warnings": findings,
                    "seconds": round(seconds, 1),
                    "log": str(self._log.absolute()),
                }
            )
        else:
            typer.echo(address_of(options))


def address_of(options: ServeOptions) -> str:
    """The model's address, as it stands in a configuration and behind --student."""
    return f"vllm:{options.name}@{options.base_url}/v1"


def _doing(seconds: float, line: str) -> str:
    return f"loading for {duration(seconds)}{f': {line[:_MOST_OF_A_LINE]}' if line else ''}"
