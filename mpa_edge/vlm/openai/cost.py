"""Counting tokens and money: before a request is sent, so that a limit is kept, and after."""

from __future__ import annotations

from mpa_edge.types import TeacherUsage


def add(one: TeacherUsage, other: TeacherUsage) -> TeacherUsage:
    """The sum of both; its cost is unknown where one of them is."""
    cost = None if one.cost is None or other.cost is None else one.cost + other.cost
    counts = {name: getattr(one, name) + getattr(other, name) for name in TeacherUsage.model_fields if name != "cost"}
    return TeacherUsage(**counts, cost=cost)


class Meter:
    """Adds up what was used, and decides whether one more request stays within the limit.

    A request on its way holds a reserve: the largest prompt seen so far, and every new token that it may write. An
    attempt that was sent without a usable reply costs its reserve: the server may have done the work.
    """

    def __init__(
        self,
        price_in: float | None = None,
        price_out: float | None = None,
        max_cost: float | None = None,
        spent_before: float = 0.0,
    ) -> None:
        """Prices are per million tokens, of prompts with their images and of answers; None: unknown.

        `spent_before` counts towards `max_cost`.
        """
        self._price_in, self._price_out = price_in, price_out
        self._max_cost, self._spent_before = max_cost, spent_before
        self._on_their_way, self._reserved = 0, 0.0
        self._largest_prompt: int | None = None
        self._ended = TeacherUsage(cost=self.cost(0, 0))

    @property
    def usage(self) -> TeacherUsage:
        """What was used. A request on its way counts as a failed attempt: whoever ends now has paid for it."""
        return add(self._ended, TeacherUsage(failures=self._on_their_way, cost=self._reserved))

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """The price of some tokens.

        >>> Meter(2.0, 10.0).cost(1_000_000, 100_000)
        3.0
        """
        if self._price_in is None or self._price_out is None:
            return None
        return (tokens_in * self._price_in + tokens_out * self._price_out) / 1_000_000

    @property
    def is_blind(self) -> bool:
        """Whether there is a limit and the size of a prompt is still unknown: then one request goes ahead alone."""
        return self._max_cost is not None and self._largest_prompt is None

    def reserve(self, max_new_tokens: int) -> float | None:
        """Reserve what a request may cost; None where that could exceed the limit."""
        need = self.cost(self._largest_prompt or 0, max_new_tokens) or 0.0
        spent = self._spent_before + (self.usage.cost or 0.0)
        if self._max_cost is not None and spent + need > self._max_cost:
            return None
        self._on_their_way, self._reserved = self._on_their_way + 1, self._reserved + need
        return need

    def fail(self, reserve: float, *, sent: bool) -> None:
        """No usable reply came. The reserve is booked if the request was `sent`, else it is free again."""
        self._book(reserve, TeacherUsage(failures=1, cost=reserve if sent else 0.0))

    def _book(self, reserve: float, used: TeacherUsage) -> None:
        self._on_their_way -= 1
        # sums of floats that are taken back leave a rest
        self._reserved = self._reserved - reserve if self._on_their_way else 0.0
        self._ended = add(self._ended, used)

    def settle(self, reserve: float, tokens_in: int | None, tokens_out: int | None) -> None:
        """A reply came: its tokens are booked in place of the reserve; None where the server does not count them."""
        self._largest_prompt = max(self._largest_prompt or 0, tokens_in or 0) or None
        counted = tokens_in is not None and tokens_out is not None
        cost = self.cost(tokens_in or 0, tokens_out or 0) if counted else reserve
        more = TeacherUsage(
            requests=1, tokens_in=tokens_in or 0, tokens_out=tokens_out or 0, uncounted=int(not counted), cost=cost
        )
        self._book(reserve, more)
