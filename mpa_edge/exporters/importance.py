"""Which inputs of a language model's matrices are large: a weight matters as much as what it is multiplied by."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpa_edge.config.library import root
from mpa_edge.exporters.source import Source
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.manifest import FOLDERS
from mpa_edge.runs.parquet import read_parts
from mpa_edge.types import ParityRecord

TEXT_TOKENS = 512
"""A longer text is cut."""
QUESTIONS = 64
"""Questions of a run, at most."""


def texts_of(source: Source) -> list[str]:
    """A fixed English text in paragraphs, and before it a run's own confirmed questions with their answers."""
    own: list[str] = []
    if source.run is not None:
        rows = [
            row for row in read_parts(source.run / FOLDERS["identify"], ParityRecord) if row.verdict != "unverified"
        ]
        own = [f"{source.prompt(row.question)} {row.answer}" for row in rows[:QUESTIONS]]
    english = (root() / "export" / "calibration.txt").read_text(encoding="utf-8")
    return own + english.strip().split("\n\n")


def measure_importance(checkpoint: Path, texts: Sequence[str], out: Path) -> None:
    """Write the mean square of each input of each matrix, over all tokens of the texts, to `out` (.npz).

    Keys are the names of the language model's layers, such as `layers.0.mlp.down_proj`. Call it in a process of its
    own.
    """
    import torch

    from mpa_edge.exporters.onnx.export import load_part
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    model = load_part(checkpoint, "decoder")
    language = getattr(model.model, "text_model", None) or model.model.language_model
    tokenizer = load_processor(str(checkpoint)).tokenizer
    sums: dict[str, Any] = {}

    def add(name: str, _module: Any, inputs: tuple[Any, ...]) -> None:
        squares = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    for name, module in language.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(partial(add, name))
    n_tokens = 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=TEXT_TOKENS)["input_ids"]
            language(input_ids=ids, use_cache=False)
            n_tokens += ids.shape[1]
    buffer = io.BytesIO()
    np.savez(buffer, **{name: (total / n_tokens).numpy() for name, total in sums.items()})
    write_bytes(out, buffer.getvalue())
