"""What models cost: the user's `[prices]`, then the table that comes with the package."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from engine.config import PriceConfig
from engine.ports import Price


def price_of(model: str, prices: Mapping[str, PriceConfig]) -> Price | None:
    """The price of the model that servers call `model`; None where neither table has it."""
    known = prices.get(model) or built_in_prices().get(model)
    return None if known is None else Price(known.input, known.output)


@cache
def built_in_prices() -> Mapping[str, PriceConfig]:
    """The table of `prices.toml`, by model name."""
    document = tomllib.loads((files("adapters") / "prices.toml").read_text(encoding="utf-8"))
    return {
        name: PriceConfig.model_validate(price)
        for group in document["groups"]
        for name, price in group["models"].items()
    }
