"""Dockerfile and compose.yaml say what the rest of the project says; their form is the linters' matter."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from adapters.serving.command import ServeOptions, added_variables, vllm_command
from adapters.serving.installation import Installation
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# what is set for a container and not by the job
OF_THE_MACHINE = {"--tensor-parallel-size", "--gpu-memory-utilization"}


def test_the_server_has_the_flags_of_pld_serve() -> None:
    gpu = Installation(Path("vllm"), "0.32.0", retention=True, gpu=True)
    options = ServeOptions("org/model", host="0.0.0.0", served_model_name="student")  # noqa: S104
    command = vllm_command(options, gpu)[3:]
    wanted = set(re.sub(r" (?!--)", "=", " ".join(command)).split())
    written = set(re.findall(r"^ {6}- (--.*)$", COMPOSE, re.MULTILINE))
    assert wanted <= written
    assert {flag.partition("=")[0] for flag in written - wanted} == OF_THE_MACHINE
    for name, value in added_variables({}).items():
        assert f'{name}: "{value}"' in COMPOSE


def test_the_image_holds_what_the_wheel_is_made_of() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= {"pyproject.toml", *(path.partition("/")[0] for path in wheel["force-include"])}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for source in line.split()
    }
    assert copied == needed
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == needed


def test_the_image_has_a_python_that_is_supported_and_no_root() -> None:
    versions = re.findall(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert len(versions) == len(re.findall("^FROM ", DOCKERFILE, re.MULTILINE)) > 0
    assert all(version in SpecifierSet(PROJECT["project"]["requires-python"]) for version in versions)
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]


def test_no_key_stands_in_them() -> None:
    for text in (DOCKERFILE, COMPOSE):
        assert not re.search(r"(?i)(key|token|secret|password)\s*[:=]", text)


def test_a_job_begins_when_the_server_is_ready() -> None:
    for part in ("condition: service_healthy", "healthcheck:", "restart: unless-stopped", "driver: nvidia"):
        assert part in COMPOSE
