"""The cap on cost, shared by all lanes of a run (C4)."""

from __future__ import annotations

import asyncio
import math

from engine.errors import BudgetError

# Sums are kept in whole 1e-12 dollars: floats drift, and a drifting sum could pass the cap.
_PER_USD = 10**12


class Budget:
    """Fail-closed: what a request may cost at most is set aside before it is sent.

    `spent_usd` is what earlier attempts at the same run have already paid.
    """

    def __init__(self, max_cost_usd: float, *, spent_usd: float = 0.0) -> None:
        if not 0 <= max_cost_usd < math.inf:
            raise ValueError(f"the cap on cost must be 0 or more dollars, not {max_cost_usd}")
        self.max_cost_usd = max_cost_usd
        self._cap = math.floor(max_cost_usd * _PER_USD)
        self._spent = _units(spent_usd)
        self._reserved = 0
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def spent_usd(self) -> float:
        """What is settled so far."""
        return self._spent / _PER_USD

    @property
    def reserved_usd(self) -> float:
        """What requests now under way may still cost."""
        return self._reserved / _PER_USD

    def fits(self, cost_usd: float) -> bool:
        """Whether `cost_usd` more can be set aside now. Free requests always fit."""
        need = _units(cost_usd)
        return need == 0 or self._spent + self._reserved + need <= self._cap

    async def reserve(self, cost_usd: float, model: str) -> None:
        """Set `cost_usd` aside; waits while requests under way may turn out cheaper.

        Raises `BudgetError` when nothing is under way and it would still not fit.
        """
        while not self.fits(cost_usd):
            if self._reserved == 0:
                raise BudgetError(
                    f"the cap of ${self.max_cost_usd:g} could be passed: ${self.spent_usd:.4f} is spent and "
                    f"the next request to {model} can cost up to ${cost_usd:.4f}; raise the cap and run the "
                    "same command again (what is answered is saved)"
                )
            settled = asyncio.get_running_loop().create_future()
            self._waiters.append(settled)
            await settled
        self.take(cost_usd)

    def take(self, cost_usd: float) -> None:
        """Set `cost_usd` aside now; only where it `fits`."""
        self._reserved += _units(cost_usd)

    def settle(self, reserved_usd: float, used_usd: float | None) -> None:
        """Replace what was set aside by what it cost; None: unknown, it counts in full."""
        reserved = _units(reserved_usd)
        self._reserved -= reserved
        self._spent += reserved if used_usd is None else _units(used_usd)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _units(usd: float) -> int:
    # rounded up, but not by the float's own last bit
    return math.ceil(round(usd * _PER_USD, 3))
