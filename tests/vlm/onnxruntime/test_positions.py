"""Positions of tokens against transformers, for any grid."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.vlm.onnxruntime.sessions import left_padded, mrope_positions
from tests.families import zoo


@functools.cache
def base(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(zoo.checkpoint(model_type))
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@settings(deadline=None)  # the first one builds a model
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_three_axes_are_those_of_transformers(
    model_type: str, before: int, rows: int, columns: int, after: int
) -> None:
    model = base(model_type)
    image_id = model.config.image_token_id
    ids = [1] * before + [image_id] * (rows * columns) + [2] * after
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    kinds = (torch.tensor([ids]) == image_id).int()
    expected, _ = model.get_rope_index(
        torch.tensor([ids]), mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=torch.ones(1, len(ids)).long()
    )
    found = mrope_positions(ids, image_id, (1, rows, columns))
    np.testing.assert_array_equal(found, expected[:, 0].numpy())
    assert found.dtype == np.int64


def test_padding_goes_to_the_left() -> None:
    rows = [np.arange(2), np.arange(3)]
    assert left_padded(rows, 4).tolist() == [[1, 1, 0, 1], [1, 0, 1, 2]]
    deep = [np.stack([row] * 3) for row in rows]
    assert left_padded(deep, 3).shape == (3, 2, 3)
    assert left_padded(deep, 3)[1].tolist() == [[1, 0, 1], [0, 1, 2]]
