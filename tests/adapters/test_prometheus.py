"""Metrics are taken out of the text format one by one, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.prometheus import Metrics

TEXT = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 4.0
vllm:num_requests_running_by_reason{engine="0"} 99.0
other_vllm:num_requests_running 99.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 7.5e-01 1795414239000
bare_total 12
odd{a="\\"}, b=\\\\",b="line\\nbreak, \xc3\xa4"} 1.0
empty{} 2
unknown{engine="0"} NaN
unknown{engine="1"} 5
endless +Inf
broken{engine="0" 7
broken{engine="1"} seven
last 1"""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vllm:num_requests_running", [3.0, 4.0]),
        ("vllm:kv_cache_usage_perc", [0.25, 0.75]),
        ("bare_total", [12.0]),
        ("odd", [1.0]),
        ("empty", [2.0]),
        ("unknown", [5.0]),
        ("endless", []),
        ("broken", []),
        ("last", [1.0]),
        ("bare", []),
        ("num_requests_running", []),
        ("# HELP", []),
    ],
)
def test_all_lines_of_a_metric_and_no_others(name: str, values: list[float]) -> None:
    assert [one.value for one in Metrics(TEXT).readings(name)] == values


def test_values_are_added_up_or_combined_otherwise() -> None:
    metrics = Metrics(TEXT)
    assert metrics.value("vllm:num_requests_running") == 7
    assert metrics.value("vllm:kv_cache_usage_perc", over=max) == 0.75
    assert metrics.value("missing", "bare_total") == 12
    assert metrics.value("missing") is None
    assert Metrics(b"").value("missing") is None


def test_labels_are_unescaped() -> None:
    (odd,) = Metrics(TEXT).readings("odd")
    assert odd.labels == {"a": '"}, b=\\', "b": "line\nbreak, ä"}
    assert Metrics(TEXT).readings("bare_total")[0].labels == {}


NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True)
LABELS = st.dictionaries(
    st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=3,
)
LINES = st.lists(st.tuples(NAMES, LABELS, st.floats(allow_nan=False, allow_infinity=False)), max_size=12)


@given(lines=LINES)
def test_whatever_is_written_is_read_back(
    lines: list[tuple[str, dict[str, str], float]],
) -> None:
    text = ""
    for name, labels, value in lines:
        escaped = {
            key: one.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            for key, one in labels.items()
        }
        inner = ",".join(f'{key}="{one}"' for key, one in escaped.items())
        text += f"{name}{{{inner}}} {value!r}\n"
    metrics = Metrics(text.encode())
    for name in {name for name, _, _ in lines}:
        expected = [(labels, value) for one, labels, value in lines if one == name]
        assert [(one.labels, one.value) for one in metrics.readings(name)] == expected
