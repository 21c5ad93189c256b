"""The truth that an export is held against: the fp32 checkpoint in torch, pictures through its PIL backend."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpa_edge.exporters.budget import image_values, processor_values
from mpa_edge.exporters.verify.probes import VERSION, probes
from mpa_edge.runs.files import atomic_write, make_folder, sha256_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.types import Request, Trace
from mpa_edge.vlm.pixels.common import pixels_digest

if TYPE_CHECKING:
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.exporters.source import Source
    from mpa_edge.types import Pixels

Array = NDArray[Any]
FILE = "reference-{key}.npz"
# models that cut a picture in tiles, and how many of them are looked at together
TILED, TILES = ("idefics3", "smolvlm"), 2


@dataclass(frozen=True)
class Seen:
    """One probe as the checkpoint saw it."""

    trace: Trace
    """What went on inside."""
    pixels: Pixels
    """What its image processor made of the picture alone, under the names of the exported vision encoder's inputs."""


@dataclass(frozen=True)
class Reference:
    """The checkpoint's side of the comparison."""

    probes: tuple[Seen, ...]
    """One for each coloured probe."""
    blanks: tuple[Seen, ...]
    """One for each greyed probe."""


def reference(source: Source, budget: ImageBudget | None, image_token: str, threads: int | None, parts: Path) -> Path:
    """File with the checkpoint's traces on the probes: made once, in a process of its own, for all schemes."""
    mark = {"checkpoint": source.fingerprint, "budget": budget and budget.model_dump(), "probes": VERSION}
    key = sha256_json({**mark, "image_token": image_token, "prompt": source.prompt("?")})[:16]
    path = make_folder(parts) / FILE.format(key=key)
    if read_reference(path) is None:
        run_isolated(trace_checkpoint, source, budget, image_token, threads, path, threads=threads)
    return path


def trace_checkpoint(
    source: Source, budget: ImageBudget | None, image_token: str, threads: int | None, out: Path
) -> None:
    """Trace a checkpoint on the probes and write them to a file. Loads torch and the fp32 weights."""
    image = image_values(source.checkpoint, budget)
    asked = probes(image, source.prompt, image_token)
    own = processor_values(source.checkpoint)
    model = Checkpoint(source.checkpoint, {key: image[key] for key in image if image[key] != own.get(key)}, threads)
    coloured = [seen for batch in asked.batches for seen in model.see(batch)]
    blanks = [model.see([request])[0] for _, request in asked.blanks]
    write_reference(out, Reference(tuple(coloured), tuple(blanks)))


class Checkpoint:
    """A transformers checkpoint that lets one look inside."""

    def __init__(self, folder: Path, image_changes: dict[str, Any], threads: int | None) -> None:
        from transformers import AutoImageProcessor, GenerationConfig

        from mpa_edge.vlm.transformers import checkpoint

        checkpoint.set_threads(threads)
        self.processor = checkpoint.load_processor(str(folder))
        self.processor.image_processor = AutoImageProcessor.from_pretrained(
            str(folder), backend="pil", trust_remote_code=False, **image_changes
        )
        self.model: Any = checkpoint.load_model(str(folder), "cpu")
        if self.model.config.model_type in TILED:
            few_tiles_at_once(self.model.base_model.vision_model)
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}
        # greedy over the raw logits: a penalty of the checkpoint's generation config would hide behind the tokens
        self.model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self._pad_id(), do_sample=False)
        self._prompt: Callable[[Any, str], str] = checkpoint.chat_prompt

    def _pad_id(self) -> int:
        found = self.model.generation_config.pad_token_id
        return int(found if found is not None else next(iter(self.ends)))

    def see(self, requests: Sequence[Request]) -> list[Seen]:
        """Greedy, all requests as one left-padded batch."""
        import torch

        inputs = self._inputs(requests)
        with torch.inference_mode(), Captured(self.model.base_model) as features:
            out = self.model.generate(
                **inputs,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits = torch.stack(out.logits, 1).float().numpy()
        new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        rows = features.rows(self._image_tokens(inputs))
        return [self._seen(inputs, i, rows[i], logits[i], new[i], request) for i, request in enumerate(requests)]

    def _inputs(self, requests: Sequence[Request]) -> Any:
        return self.processor(
            text=[self._prompt(self.processor, request.prompt) for request in requests],
            images=[[request.image] for request in requests],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )

    def _image_tokens(self, inputs: Any) -> list[int]:
        return (inputs["input_ids"] == self.model.config.image_token_id).sum(1).tolist()

    def _seen(self, inputs: Any, i: int, vision: Array, logits: Array, new: list[int], request: Request) -> Seen:
        kept = new[: request.max_new_tokens]
        n = next((k + 1 for k, token in enumerate(kept) if token in self.ends), len(kept))
        ids = inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist()
        pixels = self.pixels(request)
        trace = Trace(tuple(ids), pixels_digest(pixels), vision, logits[:n], tuple(kept[:n]))
        return Seen(trace, pixels)

    def pixels(self, request: Request) -> Pixels:
        """The picture alone, as arrays under the names of the exported vision encoder's inputs."""
        from mpa_edge.vlm.transformers.prefix_cache import TEXT_INPUTS

        inputs = self._inputs([request])
        found = {name: value.numpy() for name, value in inputs.items() if name not in TEXT_INPUTS}
        if "pixel_attention_mask" in found:
            found["pixel_attention_mask"] = found["pixel_attention_mask"].astype(bool)
        if self.model.config.model_type == "qwen2_vl":
            found["grid_thw"] = found.pop("image_grid_thw")
        return found


def few_tiles_at_once(tower: Any, most: int = TILES) -> None:
    """Let a vision tower see a few tiles after another: all at once can take more memory than the weights.

    Tiles do not look at each other, so nothing else changes.
    """
    original = tower.forward

    @functools.wraps(original)
    def forward(pixel_values: Any, patch_attention_mask: Any, **options: Any) -> Any:
        import torch

        chunks = zip(pixel_values.split(most), patch_attention_mask.split(most), strict=True)
        seen = [original(pixel_values=p, patch_attention_mask=m, **options) for p, m in chunks]
        seen[0].last_hidden_state = torch.cat([one.last_hidden_state for one in seen])
        return seen[0]

    tower.forward = forward


class Captured:
    """Keeps what `get_image_features` returns while a model generates: the tower is run once, not once more for us."""

    def __init__(self, base: Any) -> None:
        self._base, self._found = base, []  # type: ignore[var-annotated]

    def __enter__(self) -> Captured:
        original = self._base.get_image_features

        @functools.wraps(original)
        def captured(*arguments: Any, **options: Any) -> Any:
            self._found.append(original(*arguments, **options))
            return self._found[-1]

        self._base.get_image_features = captured
        return self

    def __exit__(self, *_: object) -> None:
        del self._base.get_image_features

    def rows(self, counts: Sequence[int]) -> list[Array]:
        """(image tokens, hidden) for each row of the batch, which has `counts` image tokens.

        Features of inner layers (DeepStack) stand beside those of the last one.
        """
        flat = np.concatenate([_side_by_side(found) for found in self._found])
        return np.split(flat, np.cumsum(counts)[:-1])


def _side_by_side(found: Any) -> Array:
    """(image tokens, hidden), or (image tokens, (1 + inner layers) x hidden), of what get_image_features returned."""
    inner = getattr(found, "deepstack_features", None) or ()
    return np.concatenate([_rows(getattr(found, "pooler_output", found)), *map(_rows, inner)], axis=-1)


def _rows(pooled: Any) -> Array:
    """(image tokens, hidden) of one tensor or of several."""
    tensors = pooled if isinstance(pooled, list | tuple) else [pooled]
    return np.concatenate([tensor.float().reshape(-1, tensor.shape[-1]).numpy() for tensor in tensors])


# --- the stored file --------------------------------------------------------------------------------------------------


def write_reference(path: Path, found: Reference) -> None:
    """One npz of plain arrays."""
    arrays: dict[str, Array] = {}
    for kind, many in (("probe", found.probes), ("blank", found.blanks)):
        for i, seen in enumerate(many):
            trace, at = seen.trace, f"{kind}/{i:03}"
            arrays |= {f"{at}/input_ids": np.array(trace.input_ids), f"{at}/tokens": np.array(trace.tokens)}
            arrays |= {f"{at}/vision": trace.vision, f"{at}/logits": trace.logits}
            arrays |= {f"{at}/sha256": np.array(trace.pixels_sha256)}
            arrays |= {f"{at}/pixels/{name}": array for name, array in seen.pixels.items()}
    with atomic_write(path, sum(array.nbytes for array in arrays.values())) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_reference(path: Path) -> Reference | None:
    """What `write_reference` stored; None where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    found = {
        kind: sorted({name.split("/")[1] for name in arrays if name.startswith(kind)}) for kind in ("probe", "blank")
    }
    many = {kind: tuple(_stored(arrays, f"{kind}/{i}") for i in numbers) for kind, numbers in found.items()}
    return Reference(many["probe"], many["blank"])


def _stored(arrays: dict[str, Array], at: str) -> Seen:
    pixels = {name.rpartition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{at}/pixels/")}
    ids, tokens = (tuple(arrays[f"{at}/{name}"].tolist()) for name in ("input_ids", "tokens"))
    return Seen(Trace(ids, str(arrays[f"{at}/sha256"]), arrays[f"{at}/vision"], arrays[f"{at}/logits"], tokens), pixels)
