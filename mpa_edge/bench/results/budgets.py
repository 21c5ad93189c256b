"""What the target allows against what was measured."""

from __future__ import annotations

from typing import Literal

from mpa_edge.bench.results.records import BudgetLine, Figure, MemoryResult
from mpa_edge.config.target import Budgets

Name = Literal["memory_bytes", "ttft_s", "tokens_per_s"]


def budget_lines(
    budgets: Budgets, latency: dict[str, Figure], memory: MemoryResult, counts: bool
) -> tuple[BudgetLine, ...]:
    """One line a budget. `counts`: whether figures of this run may be judged at all (not emulated, not throttled).

    The time to the first token is held against its median, as the target's budget is meant for a usual question.

    >>> made = budget_lines(Budgets(memory_bytes=2_000_000, ttft_s=2.0, tokens_per_s=10.0), {},
    ...                     MemoryResult(peak_bytes=1_000_000, method="VmHWM"), True)
    >>> [(line.name, line.met, line.by) for line in made]
    [('memory_bytes', True, 0.5), ('ttft_s', None, None), ('tokens_per_s', None, None)]
    """
    ttft, speed = (latency[name].p50 if name in latency else None for name in ("ttft_s", "tokens_per_s"))
    return (
        at_most("memory_bytes", float(budgets.memory_bytes), memory.peak_bytes if counts else None),
        at_most("ttft_s", budgets.ttft_s, ttft if counts else None),
        at_least("tokens_per_s", budgets.tokens_per_s, speed if counts else None),
    )


def at_most(name: Name, limit: float, measured: float | None) -> BudgetLine:
    """A line of what must not be larger.

    >>> at_most("ttft_s", 2.0, 3.0).by
    -0.5
    """
    by = None if measured is None else round((limit - measured) / limit, 4)
    met = None if measured is None else measured <= limit
    return BudgetLine(name=name, limit=limit, measured=measured, met=met, by=by)


def at_least(name: Name, limit: float, measured: float | None) -> BudgetLine:
    """A line of what must not be smaller.

    >>> at_least("tokens_per_s", 10.0, 15.0).by
    0.5
    """
    by = None if measured is None else round((measured - limit) / limit, 4)
    met = None if measured is None else measured >= limit
    return BudgetLine(name=name, limit=limit, measured=measured, met=met, by=by)


def within(lines: tuple[BudgetLine, ...]) -> bool:
    """Whether every budget is met; one that cannot be judged is not."""
    return all(line.met is True for line in lines)
