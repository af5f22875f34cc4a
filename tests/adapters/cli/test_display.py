"""What a person sees of a run that is fed event by event, on a clock of our own."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from adapters.cli.display import Display
from adapters.cli.pace import Pace
from adapters.cli.wording import BETWEEN, bottleneck, dollars, duration, packed, short
from engine.events import (
    Attempted,
    Bottleneck,
    ConcurrencyChanged,
    LaneVitals,
    Notice,
    RowFigures,
    StageFinished,
    StageProgress,
    StageStarted,
)

LANE = LaneVitals(
    model="gemini-3-flash",
    in_flight=61,
    concurrency=64,
    requests_per_s=412.4,
    requests_per_minute_limit=60_000,
    tokens_per_minute=1_240_000,
    tokens_per_minute_limit=2_000_000,
    spent_usd=1.234,
    cap_usd=25.0,
    bottleneck="server",
    loop_lag_s=0.01,
    cpu_share=0.97,
)


def progress(done: int = 0, *, stage: str = "extraction", **more: Any) -> StageProgress:
    figures = dict.fromkeys(("failed", "cached", "retries", "in_flight", "input_tokens", "output_tokens"), 0)
    return StageProgress(**{"stage": stage, "done": done, "sent": done, "cost_usd": 0.0, **figures, **more})


@dataclass
class Screen:
    """A display on a terminal (or a file) of our own, and a clock that stands still."""

    width: int = 80
    terminal: bool = True
    quiet: bool = False
    now: float = 100.0
    file: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        console = Console(
            file=self.file,
            width=self.width,
            force_terminal=self.terminal,
            force_interactive=self.terminal,
            highlight=False,
            legacy_windows=False,
            _environ={},
        )
        self.display = Display(quiet=self.quiet, console=console, clock=lambda: self.now)

    def lines(self) -> list[str]:
        """The live display as it stands, each line as it comes to the terminal."""
        rendered = self.display.console.render_lines(self.display.picture(), pad=False)
        return [text for line in rendered if (text := "".join(part.text for part in line))]

    def said(self) -> list[str]:
        return self.file.getvalue().splitlines()


def plain(**options: Any) -> Screen:
    return Screen(terminal=False, **options)


# --- the live display ------------------------------------------------------------------------------


def test_the_live_display_tells_everything() -> None:
    screen = Screen(width=80)
    screen.display(StageStarted("extraction", 18_065))
    for second in range(11):
        screen.now = 100.0 + second
        screen.display(
            progress(
                6_000 + 400 * second,
                cached=6_000,
                sent=400 * second,
                failed=12,
                retries=345,
                input_tokens=500_000,
                output_tokens=28_000,
                lane=LANE,
            )
        )
    head, *figures = screen.lines()
    assert "extraction" in head
    assert "━━━━━" in head
    assert head.endswith("10,000 of 18,065 (55%), ETA 20 s")
    assert figures == [
        "  412 requests/s · 24,744 of 60,000/min · 1.24M of 2.00M tokens/min",
        "  61 of 64 in flight · waiting for the model",
        "  6,000 cached · 12 failed · 345 retries · 528k tokens · $1.23 of $25.00",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    big = replace(
        LANE,
        in_flight=2_048,
        concurrency=2_048,
        requests_per_s=12_345.6,
        requests_per_minute_limit=1_000_000,
        tokens_per_minute=123e6,
        tokens_per_minute_limit=200_000_000,
        spent_usd=12_345.67,
        cap_usd=50_000.0,
        bottleneck="limit",
        loop_lag_s=1.234,
    )
    screen = Screen(width=width)
    stage = "a stage of a long name"
    screen.display(StageStarted(stage, 200_000_000))
    counts = {"cached": 10**8, "failed": 10**6, "retries": 10**7, "input_tokens": 10**11}
    screen.display(progress(123_456_789, stage=stage, lane=big, **counts))
    head, *below = screen.lines()
    assert stage in head
    assert all(len(line) <= width for line in (head, *below))
    assert len(below) <= {40: 10, 80: 5, 120: 3}[width]
    for words in ("740,736 of 1,000,000/min", "2,048 of 2,048 in flight", "100G tokens", "loop lag 1,234 ms"):
        assert sum(words in line for line in below) == 1  # no figure is broken


def test_what_there_is_not_is_not_shown() -> None:
    screen = Screen()
    assert screen.lines() == []
    screen.display(StageStarted("clustering"))
    screen.now += 7
    (head,) = screen.lines()
    assert head.endswith("clustering 7 s")
    screen.display(StageStarted("embedding", 300))
    free = replace(
        LANE, requests_per_minute_limit=None, tokens_per_minute_limit=None, cap_usd=None, requests_per_s=0.25
    )
    screen.display(progress(30, stage="embedding", lane=free))
    assert screen.lines()[1:] == [
        "  0.2 requests/s · 1.24M tokens/min",
        "  61 of 64 in flight · waiting for the model",
    ]


def test_bulk_classification_tells_rows_labels_and_confidences() -> None:
    rows = RowFigures(
        rows_per_s=8_123.4,
        total=5_000_000,
        eta_s=412.0,
        duplicates=400_000,
        review=61_500,
        labels={"none": 900_000, "spam": 300_000, **{f"rare {n}": 1 for n in range(6)}},
        confidence=(0, 0, 0, 0, 0, 10, 1_000, 20_000, 400_000, 800_000),
    )
    screen = Screen(width=80)
    screen.display(StageStarted("classify"))
    screen.now = 110.0
    screen.display(progress(1_200_006, stage="classify", rows=rows))
    head, *figures = screen.lines()
    assert head.endswith("1,200,006 of about 5,000,000 (24%), ETA 7 min")
    assert figures == [
        "  8,123 rows/s · 400k equal texts · 61.5k to review · none 75% · spam 25%",
        "  rare 0 0% · rare 1 0% · rare 2 0% · rare 3 0% · 2 more labels",
        "  confidence 0      ▁▁▁▄█ 1",
    ]
    screen = Screen(width=80)
    screen.display(StageStarted("classify", 4_000_000))
    screen.display(progress(1_000_000, stage="classify", rows=replace(rows, total=4_000_000, eta_s=None)))
    assert screen.lines()[0].endswith("1,000,000 of 4,000,000 (25%)")


def test_the_event_loop_is_mentioned_when_it_is_late() -> None:
    screen = Screen()
    screen.display(StageStarted("extraction", 10))
    screen.display(progress(1, lane=replace(LANE, loop_lag_s=0.049)))
    assert "lag" not in "".join(screen.lines())
    screen.display(progress(1, lane=replace(LANE, loop_lag_s=0.12)))
    assert "loop lag 120 ms" in screen.lines()[2]


def test_the_providers_pause_runs_down() -> None:
    screen = Screen()
    screen.display(StageStarted("extraction", 10))
    screen.display(ConcurrencyChanged("extraction", "m", 32, 12.0))
    screen.display(progress(1, lane=replace(LANE, bottleneck="pause")))
    assert "the provider asked to wait, 12 s" in screen.lines()[2]
    screen.now += 4.5
    assert "the provider asked to wait, 8 s" in screen.lines()[2]
    screen.now += 30
    assert screen.lines()[2].endswith("the provider asked to wait")


@pytest.mark.parametrize(
    ("lane", "words"),
    [
        (replace(LANE, bottleneck="server"), "waiting for the model"),
        (replace(LANE, bottleneck="source"), "reading rows"),
        (replace(LANE, bottleneck="client"), "this machine's CPU (97% of a core)"),
        (replace(LANE, bottleneck="cost"), "the cost cap: money set aside"),
        (replace(LANE, bottleneck="limit"), "at the tokens-per-minute limit"),
        (
            replace(LANE, bottleneck="limit", tokens_per_minute_limit=None),
            "at the requests-per-minute limit",
        ),
        (
            replace(LANE, bottleneck="limit", requests_per_s=999.0),
            "at the requests-per-minute limit",
        ),
    ],
)
def test_the_bottleneck_in_plain_words(lane: LaneVitals, words: str) -> None:
    assert bottleneck(lane) == words


def test_there_are_words_for_every_bottleneck() -> None:
    words = {bottleneck(replace(LANE, bottleneck=each)) for each in get_args(Bottleneck)}
    assert len(words) == len(get_args(Bottleneck))


def test_on_a_terminal_the_closing_lines_stay_and_the_display_goes() -> None:
    screen = Screen()
    with screen.display:
        screen.display(StageStarted("extraction", 10))
        screen.display(progress(10, lane=LANE))
        screen.display(StageFinished("extraction", "10 sent, 0 from the cache, 0 failed", 1.0))
        screen.now += 1.5
    assert "extraction: 10 sent, 0 from the cache, 0 failed (1.5 s)\n" in screen.file.getvalue()
    # the last thing written is the cursor, shown again
    assert (
        screen.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K") or "\x1b[?25h" in screen.file.getvalue()
    )


# --- plain lines -----------------------------------------------------------------------------------


def test_plain_lines_every_ten_seconds_then_every_minute() -> None:
    screen = plain()
    with screen.display:
        screen.display(StageStarted("extraction", 100_000))
        for tenth in range(6_001):
            screen.now = 100.0 + tenth / 10
            screen.display(progress(10 * tenth, lane=LANE))
        screen.display(StageFinished("extraction", "60000 sent", 600.0))
    first, *lines, last = screen.said()
    assert first == "extraction …"
    assert last == "extraction: 60000 sent (600.0 s)"
    assert 29 + 5 - 1 <= len(lines) <= 29 + 5 + 1
    assert lines[0] == (
        "extraction: 1,000 of 100,000 (1%), ETA 16 min · 412 requests/s · 24,744 of 60,000/min · "
        "1.24M of 2.00M tokens/min · 61 of 64 in flight · waiting for the model · $1.23 of $25.00"
    )


def test_passes_of_one_stage_are_added_up() -> None:
    screen = plain()
    with screen.display:
        for _ in range(3):
            screen.display(StageStarted("resolution", 100))
            screen.display(progress(100, stage="resolution", cached=40, sent=60, cost_usd=0.5))
            screen.display(StageFinished("resolution", "60 sent", 1.0))
            screen.now += 1
        screen.display(StageStarted("evaluation", 5))
    assert screen.said() == [
        "resolution …",
        "resolution: 300 done, 100/s, 120 cached, $1.50 (3.0 s)",
        "evaluation …",
        "evaluation: done (0.0 s)",
    ]


def test_a_late_word_of_another_stage_changes_nothing() -> None:
    screen = Screen()
    screen.display(progress(7))
    screen.display(StageStarted("synthesis", 10))
    screen.display(progress(9_999, stage="extraction"))
    assert screen.lines()[0].endswith("0 of 10 (0%)")


def test_fewer_requests_are_told_now_and_then() -> None:
    screen = plain()
    screen.display(StageStarted("extraction", 10))
    for tenth in range(100):
        screen.now = 100.0 + tenth / 10
        screen.display(ConcurrencyChanged("extraction", "m", 64 - tenth % 2, 2.0 * (tenth % 2)))
    assert screen.said() == [
        "extraction …",
        "extraction: the provider asks for less: 64 at a time",
        "extraction: the provider asks for less: 64 at a time",
    ]
    screen.now += 10
    screen.display(ConcurrencyChanged("extraction", "m", 8, 12.4))
    assert screen.said()[-1] == "extraction: the provider asks for less: 8 at a time, after a pause of 12 s"


def test_quiet_keeps_warnings_only() -> None:
    screen = plain(quiet=True)
    with screen.display:
        screen.display(StageStarted("extraction", 10))
        screen.now += 100
        screen.display(progress(5, lane=LANE))
        screen.display(ConcurrencyChanged("extraction", "m", 32, 12.0))
        screen.display(Attempted("extraction", "m", "r1", 1, "timeout", 2.0))
        screen.display(Notice("by the way"))
        screen.display(Notice("watch out", warning=True))
        screen.display(StageFinished("extraction", "5 sent", 1.0))
    assert screen.said() == ["warning: watch out"]


def test_after_an_error_no_stage_is_called_done() -> None:
    def work(display: Display) -> None:
        display(StageStarted("extraction", 10))
        raise ValueError("broken")

    screen = plain()
    with pytest.raises(ValueError, match="broken"), screen.display:
        work(screen.display)
    assert screen.said() == ["extraction …"]


def test_a_file_is_no_terminal_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as display:
        display(StageStarted("extraction", 10))
    assert capsys.readouterr().err == "extraction …\nextraction: done (0.0 s)\n"


# --- how long it will take -------------------------------------------------------------------------


def eta(samples: list[tuple[float, int, int]], total: int) -> float | None:
    pace = Pace(0.0)
    for now, done, sent in samples:
        pace.add(now, done, sent, total)
    return pace.eta_s


def test_a_burst_of_cached_answers_promises_no_quick_end() -> None:
    burst = [(t / 10, 500 * t, 0) for t in range(1, 301)]
    assert eta(burst, 200_000) is None
    slow = [(30 + t / 10, 150_000 + t, t) for t in range(1, 201)]
    left = 200_000 - 150_200
    # nor does it, once it is over, make the slow answers look slower
    assert eta(burst + slow, 200_000) == pytest.approx(left / 10, rel=0.1)


def test_rows_of_an_earlier_call_promise_no_quick_end() -> None:
    resumed = [(t / 10, 500_000 + 10 * t, 10 * t) for t in range(1, 301)]
    assert eta(resumed, 1_000_000) == pytest.approx((500_000 - 3_000) / 100, rel=0.15)


def test_only_the_last_minute_counts() -> None:
    quick = [(float(t), 1_000 * t, 1_000 * t) for t in range(1, 101)]
    slow = [(100.0 + t, 100_000 + 10 * t, 10 * t + 100_000) for t in range(1, 71)]
    assert eta(quick + slow, 1_000_000) == pytest.approx((900_000 - 700) / 10, rel=0.05)


def test_a_model_that_stands_still_moves_the_end_away() -> None:
    going = [(float(t), 10 * t, 10 * t) for t in range(1, 31)]
    ends = [eta([*going, *((30.0 + t, 300, 300) for t in range(1, more))], 1_000) for more in (1, 10, 20)]
    assert ends == sorted(ends, key=lambda end: end or 0)
    assert eta([*going, *((30.0 + t, 300, 300) for t in range(1, 100))], 1_000) is None


@given(st.lists(st.tuples(st.floats(1, 5), st.integers(0, 1000), st.integers(0, 1000)), max_size=100))
def test_the_end_is_never_nearer_than_the_quickest_second_makes_it(
    steps: list[tuple[float, int, int]],
) -> None:
    pace, now, done, sent, total = Pace(0.0), 0.0, 0, 0, 10**6
    quickest = 0.0
    for seconds, cached, answered in steps:
        now, done, sent = now + seconds, done + cached + answered, sent + answered
        quickest = max(quickest, answered / seconds)
        pace.add(now, done, sent, total)
        if pace.eta_s is not None:
            assert pace.eta_s * quickest >= (total - done) * (1 - 1e-9)
    assert sent or pace.eta_s is None


# --- words -----------------------------------------------------------------------------------------


@given(st.lists(st.text("ab ", min_size=1, max_size=30), max_size=12), st.integers(10, 100))
def test_packed_breaks_no_cell_and_loses_none(cells: list[str], width: int) -> None:
    lines = packed(cells, width)
    assert BETWEEN.join(lines) == BETWEEN.join(cells)
    assert all(len(line) <= max(width, *map(len, cells)) for line in lines)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (1_234_567, "1.23M"),
        (2.5e9, "2.50G"),
        (3e12, "3,000G"),
    ],
)
def test_short(count: float, words: str) -> None:
    assert short(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (19.4, "19 s"),
        (33, "35 s"),
        (97, "95 s"),
        (100, "2 min"),
        (59 * 60, "59 min"),
        (100 * 60, "1 h 40 min"),
        (2 * 3600 + 58 * 60, "3 h 0 min"),
        (47 * 3600, "47 h 0 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("amount", "words"), [(0, "$0.00"), (0.00421, "$0.0042"), (1.5, "$1.50"), (12_345.678, "$12,345.68")]
)
def test_dollars(amount: float, words: str) -> None:
    assert dollars(amount) == words
