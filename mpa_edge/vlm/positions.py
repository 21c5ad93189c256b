"""Where each token of a prompt stands for the decoder: a plain count, or Qwen's three axes (M-RoPE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def counted(n: int) -> NDArray[np.int64]:
    """(n,) 0, 1, 2, ..."""
    return np.arange(n, dtype=np.int64)


def three_axes(ids: Sequence[int], image_id: int, grid: Sequence[int]) -> NDArray[np.int64]:
    """(3, n) time, row and column of each token; all three are the same in a text.

    `grid` is (frames, rows, columns) of the picture's tokens, patches already merged. Behind a picture the count goes
    on from its largest coordinate. Source: Wang et al. 2024, "Qwen2-VL", section 2.1, figure 3.

    >>> three_axes([7, 9, 9, 9, 9, 7], 9, (1, 2, 2)).tolist()
    [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    """
    first = list(ids).index(image_id)
    n_image = int(np.prod(grid))
    picture = np.indices(tuple(grid)).reshape(3, -1) + first
    after = counted(len(ids) - first - n_image) + first + max(grid)
    text = [np.broadcast_to(part, (3, len(part))) for part in (counted(first), after)]
    return np.concatenate([text[0], picture, text[1]], axis=1).astype(np.int64)


def left_padded(rows: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """Rows of (n,) as (B, length), or of (3, n) as (3, B, length); padding stands at 1, where nobody looks.

    >>> left_padded([np.array([0, 1])], 3).tolist()
    [[1, 0, 1]]
    """
    padded = [np.pad(row, [(0, 0)] * (row.ndim - 1) + [(length - row.shape[-1], 0)], constant_values=1) for row in rows]
    return np.stack(padded, axis=-2)
