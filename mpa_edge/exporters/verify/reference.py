"""The reference of the parity check: the fp32 checkpoint in torch, images through its PIL backend."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpa_edge.exporters.verify.probes import TEXT, TEXT_TOKENS, probes
from mpa_edge.types import Request, Trace
from mpa_edge.vlm.pixels.common import pixels_digest

if TYPE_CHECKING:
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.exporters.source import Source
    from mpa_edge.types import Pixels

Array = NDArray[Any]
# models that split an image into tiles, and how many of them go through the tower at once
LARGE_BYTES = 2_000_000_000
"""A checkpoint above this stays in its 16 bits while it is traced: a 2B model would take 9 GB in fp32."""
NARROW = {"BF16": "bfloat16", "F16": "float16"}
TILED, TILES = ("idefics3", "smolvlm"), 2


@dataclass(frozen=True)
class ProbeTrace:
    """One probe in the checkpoint."""

    trace: Trace
    """Token ids, image embeddings, logits and answer."""
    pixels: Pixels
    """What its image processor made of the image alone, under the names of the exported vision encoder's inputs."""


@dataclass(frozen=True)
class CheckpointTraces:
    """What an export is compared with."""

    probes: list[ProbeTrace]
    """One for each probe; of the base model, of the first one only."""
    tokens: tuple[int, ...]
    """The beginning of the English text."""
    forced: Array
    """(tokens, vocabulary) logits before each of them, behind the first probe's prompt."""


def trace_checkpoint(
    source: Source, budget: ImageBudget | None, threads: int | None, first_only: bool = False
) -> CheckpointTraces:
    """Trace a checkpoint on the probes. Loads torch and the fp32 weights: call it in a process of its own."""
    from mpa_edge.vlm.transformers.checkpoint import library_errors

    image = source.image_values(budget)
    model = Checkpoint(source.checkpoint, image, threads)
    batches = probes(image, source.prompt, str(model.processor.image_token))
    tokens = tuple(model.processor.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:TEXT_TOKENS])
    with library_errors(source.checkpoint, model.processor):  # files may be sound and not fit together
        found = model.trace(batches[0])
        forced = model.forced(batches[0][0], tokens)
        rest = [] if first_only else [one for batch in batches[1:] for one in model.trace(batch)]
    return CheckpointTraces([*found, *rest], tokens, forced)


class Checkpoint:
    """A transformers checkpoint whose inner values can be read while it answers.

    `image` holds values of the image processor that replace its own.
    """

    def __init__(self, folder: Path, image: dict[str, Any], threads: int | None) -> None:
        from transformers import AutoImageProcessor, GenerationConfig

        from mpa_edge.vlm.transformers import checkpoint

        checkpoint.set_threads(threads)
        self.processor = checkpoint.load_processor(str(folder))
        of_pil = AutoImageProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)
        self.processor.image_processor = type(of_pil).from_dict(of_pil.to_dict() | image)
        kind = narrow_type(folder)
        self.model: Any = checkpoint.load_model(str(folder), "cpu", dtype=kind)
        if kind:
            widen(self.model)
        self._seen: tuple[Request, Any] | None = None
        """The last request that was traced alone, and the features of its image: seconds for each tile."""
        if self.model.config.model_type in TILED:
            few_tiles_at_once(self.model.base_model.vision_model)
        ends, pad = self.model.generation_config.eos_token_id, self.model.generation_config.pad_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}
        # nothing but greedy decoding and the penalty: exports refuse what else a generation config may ask for
        self.penalty = self.model.generation_config.repetition_penalty or 1.0
        self.model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=next(iter(self.ends)) if pad is None else pad, do_sample=False
        )

    def processors(self, inputs: Any) -> list[Any]:
        """The checkpoint's repetition penalty, by each row's own tokens: `generate` counts the padding as well."""
        from mpa_edge.vlm.transformers.sampling import Repetition

        if self.penalty == 1.0:
            return []
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        prompts, width = [row[mask].tolist() for row, mask in rows], inputs["input_ids"].shape[1]
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        repetition = Repetition(self.penalty, prompts, vocabulary, "cpu")

        def lowered(ids: Any, scores: Any) -> Any:
            if ids.shape[1] > width:
                repetition.add(ids[:, -1])
            return repetition(scores)

        return [lowered]

    def trace(self, requests: Sequence[Request]) -> list[ProbeTrace]:
        """Greedy answers, all requests as one left-padded batch."""
        import torch

        inputs = self.inputs(requests)
        features: list[Any] = []
        base = self.model.base_model
        original = base.get_image_features

        @functools.wraps(original)
        def captured(*arguments: Any, **options: Any) -> Any:
            features.append(original(*arguments, **options))
            return features[-1]

        base.get_image_features = captured
        try:
            with torch.inference_mode():
                out = self.model.generate(
                    **inputs,
                    max_new_tokens=max(request.max_new_tokens for request in requests),
                    do_sample=False,
                    logits_processor=self.processors(inputs),
                    output_scores=True,
                    return_dict_in_generate=True,
                )
        finally:
            del base.get_image_features
        self._seen = (requests[0], features[0]) if len(requests) == 1 else None
        logits = torch.stack(out.scores, 1).float().numpy()
        new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        n_image_tokens = (inputs["input_ids"] == self.model.config.image_token_id).sum(1).tolist()
        vision = np.split(np.concatenate(list(map(embeddings, features))), np.cumsum(n_image_tokens)[:-1])
        found = []
        for i, request in enumerate(requests):
            kept = new[i][: request.max_new_tokens]
            n = next((k + 1 for k, token in enumerate(kept) if token in self.ends), len(kept))
            ids = inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist()
            pixels = self.pixels(request)
            trace = Trace(tuple(ids), pixels_digest(pixels), vision[i], logits[i][:n], tuple(kept[:n]))
            found.append(ProbeTrace(trace, pixels))
        return found

    def forced(self, request: Request, tokens: Sequence[int]) -> Array:
        """(tokens, vocabulary) logits before each of the tokens, which are read behind the prompt in one run."""
        import torch

        inputs = self.inputs([request])
        for name, filler in (("input_ids", list(tokens[:-1])), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                more = torch.tensor(filler).expand(1, len(tokens) - 1)
                inputs[name] = torch.cat([inputs[name], more.to(inputs[name].dtype)], 1)
        base, seen = self.model.base_model, self._seen
        if seen is not None and seen[0] is request:
            base.get_image_features = lambda *_, **__: seen[1]
        try:
            with torch.inference_mode():
                out = self.model(**inputs, logits_to_keep=len(tokens))
        finally:
            base.__dict__.pop("get_image_features", None)
        found: Array = out.logits[0].float().numpy()
        return found

    def inputs(self, requests: Sequence[Request]) -> Any:
        """What the processor makes of the requests: a left-padded batch of tensors by name."""
        from mpa_edge.vlm.transformers.checkpoint import chat_prompt

        return self.processor(
            text=[chat_prompt(self.processor, request.prompt) for request in requests],
            images=[[request.image] for request in requests],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )

    def pixels(self, request: Request) -> Pixels:
        """The image alone, as arrays under the names of the exported vision encoder's inputs."""
        from mpa_edge.vlm.transformers.prefix_cache import TEXT_INPUTS

        inputs = self.inputs([request])
        found = {name: value.numpy() for name, value in inputs.items() if name not in TEXT_INPUTS}
        if "pixel_attention_mask" in found:
            found["pixel_attention_mask"] = found["pixel_attention_mask"].astype(bool)
        if self.model.config.model_type == "qwen2_vl":
            found["grid_thw"] = found.pop("image_grid_thw")
        return found


def narrow_type(folder: Path) -> str | None:
    """The 16-bit type of a checkpoint whose weights would take too much memory in fp32; None for every other one."""
    from safetensors import safe_open

    from mpa_edge.vlm.transformers.files import weight_files

    paths = weight_files(folder)
    if sum(path.stat().st_size for path in paths) < LARGE_BYTES:
        return None
    kinds = set()
    for path in paths:
        with safe_open(path, "numpy") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is not a dict
    return NARROW.get(kinds.pop()) if len(kinds) == 1 else None


def widen(model: Any) -> None:
    """Let a model whose weights are in 16 bits compute in fp32, as if all of them were: the numbers are the same.

    The matrices of the language model stay narrow, and each is widened while it is used.
    """
    import torch

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    base = model.base_model
    language = getattr(base, "text_model", None) or base.language_model
    # other modules may use their weights without a call (convolutions with a state, experts)
    products = (torch.nn.Linear, torch.nn.Embedding)
    narrow = {id(one) for one in (*language.modules(), *ends) if isinstance(one, products)}
    for module in model.modules():
        kept = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(module) in narrow and parameter.ndim > 1:
                kept[name] = parameter
            else:
                parameter.data = parameter.data.float()
        if kept:
            wide, again = functools.partial(_widened, kept), functools.partial(_restored, kept)
            module.register_forward_pre_hook(wide)
            module.register_forward_hook(again)
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):  # of Gemma, rounded to 16 bits when the model was made
            module.embed_scale.data = torch.tensor(module.scalar_embed_scale)
    for buffer in model.buffers():
        buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data


def _widened(kept: dict[str, Any], module: Any, _inputs: Any) -> None:
    module._parameters.update({name: parameter.detach().float() for name, parameter in kept.items()})


def _restored(kept: dict[str, Any], module: Any, _inputs: Any, _outputs: Any) -> None:
    module._parameters.update(kept)


def few_tiles_at_once(tower: Any, most: int = TILES) -> None:
    """Let a vision tower encode a few tiles at a time, and equal ones once: a gray image's are all the same.

    All at once can take more memory than the weights. Tiles do not attend to each other, so the result is the same.
    """
    original = tower.forward

    @functools.wraps(original)
    def forward(pixel_values: Any, patch_attention_mask: Any, **options: Any) -> Any:
        import torch

        rows = torch.cat([pixel_values.flatten(1), patch_attention_mask.flatten(1)], 1)
        places: dict[bytes, int] = {}
        same = [places.setdefault(row.numpy().tobytes(), len(places)) for row in rows]
        first = [same.index(i) for i in range(len(places))]
        chunks = zip(pixel_values[first].split(most), patch_attention_mask[first].split(most), strict=True)
        outputs = [original(pixel_values=p, patch_attention_mask=m, **options) for p, m in chunks]
        outputs[0].last_hidden_state = torch.cat([one.last_hidden_state for one in outputs])[same]
        return outputs[0]

    tower.forward = forward


def embeddings(found: Any) -> Array:
    """What get_image_features returned as (image tokens, hidden).

    Features of inner layers (DeepStack) are concatenated: (image tokens, (1 + inner layers) x hidden).
    """
    layers = [getattr(found, "pooler_output", found), *(getattr(found, "deepstack_features", None) or ())]
    rows = []
    for layer in layers:
        tensors = layer if isinstance(layer, list | tuple) else [layer]
        rows.append(np.concatenate([tensor.float().reshape(-1, tensor.shape[-1]).numpy() for tensor in tensors]))
    return np.concatenate(rows, axis=-1)
