"""The stop signal: set once, heard once by everybody."""

from __future__ import annotations

import pytest

from engine.errors import InterruptedRunError
from engine.stopping import StopSignal


def test_listeners_hear_it_once_whenever_they_came() -> None:
    stop, heard = StopSignal(), []
    stop.on_request(lambda: heard.append("early"))
    assert heard == []
    stop.request()
    stop.request()
    stop.on_request(lambda: heard.append("late"))
    assert heard == ["early", "late"]
    assert stop.requested


def test_a_listener_that_brings_another() -> None:
    stop, heard = StopSignal(), []
    stop.on_request(lambda: stop.on_request(lambda: heard.append("inner")))
    stop.request()
    assert heard == ["inner"]


def test_check_raises_only_after_a_request() -> None:
    stop = StopSignal()
    stop.check()
    stop.request()
    with pytest.raises(InterruptedRunError, match="everything finished is saved") as caught:
        stop.check()
    assert caught.value.exit_code == 130
