"""Keys and values of an image in a language model: computed once, reused for every question about the image.

The image comes first in the prompt and attention only looks back, so keys and values up to the image's last token do
not depend on the question.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LOOKS_BACK = ("idefics3", "internvl", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
"""Model types whose image tokens never attend to the question. Others may (PaliGemma's do) without any error.

Qwen3.5 and LFM2-VL look back, too, but most of their layers keep a state instead of keys and values of every token;
Gemma 4's layers have heads of two sizes, and some keep a window: all three are answered by `generate`.
"""
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
Prepared = dict[str, Any]
"""A processor's output for the head of a prompt with its image: one row of tokens, and the vision tower's inputs."""


class NoPrefixError(Exception):
    """The model's cache does not hold keys and values of every token."""


@dataclass(frozen=True)
class Prefix:
    """An image in the language model's cache."""

    ids: tuple[int, ...]
    """Tokens of the prompt up to the image's last one."""
    cache: Tensor
    """(layers, 2, heads, tokens, width): keys and values."""
    next_position: int
    """Rotary position of the first token after it."""


def prepare(processor: Any, head: str, image: Image) -> Prepared:
    """Tensors of the prompt's head, which ends with the image token."""
    made = processor(text=[head], images=[[image]], add_special_tokens=False, return_tensors="pt")
    return dict(made)


def n_values(prepared: Prepared) -> int:
    """How many values the vision tower is given."""
    return sum(value.numel() for key, value in prepared.items() if key not in TEXT_INPUTS)


def split(processor: Any, prompt: str) -> tuple[str, list[int]] | None:
    """(text up to and including the image token, tokens after it); None without exactly one image, or text after it.

    What follows the image is tokenized with the image token before it.
    """
    if not (image_token := getattr(processor, "image_token", None)):
        return None
    head, found, tail = prompt.partition(image_token)
    if not found or image_token in tail:
        return None
    ids: list[int] = processor.tokenizer(image_token + tail, add_special_tokens=False)["input_ids"]
    after = ids[ids.index(processor.tokenizer.convert_tokens_to_ids(image_token)) + 1 :]
    return (head + image_token, after) if after else None


def collated(prepared: Sequence[Prepared], pad_id: int) -> Prepared:
    """Several images as one batch, text padded on the right, tiles of Idefics3 padded with zeros."""
    batch = {}
    for key in prepared[0]:
        parts = [one[key] for one in prepared]
        if key in TEXT_INPUTS:
            rows, padding = [part[0] for part in parts], pad_id if key == "input_ids" else 0
            batch[key] = pad_sequence(rows, batch_first=True, padding_value=padding)
        elif key not in ("pixel_values", "pixel_attention_mask") or len({part.shape[1:] for part in parts}) == 1:
            batch[key] = torch.cat(parts)
        else:
            largest = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
            batch[key] = parts[0].new_zeros(len(parts), *largest)
            for row, part in zip(batch[key], parts, strict=True):
                row[tuple(slice(n) for n in part.shape[1:])] = part[0]
    return batch


@torch.inference_mode()
def see(model: Any, prepared: Sequence[Prepared], pad_id: int) -> list[Prefix]:
    """Run vision tower and language model over several images. NoPrefixError where that leaves no prefix."""
    inputs = collated(prepared, pad_id)
    moved = {
        key: value.to(model.device, dtype=model.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    cache = model.base_model(**moved, use_cache=True).past_key_values
    # of Qwen's models: position minus number of tokens, because an image's tokens share positions
    late = getattr(model.base_model, "rope_deltas", None)
    shifts = [0] * len(prepared) if late is None else late.flatten().tolist()
    lengths = [one["input_ids"].shape[1] for one in prepared]
    whole = _stacked(cache)
    return [
        Prefix(tuple(one["input_ids"][0].tolist()), whole[:, :, row, :, :n].contiguous(), n + int(shift))
        for row, (one, n, shift) in enumerate(zip(prepared, lengths, shifts, strict=True))
    ]


def _stacked(cache: Any) -> Tensor:
    """(layers, 2, rows, heads, tokens, width) of a transformers cache."""
    layers = getattr(cache, "layers", ())
    shapes = {part.shape for layer in layers if type(layer) is DynamicLayer for part in (layer.keys, layer.values)}
    if len(shapes) != 1 or any(type(layer) is not DynamicLayer for layer in layers):
        raise NoPrefixError
    return torch.stack([torch.stack((layer.keys, layer.values)) for layer in layers])


class PrefixStore:
    """Prefixes of images that are still in memory, least recently used ones dropped above a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.held_bytes = max_bytes, 0
        self._kept: OrderedDict[tuple[int, str], tuple[weakref.ref[Image], Prefix]] = OrderedDict()

    def get(self, image: Image, head: str) -> Prefix | None:
        """The prefix of this image object, not of an equal one, after this head of a prompt; None: not stored."""
        reference, prefix = self._kept.get((id(image), head), (None, None))
        if reference is None or reference() is not image:  # another image may have got a deleted one's address
            return None
        self._kept.move_to_end((id(image), head))
        return prefix

    def put(self, image: Image, head: str, prefix: Prefix) -> None:
        """Keep a prefix while its image is alive and it fits."""
        self._drop((id(image), head))
        self._kept[id(image), head] = (weakref.ref(image), prefix)
        self.held_bytes += prefix.cache.nbytes
        while self.held_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def sweep(self) -> None:
        """Drop the prefixes of deleted images."""
        for key in [key for key, (reference, _) in self._kept.items() if reference() is None]:
            self._drop(key)

    def clear(self) -> None:
        """Drop all."""
        self._kept.clear()
        self.held_bytes = 0

    def _drop(self, key: tuple[int, str]) -> None:
        if key in self._kept:
            self.held_bytes -= self._kept.pop(key)[1].cache.nbytes
