"""Gemma 4 may think before it answers: no runtime gives its thoughts for the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.onnxruntime.model import OnnxVLM
from mpa_edge.vlm.shared.prompts import THOUGHT
from mpa_edge.vlm.transformers.checkpoint import load_processor
from mpa_edge.vlm.transformers.model import TransformersVLM
from tests.vlm.exported import checkpoint, onnx_folder
from tests.vlm.llama_exported import gguf_folder

pytestmark = [pytest.mark.peer, pytest.mark.slow]
WHERE = {"transformers": checkpoint, "onnx": onnx_folder, "gguf": gguf_folder}
KINDS: dict[str, Any] = {"transformers": TransformersVLM, "onnx": OnnxVLM, "gguf": LlamaCppVLM}
ASKED = Request(Image.new("RGB", (96, 96)), "Which colour?", 64)


def written(*parts: str) -> list[int]:
    tokenizer = load_processor(str(checkpoint("gemma4"))).tokenizer
    return [token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]]


def said(runtime: str, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> str:
    """The answer of a model that writes these tokens."""
    options = {"device": "cpu"} if runtime == "transformers" else {}
    vlm = KINDS[runtime](str(WHERE[runtime]("gemma4")), name="it", threads=1, **options)
    if runtime == "transformers":
        return vlm._reply(tokens, ASKED).text
    if runtime == "gguf":
        monkeypatch.setattr(vlm, "_tokens", lambda *_: iter((token, np.zeros(1)) for token in tokens))
        return vlm.answer([ASKED])[0].text
    return vlm.tokenizer.decode(tokens)


@pytest.mark.parametrize("runtime", WHERE)
def test_the_answer_is_what_follows_the_thought(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = THOUGHT
    thinking = written(start, "thought\nblue? ", end, "red")
    assert said(runtime, [*thinking, *written("<turn|>")], monkeypatch) == "red"
    assert said(runtime, thinking[:3], monkeypatch) == ""
