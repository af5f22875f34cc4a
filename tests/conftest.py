"""What every test gets: no network but loopback, and the real data where it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# no timed assertions: a busy machine must not fail a property
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" not in os.environ:  # there Hypothesis has a profile of its own: patient too, and without chance
    settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """The folder that holds data/ and recorded/: PLD_DATA, or ../shared beside the checkout."""
    return Path(os.environ.get("PLD_DATA") or ROOT.parent / "shared")


@pytest.fixture(scope="session")
def pld_data() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    folder = data_root() / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set PLD_DATA to the folder that holds data/ and recorded/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Refuse every connection that would leave this machine."""
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not (host.startswith("127.") or host in ("::1", "localhost")):
                raise RuntimeError(f"a test tried to reach {host}: only loopback is allowed")
        real_connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect)
    yield
    patch.undo()
