"""Is the adapter in the exported weights? Told from the base's weights B, the aligned ones A, and the exported ones E.

Along the change A - B, a faithful export lies at 1 and an export of the base at 0: t = <E - B, A - B> / |A - B|^2.
Plain t works down to about five bits. Below, rounding is no longer independent of how training moved a weight: A and B
often fall to the same side of a rounding step, and that part of the change is gone (4 bits keep 65 % of it on the
built-in student, 2 bits 17 %). So t is taken twice. From the change is removed what B alone tells about it: the t of an
export of the base is then 0 at any number of bits. Or what A alone tells: the t of a faithful export is then 1. The sum
of both is above 1 for a faithful export and below 1 for one of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CHANGED = 1e-4
"""Relative change of a tensor from which on training made it."""
BINS = 64
# coarseness is the noise of rounding over the change; a finer export can be held to all of the change
FINE, WHOLE, ERRORS = 0.6, 0.6, 3.0


@dataclass
class Slope:
    """How far an export lies along a direction, over many tensors; each counts by how little rounding blurs it."""

    pull: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """0 at the base, 1 at the aligned weights."""
        return self.pull / self.weight

    @property
    def error(self) -> float:
        """Standard error."""
        return float(self.weight**-0.5)

    def add(self, moved: Array, change: Array, direction: Array, noise: float) -> None:
        """One tensor: `moved` is where the export lies from the base."""
        self.pull += float(moved @ direction) / noise
        self.weight += float(change @ direction) / noise


@dataclass
class Adapter:
    """What the tensors of one part say."""

    from_base: Slope = field(default_factory=Slope)
    """0 for an export of the base."""
    from_aligned: Slope = field(default_factory=Slope)
    """1 for a faithful export."""
    coarseness: list[float] = field(default_factory=list)
    """Of each changed tensor: noise of rounding over the change."""

    def add(self, exported: Array, aligned: Array, base: Array) -> None:
        """Look at one tensor; nothing happens where training did not change it."""
        e, a, b = (one.astype(np.float64).reshape(-1) for one in (exported, aligned, base))
        change = a - b
        if np.linalg.norm(change) <= CHANGED * np.linalg.norm(b):
            return
        noise = min(float(np.var(e - a)), float(np.var(e - b))) + (1e-4 * float(np.std(a))) ** 2
        self.from_base.add(e - b, change, unexplained(change, b), noise)
        self.from_aligned.add(e - b, change, unexplained(change, a), noise)
        self.coarseness.append(float(np.sqrt(noise / np.var(change))))

    @property
    def side(self) -> float:
        """Above 0 for a rounding of the aligned weights, below for one of the base's; 1 and -1 without rounding."""
        return self.from_base.value + self.from_aligned.value - 1

    @property
    def is_in(self) -> bool:
        """Whether the adapter is in the export, as far as rounding lets one tell."""
        wanted = WHOLE if self.is_fine else 0.0
        return self.side + ERRORS * 2 * self.from_base.error >= wanted

    @property
    def is_base(self) -> bool:
        """Whether it is all of the adapter that is missing, not a part."""
        return self.side < (-WHOLE if self.is_fine else 0.0)

    @property
    def is_fine(self) -> bool:
        """Whether rounding is so fine that every part of the change must show."""
        return bool(np.mean(self.coarseness) < FINE)

    def summary(self) -> Iterator[tuple[str, float]]:
        """For the manifest; nothing where no tensor was changed."""
        if self.coarseness:
            yield "change_kept", round(self.from_base.value, 4)
            yield "side", round(self.side, 4)
            yield "side_error", round(2 * self.from_base.error, 4)
            yield "rounding_over_change", round(float(np.mean(self.coarseness)), 4)


def unexplained(change: Array, known: Array) -> Array:
    """What the values `known` do not tell about the change: its mean over weights of the same size is taken out.

    >>> unexplained(np.array([1.0, 3.0]), np.array([5.0, 5.1])).tolist()
    [0.0, 0.0]
    """
    order = np.empty(len(known), np.int64)
    order[np.argsort(known, kind="stable")] = np.arange(len(known))
    place = order * min(BINS, len(known)) // len(known)
    means = np.bincount(place, change) / np.bincount(place)
    return np.asarray(change - means[place])
