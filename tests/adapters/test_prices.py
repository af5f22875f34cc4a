"""The price table that comes with the package, and what goes before it."""

from __future__ import annotations

import datetime
import tomllib

import pytest

from adapters.prices import built_in_prices, price_of
from engine.config import PriceConfig
from engine.ports import Price
from tests.conftest import ROOT

DOCUMENT = tomllib.loads((ROOT / "adapters" / "prices.toml").read_text(encoding="utf-8"))


def test_the_user_s_price_goes_before_the_built_in_one() -> None:
    assert price_of("gpt-4o-mini", {}) == Price(0.15, 0.6)
    mine = {"gpt-4o-mini": PriceConfig(input=1, output=2), "Qwen/Qwen3-8B": PriceConfig(input=0.1)}
    assert price_of("gpt-4o-mini", mine) == Price(1, 2)
    assert price_of("Qwen/Qwen3-8B", mine) == Price(0.1, 0.0)


@pytest.mark.parametrize("name", ["", "gpt-4o-mini-2024-07-18", "GPT-4o", "nobody/knows", "openai:gpt-4o"])
def test_an_unknown_price_is_not_guessed(name: str) -> None:
    assert price_of(name, {}) is None


def test_free_is_a_price_that_can_be_set() -> None:
    assert price_of("gpt-4o", {"gpt-4o": PriceConfig(input=0)}) == Price()


def test_every_group_says_where_and_when() -> None:
    for group in DOCUMENT["groups"]:
        assert set(group) == {"source", "date", "models"}
        assert group["source"].startswith("https://")
        assert type(group["date"]) is datetime.date


def test_no_model_stands_twice_and_each_costs_something() -> None:
    names = [name for group in DOCUMENT["groups"] for name in group["models"]]
    assert len(names) == len(set(names)) == len(built_in_prices())
    for name, price in built_in_prices().items():
        assert price.input > 0
        assert (price.output == 0) is ("embedding" in name)
        assert price.output == 0 or price.output >= price.input
