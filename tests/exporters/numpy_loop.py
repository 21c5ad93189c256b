"""A second way to run an exported ONNX folder: no more than numpy and the sessions, to compare everything else with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": bool, "tensor(int64)": np.int64}
FILES = {"vision": "vision_encoder", "embed": "embed_tokens", "decoder": "decoder_model_merged"}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class NumpyLoop:
    """onnx/*.onnx of a folder, and the config.json of the checkpoint they came from."""

    def __init__(self, onnx: Path, checkpoint: Path, suffix: str = "") -> None:
        self.vision, self.embed, self.decoder = (session(onnx / f"{FILES[part]}{suffix}.onnx") for part in FILES)
        self.config = json.loads((checkpoint / "config.json").read_text())
        self.image_id = self.config.get("image_token_id", self.config.get("image_token_index"))
        self.is_qwen = self.config["model_type"].startswith("qwen")

    def features(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Of all images: (image tokens, hidden)."""
        other = {"grid_thw": "image_grid_thw", "pixel_position_ids": "image_position_ids"}
        wanted = {i.name: feed[other.get(i.name, i.name)].astype(TYPES[i.type]) for i in self.vision.get_inputs()}
        found = self.vision.run(None, wanted)[0]
        return found.reshape(-1, found.shape[-1])

    def embeddings(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        found, features = self.lookup(feed["input_ids"]).copy(), self.features(feed)
        found[feed["input_ids"] == self.image_id, : features.shape[1]] = features
        return found

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings of tokens; Gemma's embeddings of each layer stand behind them."""
        found = self.embed.run(None, {"input_ids": ids.astype(np.int64)})
        return np.concatenate([part.reshape(*ids.shape, -1) for part in found], -1)

    def positions(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        mask = feed["attention_mask"]
        if not self.is_qwen:
            return np.where(mask == 0, 1, mask.cumsum(1) - 1).astype(np.int64)
        rows = [
            qwen_positions(ids[kept == 1], self.image_id, feed["image_grid_thw"][i : i + 1])
            for i, (ids, kept) in enumerate(zip(feed["input_ids"], mask, strict=True))
        ]
        whole = np.ones((3, *mask.shape), np.int64)
        for i, row in enumerate(rows):
            whole[:, i, mask.shape[1] - row.shape[1] :] = row
        return whole

    def step(
        self, embeds: Any, mask: Any, positions: Any, past: dict[str, Any], keep: int
    ) -> tuple[Any, dict[str, Any]]:
        sizes = {i.name: i.shape for i in self.decoder.get_inputs()}
        if "per_layer_inputs" in sizes:
            width, layers = sizes["inputs_embeds"][2], sizes["per_layer_inputs"][2:]
            past = {**past, "per_layer_inputs": embeds[..., width:].reshape(*embeds.shape[:2], *layers)}
            embeds = embeds[..., :width]
        feed = {"inputs_embeds": embeds, "attention_mask": mask.astype(np.int64), "position_ids": positions, **past}
        found = self.decoder.run(None, {**feed, "num_logits_to_keep": np.array(keep, np.int64)})
        by_name = dict(zip((o.name for o in self.decoder.get_outputs()), found, strict=True))
        logits = by_name.pop("logits").astype(np.float32)
        renamed = lambda name: name.replace("present.", "past_key_values.").replace("present_", "past_")  # noqa: E731
        return logits, {renamed(name): value for name, value in by_name.items()}

    def empty_cache(self, batch: int) -> dict[str, np.ndarray]:
        inputs = [i for i in self.decoder.get_inputs() if i.name.startswith("past_")]
        sizes = {i.name: [0 if isinstance(n, str) else n for n in i.shape[1:]] for i in inputs}
        return {i.name: np.zeros((batch, *sizes[i.name]), TYPES[i.type]) for i in inputs}

    def logits(self, feed: dict[str, np.ndarray], keep: int = 0) -> np.ndarray:
        """Of a prompt: (B, kept, vocabulary)."""
        cache = self.empty_cache(len(feed["input_ids"]))
        return self.step(self.embeddings(feed), feed["attention_mask"], self.positions(feed), cache, keep)[0]

    def greedy(self, feed: dict[str, np.ndarray], n_tokens: int, never: Sequence[int] = ()) -> np.ndarray:
        """(B, n_tokens) without the tokens of `never`, as transformers' min_new_tokens keeps end tokens out."""
        mask, positions, embeds = feed["attention_mask"], self.positions(feed), self.embeddings(feed)
        cache, tokens = self.empty_cache(len(mask)), []
        for _ in range(n_tokens):
            logits, cache = self.step(embeds, mask, positions, cache, 1)
            logits[:, -1, list(never)] = -np.inf
            tokens.append(logits[:, -1].argmax(-1))
            embeds = self.lookup(tokens[-1][:, None])
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
            positions = positions[..., -1:] + 1 if not self.is_qwen or len(tokens) > 1 else self.after(positions)
        return np.stack(tokens, 1)

    @staticmethod
    def after(positions: np.ndarray) -> np.ndarray:
        """Qwen goes on behind the largest of all three coordinates of a row."""
        highest = positions.max((0, 2))
        return np.broadcast_to(highest[None, :, None] + 1, (3, len(highest), 1)).astype(np.int64).copy()


def qwen_positions(ids: np.ndarray, image_id: int, grids: np.ndarray) -> np.ndarray:
    """(3, S): time, row and column of each token of one unpadded prompt; merge size 2."""
    columns, at, i, grid = [], 0, 0, iter(grids)
    while i < len(ids):
        if ids[i] == image_id:
            time, height, width = (int(n) for n in next(grid))
            place = np.indices((time, height // 2, width // 2)).reshape(3, -1) + at
            at, i = int(place.max()) + 1, i + place.shape[1]
        else:
            place = np.full((3, 1), at)
            at, i = at + 1, i + 1
        columns.append(place)
    return np.concatenate(columns, 1).astype(np.int64)
