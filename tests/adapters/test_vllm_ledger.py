"""The receipt of a prefix cache: what was counted, what was expected, and why less came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.vllm_ledger import MOST_PREFIXES, CacheLedger
from adapters.vllm_servers import ServerCounters, ServerFacts
from engine.ports import CacheReceipt
from engine.types import Message, Request, Usage

A, B = "http://a/v1", "http://b/v1"
FACTS = ServerFacts(8192, 16, True, window=False, retains=True)
NOTHING = ServerCounters(0, 0, 0, 0, 0)


def words(messages: Sequence[Message]) -> list[str]:
    return " ".join(one.content for one in messages).split()


@dataclass
class FakeServers:
    """Servers that say what a test has written here; a token is a word."""

    told: Mapping[str, ServerFacts] = field(default_factory=lambda: {A: FACTS, B: FACTS})
    counted: dict[str, ServerCounters] = field(default_factory=dict)
    tokens: Callable[[Sequence[Message]], list[str] | None] = words
    fullest: float = 0.0
    tokenized: int = 0

    async def facts(self, base: str) -> ServerFacts:
        return self.told[base]

    async def counters(self, base: str) -> ServerCounters | None:
        return self.counted.get(base)

    async def token_ids(self, base: str, messages: Sequence[Message]) -> list[int] | None:
        self.tokenized += 1
        found = self.tokens(messages)
        return None if found is None else [hash(word) for word in found]


def request(row: str, system: str = "the same prompt for all") -> Request:
    return Request(row, (Message("system", system), Message("user", f"<input> {row}")), 8)


def answer(
    ledger: CacheLedger,
    rows: Sequence[str],
    *,
    base: str = A,
    system: str = "the same prompt for all",
    cached: int | None = 0,
    tokens: int = 100,
) -> None:
    for row in rows:
        asked = request(row, system)
        ledger.asked(10.0)
        ledger.answered(system.encode(), base, asked, Usage(tokens, 1, 0, cached), 12.0)


def rows(count: int, word: str = "row") -> list[str]:
    return [f"{number} {word}" for number in range(count)]


def receipt(ledger: CacheLedger, servers: FakeServers | None = None) -> CacheReceipt:
    found = asyncio.run(ledger.receipt(servers or FakeServers()))
    assert found is not None
    return found


LONG = " ".join(f"word{n}" for n in range(37))
"""With <input> 38 tokens: two whole blocks of 16."""


# --- arithmetic -----------------------------------------------------------------------------------


def test_nothing_asked_no_receipt() -> None:
    assert asyncio.run(CacheLedger().receipt(FakeServers())) is None


def test_an_example_by_hand() -> None:
    """Two prompts, two replicas: (60 + 40 - 2) x 32 tokens of the first, (10 - 1) x 0 of the second."""
    ledger = CacheLedger()
    answer(ledger, rows(60), system=LONG, cached=32)
    answer(ledger, rows(40), base=B, system=LONG, cached=31)
    answer(ledger, rows(10), system="short", cached=None, tokens=50)
    servers = FakeServers()
    found = receipt(ledger, servers)
    assert replace(found, warnings=()) == CacheReceipt(
        requests=110,
        servers=2,
        prefixes=2,
        prompt_tokens=100 * 100 + 10 * 50,
        cached_tokens=None,
        expected_tokens=98 * 32,
        shared_tokens=38,
        block_tokens=16,
        requests_per_s=110 / 2.0,
        first_token_s=None,
    )
    assert servers.tokenized == 4


def test_told_tokens_add_up() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(60), system=LONG, cached=32)
    answer(ledger, rows(40), base=B, system=LONG, cached=48)
    found = receipt(ledger)
    assert found.cached_tokens == 60 * 32 + 40 * 48
    assert found.hit_rate == found.cached_tokens / 10_000
    assert found.warnings == ()


def test_each_copy_of_the_model_has_a_cache_of_its_own() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(100), system=LONG, cached=32)
    found = receipt(ledger, FakeServers({A: replace(FACTS, engines=4)}))
    assert (found.servers, found.expected_tokens) == (4, 96 * 32)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_requests_than_caches(count: int) -> None:
    ledger = CacheLedger()
    answer(ledger, rows(count), system=LONG)
    assert receipt(ledger, FakeServers({A: replace(FACTS, engines=2)})).expected_tokens == 0


def test_what_all_rows_begin_with_counts_and_no_more() -> None:
    """The first two share 17 words more than all of them do; one that is the row of another is no news."""
    contract = " ".join(f"clause{n}" for n in range(17))
    ledger = CacheLedger()
    answer(ledger, [f"{contract} first", f"{contract} second"], system=LONG)
    assert receipt(ledger).shared_tokens == 38 + 17
    answer(ledger, ["other", f"{contract} third", f"{contract} first", "other"], system=LONG)
    assert receipt(ledger).shared_tokens == 38


def test_equal_rows_share_all_but_the_last_token() -> None:
    ledger = CacheLedger()
    answer(ledger, ["again"] * 50, system=LONG)
    assert receipt(ledger).shared_tokens == 38


def test_a_row_that_goes_on_where_another_ends() -> None:
    ledger = CacheLedger()
    answer(ledger, ["one two", "one"], system=LONG)
    assert receipt(ledger).shared_tokens == 38, "the last token of a prompt is always computed"


def test_a_long_row_is_kept_no_longer_than_it_says_something() -> None:
    ledger = CacheLedger()
    answer(ledger, ["x " * 500_000, "y " * 500_000], system=LONG)
    seen: list[int] = []
    servers = FakeServers(
        tokens=lambda messages: (seen.append(len(messages[-1].content)), words(messages))[1]
    )
    assert receipt(ledger, servers).shared_tokens == 38
    assert max(seen) < 40_000


def test_where_nobody_tokenizes_the_rest_is_known() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(100), cached=32)
    found = receipt(ledger, FakeServers(tokens=lambda _: None))
    assert (found.shared_tokens, found.expected_tokens) == (None, None)
    assert (found.cached_tokens, found.block_tokens, found.warnings) == (3200, 16, ())


def test_where_nobody_tells_a_block() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(100), system=LONG)
    found = receipt(ledger, FakeServers({A: ServerFacts()}))
    assert (found.shared_tokens, found.block_tokens, found.expected_tokens) == (38, None, None)
    assert found.warnings == ()


JOBS = st.lists(
    st.tuples(
        st.sampled_from([A, B]),
        st.integers(0, 5),  # the prompt
        st.integers(0, 9),  # the row
        st.integers(0, 200),  # cached tokens
    ),
    min_size=1,
    max_size=200,
)


@given(jobs=JOBS, block=st.integers(1, 40))
def test_expected_is_the_plain_sum(jobs: list[tuple[str, int, int, int]], block: int) -> None:
    ledger = CacheLedger()
    for base, prompt, row, cached in jobs:
        answer(ledger, [f"r{row} end"], base=base, system=f"p{prompt} {LONG}", cached=cached, tokens=200)
    facts = replace(FACTS, block_size=block)
    found = receipt(ledger, FakeServers({A: facts, B: facts}))
    by_prompt = Counter(prompt for _, prompt, _, _ in jobs)
    expected = 0
    for prompt, count in by_prompt.items():
        replicas = len({base for base, one, _, _ in jobs if one == prompt})
        different = len({row for _, one, row, _ in jobs if one == prompt}) > 1
        shared = 39 if different else 40  # p<N>, LONG, <input>; and a row, up to the last token
        expected += max(0, count - replicas) * (shared // block) * block
    assert found.expected_tokens == expected >= 0
    assert found.cached_tokens == sum(cached for *_, cached in jobs)
    assert (found.requests, found.prefixes) == (len(jobs), len(by_prompt))


# --- bounded memory -------------------------------------------------------------------------------


def test_many_prefixes_are_folded_into_one_sum() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(50), system=LONG, cached=32)
    for number in range(10 * MOST_PREFIXES):
        answer(ledger, ["row"], system=f"prompt {number}", cached=1)
    assert len(ledger._prefixes) <= MOST_PREFIXES
    servers = FakeServers()
    found = receipt(ledger, servers)
    assert found.prefixes == 10 * MOST_PREFIXES + 1
    assert found.requests == 10 * MOST_PREFIXES + 50
    assert found.cached_tokens == 50 * 32 + 10 * MOST_PREFIXES
    assert found.expected_tokens == 49 * 32, "the prompt that is used most is never folded"
    assert servers.tokenized < 40
    (warning,) = found.warnings
    assert "2,610 requests begin in 2,561 different ways" in warning


# --- the servers' own counters --------------------------------------------------------------------


def begun(ledger: CacheLedger, servers: FakeServers, *bases: str) -> None:
    async def begin() -> None:
        for base in bases:
            await ledger.begin(servers, base, request("first", LONG))

    asyncio.run(begin())


def test_the_time_to_the_first_token_is_that_of_this_job() -> None:
    ledger = CacheLedger()
    servers = FakeServers(counted={A: ServerCounters(9, 9, 9, 100, 50), B: NOTHING})
    begun(ledger, servers, A, B)
    answer(ledger, rows(60), system=LONG, cached=32)
    answer(ledger, rows(40), base=B, system=LONG, cached=32)
    servers.counted = {A: ServerCounters(6009, 9, 9, 130, 110), B: ServerCounters(4000, 0, 0, 10, 40)}
    assert receipt(ledger, servers).first_token_s == (30 + 10) / 100
    servers.counted[B] = ServerCounters(4000, 0, 0, 1000, 400)
    assert receipt(ledger, servers).first_token_s is None, "most of these were others' answers"
    servers.counted = {}
    assert receipt(ledger, servers).first_token_s is None


def test_untold_tokens_are_read_from_the_counters_where_nobody_else_asks() -> None:
    ledger = CacheLedger()
    servers = FakeServers(counted={A: ServerCounters(500, 100, 0, 0, 0)})
    begun(ledger, servers, A)
    answer(ledger, rows(100), system=LONG, cached=None)
    servers.counted[A] = ServerCounters(500 + 10_000, 100 + 3168, 0, 0, 0)
    found = receipt(ledger, servers)
    assert found.cached_tokens == 3168
    (warning,) = found.warnings
    assert "the servers' own counters; start vLLM with --enable-prompt-tokens-details" in warning
    for others in (servers.counted | {A: ServerCounters(50_000, 4000, 0, 0, 0)}, {}):
        found = receipt(ledger, replace(servers, counted=others))
        assert found.cached_tokens is None
        assert found.hit_rate is None
        assert "is unknown" in found.warnings[0]


def test_a_server_that_lost_its_counters_is_no_source() -> None:
    ledger = CacheLedger()
    servers = FakeServers(counted={A: ServerCounters(50_000, 100, 0, 0, 0)})
    begun(ledger, servers, A)
    answer(ledger, rows(100), system=LONG, cached=None)
    servers.counted[A] = ServerCounters(3000, 2900, 0, 0, 0)
    assert receipt(ledger, servers).cached_tokens is None


def test_a_few_untold_answers_are_told() -> None:
    ledger = CacheLedger()
    answer(ledger, rows(98), system=LONG, cached=32)
    answer(ledger, rows(2), system=LONG, cached=None)
    assert receipt(ledger).warnings[0].startswith("2 answers do not tell")


# --- causes ---------------------------------------------------------------------------------------


def short_job(cached: int = 0, count: int = 100) -> CacheLedger:
    ledger = CacheLedger()
    answer(ledger, rows(count), system=LONG, cached=cached)
    return ledger


def told(ledger: CacheLedger, servers: FakeServers) -> str:
    (warning,) = receipt(ledger, servers).warnings
    assert "\n" not in warning
    return warning


def test_all_well() -> None:
    assert receipt(short_job(cached=32)).warnings == ()
    assert receipt(short_job(cached=29)).warnings == (), "nine tenths of it will do"


def test_too_few_requests_to_tell() -> None:
    assert receipt(short_job(count=29)).warnings == ()
    assert receipt(short_job(count=30)).warnings != ()


def test_caching_is_off() -> None:
    facts = replace(FACTS, caching=False)
    assert "the prefix cache of http://a/v1 is off" in told(short_job(), FakeServers({A: facts}))


def test_the_block_is_larger_than_what_is_shared() -> None:
    warning = told(short_job(), FakeServers({A: replace(FACTS, block_size=39)}))
    assert "whole blocks of 39 tokens, and the requests share 38" in warning
    assert receipt(short_job(38), FakeServers({A: replace(FACTS, block_size=38)})).warnings == ()


def test_a_chat_template_that_writes_the_time() -> None:
    ledger, servers = CacheLedger(), FakeServers(tokens=lambda messages: ["06:28", *words(messages)])
    begun(ledger, servers, A)
    answer(ledger, rows(100), system=LONG)
    assert "no cause is to be seen" in told(ledger, servers)
    assert "chat template" in told(
        ledger, replace(servers, tokens=lambda messages: ["06:29", *words(messages)])
    )


def test_the_kv_cache_is_too_small() -> None:
    ledger, servers = CacheLedger(), FakeServers(counted={A: NOTHING})
    begun(ledger, servers, A)
    answer(ledger, rows(100), system=LONG)
    servers.counted[A] = ServerCounters(10_000, 0, 7, 0, 0)
    assert "the KV cache is too small" in told(ledger, servers)
    assert "7 requests" in told(ledger, servers)
    assert "100% was in use" in told(short_job(), FakeServers(fullest=1.0))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            replace(FACTS, window=True, retains=False),
            "--prefix-cache-retention-interval None, as `pld serve`",
        ),
        (replace(FACTS, window=True, retains=True), "vLLM retains all that it can already"),
        (replace(FACTS, window=False, retains=False), "runs without --prefix-cache-retention-interval None"),
        (replace(FACTS, window=None, retains=None), "more servers than the address names"),
        (FACTS, "a cache_salt that changes between requests would do it"),
    ],
)
def test_what_is_left(facts: ServerFacts, said: str) -> None:
    assert said in told(short_job(), FakeServers({A: facts}))


def test_two_prompts_are_no_fault() -> None:
    ledger = short_job(cached=32)
    answer(ledger, rows(100), system=LONG + " and more", cached=32)
    found = receipt(ledger)
    assert (found.prefixes, found.warnings) == (2, ())


def test_a_beginning_that_changes_with_each_row() -> None:
    ledger = CacheLedger()
    for row in rows(40):
        answer(ledger, [row], system=f"{row} {LONG}")
    assert "40 requests begin in 40 different ways" in told(ledger, FakeServers())


def test_no_text_of_a_row_is_in_a_receipt() -> None:
    ledger = CacheLedger()
    answer(ledger, [f"SECRET{n}" for n in range(100)], system=LONG)
    assert "SECRET" not in repr(receipt(ledger))
