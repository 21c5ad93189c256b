"""How near decoding is to what the memory allows: bytes that a step must read, over the bytes that could be read."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm.transformers import checkpoint, prefix_cache
from mpa_edge.vlm.transformers.decoding import Batch, Row
from mpa_edge.vlm.transformers.model import TransformersVLM

STEPS, COPIES = 32, 10
COPIED_BYTES = {"cpu": 256_000_000, "cuda": 4_000_000_000}


def share_of_bound(vlm: TransformersVLM, image: Image.Image, rows: int) -> dict[str, Any]:
    """Share of the memory's bandwidth that steps of `rows` rows use; the bandwidth is that of a copy of a large tensor.

    A step reads every weight of the language model with its head, and the keys and values of every row, once.
    """
    batch = _batch(vlm, image, rows)
    n_bytes = step_bytes(vlm.model, batch)
    step_s, bytes_per_s = _step_seconds(batch, rows, vlm.device), bandwidth(vlm.device)
    return {
        "rows": rows,
        "step_s": step_s,
        "step_bytes": n_bytes,
        "bytes_per_s": bytes_per_s,
        "share": round(n_bytes / bytes_per_s / step_s, 3),
    }


def step_bytes(model: Any, batch: Batch) -> int:
    """What one step must read; an embedding table is only looked up, unless it is the head as well."""
    language = model.base_model.get_decoder() if hasattr(model.base_model, "get_decoder") else model.base_model
    seen = {weight.data_ptr(): weight.nbytes for weight in language.parameters()}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    seen.pop(table.data_ptr(), None)
    seen[head.data_ptr()] = head.nbytes
    cached = sum(part.nbytes for layer in batch.cache.layers for part in (layer.keys, layer.values))
    return sum(seen.values()) + cached


def bandwidth(device: str) -> float:
    """Bytes a second of a copy: read and written ones."""
    source = torch.zeros(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), COPIES, device)


@torch.inference_mode()
def _batch(vlm: TransformersVLM, image: Image.Image, rows: int) -> Batch:
    vlm.answer([Request(image, "What?", 1)])
    token = vlm.processor.image_token
    parts = prefix_cache.split(checkpoint.chat_prompt(vlm.processor, "What?"), token)
    kept = vlm.store.get(image, parts[0]) if parts else None
    if parts is None or kept is None:
        raise SystemExit(f"{vlm.name} keeps no prefix of a picture: there is nothing to decode behind")
    tail = prefix_cache.tail_ids(vlm.processor.tokenizer, token, parts[1])
    batch = Batch(vlm.model, [Row(kept, tail, 2 * STEPS + COPIES)] * rows)
    batch.first([tail] * rows)
    return batch


@torch.inference_mode()
def _step_seconds(batch: Batch, rows: int, device: str) -> float:
    token = torch.zeros(rows, dtype=torch.long, device=device)
    return _seconds(lambda: batch.then(token), STEPS, device)


def _seconds(work: Any, n: int, device: str) -> float:
    """Median of n times, after one that does not count."""
    took = []
    for _ in range(n + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])
