"""A transformers checkpoint as a VLM: an image is seen once a batch, padding is left, sampling ignores the batch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TopPLogitsWarper

from mpa_edge.errors import MpaError
from mpa_edge.types import FinishReason, Reply, Request
from mpa_edge.vlm import checkpoint
from mpa_edge.vlm.confidence import Confidence

if TYPE_CHECKING:
    from torch import Tensor


class SeededSampling(LogitsProcessor):
    """Sampling as an argmax over logits with Gumbel noise, each row from its own seed: the batch does not matter.

    Rows with temperature 0 stay greedy. Source of the trick: Maddison et al. 2014, "A* Sampling", section 2.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits -> the same, changed where a row samples."""
        scores = scores.clone()
        for row, (request, generator) in enumerate(zip(self.requests, self.generators, strict=True)):
            if request.temperature > 0:
                warped = scores[row : row + 1] / request.temperature
                if request.top_p < 1:
                    warped = TopPLogitsWarper(request.top_p)(input_ids[row : row + 1], warped)
                uniform = torch.rand(warped.shape[-1], generator=generator).clamp_min(1e-20)
                scores[row] = warped[0] - torch.log(-torch.log(uniform)).to(warped)
        return scores


class TransformersVLM:
    """Answers with `model.generate`; questions about one image share its vision features."""

    def __init__(self, path: str, *, name: str, device: str = "auto", threads: int | None = None, batch_size: int = 64):
        self.name, self.batch_size = name, batch_size
        self.device = checkpoint.pick_device(device)
        self.threads = checkpoint.set_threads(threads)
        self.processor = checkpoint.load_processor(path)
        self.model: Any = checkpoint.load_model(path, self.device)

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; batches are halved when memory runs out."""
        texts = [checkpoint.chat_prompt(self.processor, request.prompt) for request in requests]
        # stable: questions about one image stay neighbours, so that it is seen once
        order = sorted(range(len(requests)), key=lambda i: requests[i].max_new_tokens)
        replies: dict[int, Reply] = {}
        while len(replies) < len(order):
            chosen = order[len(replies) : len(replies) + self.batch_size]
            try:
                batch = self._batch([requests[i] for i in chosen], [texts[i] for i in chosen])
            except (MemoryError, RuntimeError) as error:
                self._halve(error, len(chosen))
                continue
            replies.update(zip(chosen, batch, strict=True))
        return [replies[i] for i in range(len(requests))]

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, error: Exception, size: int) -> None:
        """Go on with half the batch after an out-of-memory error; any other error goes up."""
        if not is_out_of_memory(error):
            raise error
        if size == 1:
            raise MpaError("out of memory with one image at a time: use a smaller model or a larger machine") from error
        self.batch_size = max(1, size // 2)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        click.echo(f"out of memory: batch of {self.name} halved to {self.batch_size}", err=True)

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request], texts: Sequence[str]) -> list[Reply]:
        inputs = self.processor(
            text=list(texts),
            images=[[request.image] for request in requests],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)
        sampling = SeededSampling(requests) if any(request.temperature > 0 for request in requests) else None
        watched = Confidence(sampling) if any(request.confidence for request in requests) else None
        output = self.model.generate(
            **self._seen_once(inputs, requests),
            max_new_tokens=max(request.max_new_tokens for request in requests),
            do_sample=False,
            logits_processor=LogitsProcessorList(filter(None, [watched or sampling])),
        )
        new = output[:, inputs["input_ids"].shape[1] :].cpu()
        replies = [self._reply(row, request) for row, request in zip(new, requests, strict=True)]
        return [
            replace(reply, logprob=watched.mean(row, reply.n_tokens)) if watched and request.confidence else reply
            for row, (reply, request) in enumerate(zip(replies, requests, strict=True))
        ]

    def _seen_once(self, inputs: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Run the vision tower once for each image of the batch, not once for each question about it.

        Only where pixels come as one row a request (SmolVLM, Idefics3, LLaVA); other inputs go through as they are.
        """
        rows = {id(request.image): row for row, request in reversed(list(enumerate(requests)))}
        first = sorted(rows.values())
        pixels = inputs.get("pixel_values")
        if len(first) == len(requests) or pixels is None or pixels.ndim != 5 or pixels.shape[0] != len(requests):
            return dict(inputs)
        vision = {key: inputs[key][first] for key in ("pixel_values", "pixel_attention_mask") if key in inputs}
        seen = self.model.base_model.get_image_features(**vision, return_dict=True)
        place = {row: i for i, row in enumerate(first)}
        seen.pooler_output = [seen.pooler_output[place[rows[id(request.image)]]] for request in requests]
        text = {key: value for key, value in inputs.items() if key not in vision}
        return {**text, "mm_encoder_outputs": {"image": seen}}

    def _reply(self, tokens: Tensor, request: Request) -> Reply:
        """Cut a row at the end token or at the request's own limit."""
        kept = tokens[: request.max_new_tokens].tolist()
        stops = [i for i, token in enumerate(kept) if token in self._end_ids()]
        reason: FinishReason = "stop" if stops else "length"
        kept = kept[: stops[0] + 1] if stops else kept
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        text = checkpoint.without_special_tokens(self.processor, text).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=len(kept))

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"))
    True
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "out of memory", "Cannot allocate memory")
    )
