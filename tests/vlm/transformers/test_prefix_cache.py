"""What is kept of an image: for as long as it lives and there is room, and padded without a trace."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from mpa_edge.vlm.transformers import prefix_cache
from mpa_edge.vlm.transformers.prefix_cache import NoPrefixError, Prefix, PrefixStore


def kept(n_tokens: int) -> Prefix:
    """800 bytes a token."""
    return Prefix(tuple(range(n_tokens)), torch.zeros(5, 2, 1, n_tokens, 20), n_tokens)


def new_image() -> Image.Image:
    return Image.new("RGB", (2, 2))


def test_an_image_is_known_by_itself_and_not_by_its_looks() -> None:
    store, one, twin = PrefixStore(10**6), new_image(), new_image()
    store.put(one, "head", kept(3))
    assert store.get(one, "head") is not None
    assert store.get(one, "other head") is None
    assert store.get(twin, "head") is None


def test_an_image_that_is_gone_leaves_nothing() -> None:
    store, one = PrefixStore(10**6), new_image()
    store.put(one, "head", kept(3))
    assert store.held_bytes == 2400
    del one
    gc.collect()
    store.sweep()
    assert store.held_bytes == 0


def test_the_address_of_a_dead_image_is_not_mistaken_for_it() -> None:
    store, one = PrefixStore(10**6), new_image()
    store.put(one, "head", kept(3))
    ((key, (_, stored)),) = store._kept.items()
    store._kept[key] = (lambda: None, stored)
    assert store.get(one, "head") is None


def test_what_was_used_last_stays() -> None:
    store, images = PrefixStore(2400), [new_image() for _ in range(4)]
    for one in images[:3]:
        store.put(one, "", kept(1))
    store.get(images[0], "")
    store.put(images[3], "", kept(1))
    assert [store.get(one, "") is not None for one in images] == [True, False, True, True]
    store.put(images[0], "", kept(2))
    assert store.held_bytes == 2400
    store.put(images[0], "", kept(4))
    assert store.held_bytes == 0


@pytest.mark.parametrize("text", ["no image", "<image> and <image>"])
def test_only_a_prompt_with_one_image_has_a_prefix(text: str) -> None:
    assert prefix_cache.split(SimpleNamespace(image_token="<image>"), text) is None


def test_images_of_other_sizes_are_padded_with_zeros() -> None:
    def one(n_tokens: int, *shape: int) -> prefix_cache.Prepared:
        ids = torch.ones(1, n_tokens, dtype=torch.long)
        pixels = torch.ones(1, *shape)
        return {
            "input_ids": ids,
            "attention_mask": ids,
            "pixel_values": pixels,
            "pixel_attention_mask": pixels[:, :, 0],
        }

    batch = prefix_cache.collated([one(2, 1, 3, 4, 5), one(4, 2, 3, 3, 6)], pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 1, 9, 9], [1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["pixel_values"].shape == (2, 2, 3, 4, 6)
    assert batch["pixel_values"].sum((1, 2, 3, 4)).tolist() == [60, 108]
    assert batch["pixel_attention_mask"].sum((1, 2, 3)).tolist() == [20, 36]


def test_a_memory_that_forgets_is_no_prefix() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=4)]
    cache.layers[0].update(torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4))
    with pytest.raises(NoPrefixError):
        prefix_cache._stacked(cache)
    with pytest.raises(NoPrefixError):
        prefix_cache._stacked(None)
