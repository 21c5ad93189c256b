"""Counting tokens and money: before a request is sent, so that a limit is kept, and after."""

from __future__ import annotations

from dataclasses import dataclass

from mpa_edge.types import TeacherUsage

MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """For a million tokens, in the user's currency; None: nobody said."""

    tokens_in: float | None = None
    """Of prompts and images."""
    tokens_out: float | None = None
    """Of answers."""

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost.

        >>> Prices(2.0, 10.0).cost(1_000_000, 100_000)
        3.0
        """
        if self.tokens_in is None or self.tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / MILLION


def add(one: TeacherUsage, other: TeacherUsage) -> TeacherUsage:
    """Both together; the cost is unknown where one of them is."""
    cost = None if one.cost is None or other.cost is None else one.cost + other.cost
    counts = {name: getattr(one, name) + getattr(other, name) for name in TeacherUsage.model_fields if name != "cost"}
    return TeacherUsage(**counts, cost=cost)


class Meter:
    """Adds up what was used, and says whether one more request stays below the limit.

    A request on its way holds a reserve: the largest prompt seen so far, and every new token that it may write. An
    attempt that was sent and came to nothing is booked as its reserve: the server may have done the work.
    """

    def __init__(self, prices: Prices, max_cost: float | None, spent_before: float = 0.0) -> None:
        self._prices, self._max_cost, self._spent_before = prices, max_cost, spent_before
        self._reserved = 0.0
        self._largest_prompt: int | None = None
        self.usage = TeacherUsage(cost=prices.cost(0, 0))

    @property
    def blind(self) -> bool:
        """Whether there is a limit and nobody knows yet how large a prompt is: then one request goes ahead alone."""
        return self._max_cost is not None and self._largest_prompt is None

    def reserve(self, max_new_tokens: int) -> float | None:
        """Hold back what a request may cost; None where the limit might not be kept."""
        need = self._prices.cost(self._largest_prompt or 0, max_new_tokens) or 0.0
        spent = self._spent_before + (self.usage.cost or 0.0)
        if self._max_cost is not None and spent + self._reserved + need > self._max_cost:
            return None
        self._reserved += need
        return need

    def release(self, reserve: float) -> None:
        """The server did not take the request: it costs nothing."""
        self._reserved -= reserve
        self.usage = add(self.usage, TeacherUsage(failures=1, cost=0.0))

    def lose(self, reserve: float) -> None:
        """It was sent and nothing usable came back: the server may count it, so the reserve is booked."""
        self._reserved -= reserve
        self.usage = add(self.usage, TeacherUsage(failures=1, cost=reserve))

    def settle(self, reserve: float, tokens_in: int | None, tokens_out: int | None) -> None:
        """A reply came; its tokens take the place of the reserve, where the server counted them."""
        self._reserved -= reserve
        self._largest_prompt = max(self._largest_prompt or 0, tokens_in or 0)
        counted = tokens_in is not None and tokens_out is not None
        cost = self._prices.cost(tokens_in or 0, tokens_out or 0) if counted else reserve
        more = TeacherUsage(
            requests=1, tokens_in=tokens_in or 0, tokens_out=tokens_out or 0, uncounted=int(not counted), cost=cost
        )
        self.usage = add(self.usage, more)
