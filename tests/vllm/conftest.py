"""One real vLLM server for all tests here; `make test-vllm` installs what it takes."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.vllm.serving import Environment, Server, serving, tail

VARIABLE = "PLD_VLLM_VENV"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The virtual environment with vLLM; the test is skipped where none is named."""
    path = os.environ.get(VARIABLE)
    if not path:
        pytest.skip(f"no vLLM server: run `make test-vllm`, which installs one and names it in {VARIABLE}")
    return Environment(Path(path), tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def tiny_model(environment: Environment) -> Path:
    """A folder with a model of random weights."""
    folder = environment.scratch / "model"
    environment.run("python", Path(__file__).with_name("make_tiny_model.py"), folder, timeout_s=300)
    return folder


@pytest.fixture(scope="session")
def server(environment: Environment, tiny_model: Path) -> Iterator[Server]:
    """A server of that model, under the name `serving.MODEL`."""
    with serving(environment, tiny_model, environment.scratch / "server.log") as ready:
        yield ready


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure comes the end of the server's log."""
    report = yield
    found = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(found, Server):
        report.sections.append(("the end of the vLLM server's log", tail(found.log)))
    return report
