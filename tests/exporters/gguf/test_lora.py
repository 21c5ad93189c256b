"""An adapter for llama.cpp: with its base it is what peft makes of both, in every family, whatever scales it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mpa_edge.errors import MpaError
from mpa_edge.exporters import adapter as incoming
from mpa_edge.exporters.gguf import lora
from mpa_edge.exporters.source import Source
from mpa_edge.families import family_of
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.language import LanguageModel, Piece
from mpa_edge.vlm.transformers.checkpoint import load_model, load_processor
from tests.exporters.gguf.made import converted
from tests.families import zoo

TEXT = "What is the value of the largest bar? It is 12 and"
CLOSE, MOVED = 0.02, 0.5
"""Largest difference of a logit: rounding to 16 bits, and at least what the adapters change."""


def ids_of(which: str) -> list[int]:
    tokenizer = load_processor(str(zoo.checkpoint(which))).tokenizer
    return list(tokenizer(TEXT, add_special_tokens=False)["input_ids"])


def tuned(which: str, folder: Path, **options: Any) -> np.ndarray:
    """Write an adapter of the language model; (vocabulary,) logits of peft's model behind the text."""
    torch.manual_seed(0)
    targets = family_of(which).target_modules(("language",))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)
    model = get_peft_model(load_model(str(zoo.checkpoint(which)), "cpu"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        logits = model(input_ids=torch.tensor([ids_of(which)])).logits[0, -1]
    model.save_pretrained(folder)
    return logits.numpy()


def written(which: str, folder: Path, out: Path) -> None:
    base = zoo.checkpoint(which)
    found = incoming.read(folder, base)
    assert lora.adapter_problem(found) is None
    lora.convert_adapter(Source("base", base, folder), found, out)
    assert len(read_header(out).tensors) == len(found.lora)


def said(which: str, adapter: Path | None) -> np.ndarray:
    """(vocabulary,) logits of llama.cpp behind the text."""
    model = LanguageModel(converted(which, "language"), context_tokens=256, threads=1)
    try:
        if adapter:
            model.attach(adapter)
        model.read(Piece(tuple(ids_of(which))), logits=True)
        return model.logits().copy()
    finally:
        model.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An adapter whose base is a Llama, and peft's logits."""
    folder = tmp_path_factory.mktemp("lora") / "mine"
    return folder, tuned("idefics3", folder)


SCALED = {
    "use_rslora": True,
    "rank_pattern": {r".*layers\.0\.self_attn\.q_proj": 2, "up_proj": 8},
    "alpha_pattern": {"v_proj": 32, "down_proj": 4},
}


@pytest.mark.peer
@pytest.mark.parametrize(
    ("which", "options"),
    [("idefics3", SCALED), ("qwen2_5_vl", {}), ("qwen3_5", {}), ("llava", {}), ("lfm2_vl", {})],
)
def test_base_and_adapter_are_what_peft_makes_of_them(which: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected = tuned(which, tmp_path / "mine", **options)
    written(which, tmp_path / "mine", tmp_path / "x.gguf")
    assert np.abs(said(which, tmp_path / "x.gguf") - expected).max() < CLOSE
    assert np.abs(said(which, None) - expected).max() > MOVED


@pytest.mark.peer
def test_rows_that_llama_cpp_reorders_are_seen(
    llama: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter permutes rows of Llama's queries and keys, those of the adapter, too."""
    folder, expected = llama
    staged = lora._staged

    def reordered(*arguments: Any) -> Path:
        from safetensors.torch import load_file, save_file

        path = staged(*arguments) / "adapter_model.safetensors"
        held = load_file(path)
        for name in held:
            if "q_proj.lora_B" in name:
                held[name] = held[name].flip(0).contiguous()
        save_file(held, path)
        return path.parent

    monkeypatch.setattr(lora, "_staged", reordered)
    written("idefics3", folder, tmp_path / "x.gguf")
    assert np.abs(said("idefics3", tmp_path / "x.gguf") - expected).max() > 10 * CLOSE


@pytest.mark.peer
def test_an_adapter_of_another_model_is_refused(llama: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    written("idefics3", llama[0], tmp_path / "x.gguf")
    with pytest.raises(MpaError, match="cannot apply .*x.gguf to .*: use the base that it names"):
        said("qwen2_5_vl", tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:-1000])
    with pytest.raises(MpaError):
        said("idefics3", tmp_path / "x.gguf")
