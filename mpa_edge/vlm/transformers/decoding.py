"""Decoding from prefixes: the rest of each prompt in one step, then token by token; rows that have ended drop out.

A batch's cache is allocated once, at its full length: nothing is copied when a token is added.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from mpa_edge.vlm.transformers.prefix_cache import Prefix
from mpa_edge.vlm.transformers.sampling import Choice

if TYPE_CHECKING:
    from torch import Tensor

SHRINK_AT = 0.75
"""A batch is copied without its ended rows once at most this share is left: all copies together stay below four."""


@dataclass(frozen=True)
class Row:
    """One request of a batch."""

    prefix: Prefix
    """Of its image."""
    tail: Sequence[int]
    """Tokens after the image; at least one."""
    limit: int
    """Number of new tokens, the end token included."""


class FilledLayer(DynamicLayer):
    """One layer of a cache whose memory is allocated in advance."""

    def __init__(self, keys: Tensor, values: Tensor, n_tokens: int) -> None:
        """(rows, heads, capacity, width) each, of which the first `n_tokens` are filled."""
        super().__init__()
        self.memory = (keys, values)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = (part[:, :, :n_tokens] for part in self.memory)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append tokens; returns the filled part."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for part, new in zip(self.memory, (key_states, value_states), strict=True):
            part[:, :, start:end] = new
        self.keys, self.values = (part[:, :, :end] for part in self.memory)
        return self.keys, self.values


class Batch:
    """The rows being decoded: their cache, its attention mask, and the position of each row's next token."""

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        self.model = model
        self.rotates_in_3d = hasattr(model.base_model, "get_rope_index")
        n_prefix, n_tail = max(len(row.prefix.ids) for row in rows), max(len(row.tail) for row in rows)
        capacity = n_prefix + n_tail + max(row.limit for row in rows)
        first = rows[0].prefix.cache
        layers, two, heads, _, width = first.shape
        # zeros, not uninitialised memory: masked values are multiplied by 0, and 0 times infinity is not a number
        self.memory = first.new_zeros(layers, two, len(rows), heads, capacity, width)
        self.mask = torch.zeros(len(rows), capacity, dtype=torch.long, device=first.device)
        for i, row in enumerate(rows):
            start = n_prefix - len(row.prefix.ids)
            self.memory[:, :, i, :, start:n_prefix] = row.prefix.cache
            self.mask[i, start:n_prefix] = 1
        self.mask[:, n_prefix + n_tail :] = 1
        self.next = torch.tensor([row.prefix.next_position for row in rows], device=first.device)
        self._use_memory(n_prefix)

    def _use_memory(self, n_tokens: int) -> None:
        self.cache = Cache(layers=[FilledLayer(layer[0], layer[1], n_tokens) for layer in self.memory])

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the cache, padding included."""
        return int(self.cache.get_seq_length())

    def first(self, tails: Sequence[Sequence[int]]) -> Tensor:
        """Logits after the prompts, (rows, vocabulary)."""
        longest, device = max(map(len, tails)), self.next.device
        ids = torch.tensor([[tail[0]] * (longest - len(tail)) + list(tail) for tail in tails], device=device)
        lengths = torch.tensor([len(tail) for tail in tails], device=device)
        steps = torch.arange(longest, device=device) - (longest - lengths)[:, None]
        self.mask[:, self.n_tokens : self.n_tokens + longest] = steps >= 0
        positions = (self.next[:, None] + steps).clamp_min(0)
        self.next = self.next + lengths
        return self._forward(ids, positions)

    def then(self, tokens: Tensor) -> Tensor:
        """Logits after one more token of each row."""
        positions, self.next = self.next[:, None], self.next + 1
        return self._forward(tokens[:, None], positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.mask[:, : self.n_tokens + ids.shape[1]],
            position_ids=positions.expand(3, -1, -1) if self.rotates_in_3d else positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows and free their memory."""
        n_tokens, index = self.n_tokens, torch.tensor(rows, device=self.next.device)
        self.memory = self.memory.index_select(2, index)
        self.mask, self.next = self.mask[index], self.next[index]
        self._use_memory(n_tokens)


@torch.inference_mode()
def decode(model: Any, rows: Sequence[Row], choice: Choice, ends: Collection[int]) -> list[list[int]]:
    """New tokens of each row, up to and including its end token, or its limit."""
    batch, new = Batch(model, rows), [list[int]() for _ in rows]
    open_rows = list(range(len(rows)))  # row of the batch -> row of the request; may still hold ended ones
    tokens = choice(batch.first([row.tail for row in rows]))
    while True:
        going = []
        for place, (i, token) in enumerate(zip(open_rows, tokens.tolist(), strict=True)):
            if not _ended(new[i], rows[i], ends):
                new[i].append(token)
                going += [] if _ended(new[i], rows[i], ends) else [place]
        if not going:
            return new
        if len(going) <= SHRINK_AT * len(open_rows):
            open_rows = [open_rows[place] for place in going]
            tokens = tokens[torch.tensor(going, device=tokens.device)]
            batch.keep(going)
            choice.keep(going)
        tokens = choice(batch.then(tokens))


def _ended(tokens: Sequence[int], row: Row, ends: Collection[int]) -> bool:
    return len(tokens) >= row.limit or (bool(tokens) and tokens[-1] in ends)
