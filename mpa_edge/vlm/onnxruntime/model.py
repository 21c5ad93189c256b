"""An exported ONNX folder as a VLM: numpy, onnxruntime, tokenizers and pillow, neither torch nor transformers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.config.accelerator import CPU_ONLY
from mpa_edge.errors import MpaError, NotFiniteError
from mpa_edge.types import Reply, Request, Timing, Trace
from mpa_edge.vlm.onnxruntime.profile import usage_of
from mpa_edge.vlm.onnxruntime.providers import Execution, Options, choose, with_engines
from mpa_edge.vlm.onnxruntime.sessions import (
    Decoder,
    Graph,
    VisionEncoder,
    left_padded,
    mrope_positions,
)
from mpa_edge.vlm.pixels import Prepared, prepare
from mpa_edge.vlm.pixels.common import pixels_digest
from mpa_edge.vlm.shared.prompts import PromptTokenizer, prompt_text, prompt_too_long
from mpa_edge.vlm.shared.sampling import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.types import Pixels
    from mpa_edge.vlm.onnxruntime.sessions import Cache
    from mpa_edge.vlm.shared.usage import Usage


@dataclass
class Seen:
    """An image and what was computed for it, shared by all questions about it."""

    image: Image
    prepared: Prepared
    features: NDArray[np.float32] | None = None
    """(image tokens, hidden); None until the vision encoder ran."""
    ids: list[int] = field(default_factory=list)
    """The last prompt about it, where its cache is kept."""
    cache: Cache = field(default_factory=dict)
    """Keys and values of `ids`; empty where another question cannot use them."""


@dataclass
class Prompt:
    """One question, ready for the decoder."""

    ids: list[int]
    embeds: NDArray[Any]
    """(n, hidden), with the image's embeddings in its place."""
    positions: NDArray[np.int64]
    """(n,), or (3, n) for Qwen."""
    limit: int
    """New tokens that fit: the request's limit, or what is left of the context."""


class OnnxVLM:
    """Answers one request at a time; questions about one image share its vision features.

    No batches: dynamic int8 graphs compute the range of their activations over all rows of a run, so an answer would
    depend on what else is asked. For the same reason only the other graphs share the decoder's cache of an image, and
    of those only the ones that keep every token of it: a recurrent state cannot go back to the image's end.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        threads: int | None = None,
        accelerators: Sequence[str] = CPU_ONLY,
        provider_options: Options | None = None,
        profile: Path | None = None,
    ) -> None:
        """`accelerators`: the first one that is here computes; `provider_options` as in a target file.

        `profile`: a folder for temporary files, where `profile_of` shall be called.
        MpaError where the folder is no ONNX export, lacks a file, or holds a damaged one, where no accelerator is here,
        or where it refuses a graph.
        """
        self.name, self.folder = name, Path(folder)
        self.artifact = read_artifact(self.folder)
        self.threads = threads or self.artifact.threads or len(os.sched_getaffinity(0))
        self.tokenizer = PromptTokenizer(self.folder, self.artifact)
        paths = {component: self.folder / file for component, file in self.artifact.files.items()}
        if sorted(paths) != ["decoder", "embed", "vision"]:
            raise MpaError(f"{self.folder} is no ONNX export (format {self.artifact.format}): name an ONNX folder")
        chosen = replace(choose(accelerators, provider_options), profile=profile)
        self.execution = with_engines(chosen, self.folder, self.artifact.context_tokens)
        # a file is in memory twice while it is loaded: the largest comes first
        self.decoder: Any = Decoder(paths["decoder"], self.threads, self.artifact.text, self.execution)
        self.vision: Any = VisionEncoder(paths["vision"], self.threads, self.execution)
        # a lookup: neither threads nor an accelerator would help
        self.embed: Any = Graph(paths["embed"], 1, Execution(profile=profile))

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order. A shared image costs no vision time from the second question on."""
        replies: dict[int, Reply] = {}
        seen: Seen | None = None
        first: dict[int, int] = {}
        for i, request in enumerate(requests):
            first.setdefault(id(request.image), i)
        # requests about one image next to each other
        order = sorted(range(len(requests)), key=lambda i: first[id(requests[i].image)])
        for i, following in zip(order, [*order[1:], None], strict=False):
            started, image = time.perf_counter(), requests[i].image
            if seen is None or seen.image is not image:
                seen = None  # frees the memory of the last image first
                seen = Seen(image, prepare(self.artifact.image, image))
            shared = following is not None and requests[following].image is image
            keep = shared and self.decoder.rows_are_independent and self.decoder.can_rewind
            replies[i] = self._answer(requests[i], seen, keep, started)
        return [replies[i] for i in range(len(requests))]

    def profile_of(self, request: Request) -> Usage:
        """Answer once more, and report what computed. The model must have been loaded with `profile`."""
        graphs = (self.decoder, self.vision, self.embed)
        skipped = [graph.n_runs for graph in graphs]
        self.answer([request])
        return usage_of(graphs, self.execution, skipped)

    def trace(self, requests: Sequence[Request], pixels: Sequence[Pixels] | None = None) -> list[Trace]:
        """Greedy tokens with their logits. `pixels` replace the output of the image processor.

        The decoder takes all requests as one left-padded batch; images are encoded one by one, as in `answer`.
        """
        if not requests:
            return []
        prepared = [prepare(self.artifact.image, request.image) for request in requests]
        given = [one.pixels for one in prepared] if pixels is None else list(pixels)
        features = [self.vision.encode(arrays) for arrays in given]
        ids = [self._ids(request, one) for request, one in zip(requests, prepared, strict=True)]
        prompts = [self._prompt(*parts) for parts in zip(requests, ids, given, features, strict=True)]
        n, batch, limit = max(len(prompt.ids) for prompt in prompts), len(prompts), max(one.limit for one in prompts)
        ends = self.artifact.tokens.ends
        mask = np.ones((batch, n + limit), np.int64)
        embeds = np.zeros((batch, n, prompts[0].embeds.shape[-1]), prompts[0].embeds.dtype)
        for row, prompt in enumerate(prompts):
            mask[row, : n - len(prompt.ids)] = 0
            embeds[row, n - len(prompt.ids) :] = prompt.embeds
        positions = left_padded([prompt.positions for prompt in prompts], n)
        following = np.array([prompt.positions.max() + 1 for prompt in prompts])[:, None]
        logits, cache = self.decoder.step(embeds, mask[:, :n], positions, self.decoder.empty_cache(batch))
        greedy = [
            Sampler(replace(request, temperature=0.0), self.artifact.repetition_penalty, prompt.ids)
            for request, prompt in zip(requests, prompts, strict=True)
        ]

        def scored(logits: NDArray[Any]) -> NDArray[Any]:
            return np.stack([one.scores(row) for one, row in zip(greedy, logits, strict=True)])

        def chosen(logits: NDArray[Any]) -> NDArray[np.int64]:
            return np.array([one(row) for one, row in zip(greedy, logits, strict=True)])

        steps, tokens = [scored(self._finite(logits))], [chosen(logits)]
        while len(steps) < limit and not np.isin(tokens, ends).any(axis=0).all():
            positions = following + len(steps) - 1
            if self.decoder.three_axes:
                positions = np.broadcast_to(positions, (3, batch, 1))
            embeds = self._embed(tokens[-1][:, None])
            logits, cache = self.decoder.step(embeds, mask[:, : n + len(steps)], positions, cache)
            steps.append(scored(logits))
            tokens.append(chosen(logits))
        traces = []
        for row, (prompt, arrays, vision) in enumerate(zip(prompts, given, features, strict=True)):
            ended = np.flatnonzero(np.isin([token[row] for token in tokens], ends))
            n_steps = min(prompt.limit, int(ended[0]) + 1 if len(ended) else len(steps))
            answer = tuple(int(token[row]) for token in tokens[:n_steps])
            own = np.stack([logits[row] for logits in steps[:n_steps]])
            traces.append(Trace(tuple(prompt.ids), pixels_digest(arrays), vision, own, answer))
        return traces

    def forced(self, request: Request, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, vocabulary) logits before each of the tokens, which are read behind the prompt in one run."""
        prepared = prepare(self.artifact.image, request.image)
        ids = self._ids(request, prepared)
        prompt = self._prompt(request, ids, prepared.pixels, self.vision.encode(prepared.pixels))
        embeds = np.concatenate([prompt.embeds, self._embed(np.array([tokens[:-1]], np.int64))[0]])
        following = prompt.positions.max() + 1 + np.arange(len(tokens) - 1)
        following = np.broadcast_to(following, (*prompt.positions.shape[:-1], len(following)))
        positions = np.expand_dims(np.concatenate([prompt.positions, following], -1), -2)
        return self._finite(self.decoder.read(embeds[None], positions, len(tokens)))

    def close(self) -> None:
        """Free the weights."""
        self.vision = self.embed = self.decoder = None

    def _answer(self, request: Request, seen: Seen, keep: bool, started: float) -> Reply:
        """Answer a question that came at `started`; `keep` its cache for the next one about the same image."""
        ids = self._ids(request, seen.prepared)
        choose = Sampler(request, self.artifact.repetition_penalty, ids)
        prepared_at = time.perf_counter()
        if seen.features is None:
            seen.features = self.vision.encode(seen.prepared.pixels)
        encoded_at = time.perf_counter()
        prompt = self._prompt(request, ids, seen.prepared.pixels, seen.features)
        # the decoder reads only what differs from the last prompt about the same image
        n, n_read, ends = len(ids), common_prefix(ids[:-1], seen.ids), self.artifact.tokens.ends
        cache = {name: np.ascontiguousarray(value[:, :, :n_read]) for name, value in seen.cache.items()}
        mask = np.ones((1, n + prompt.limit), np.int64)
        positions = np.expand_dims(prompt.positions[..., n_read:], -2)
        logits, cache = self.decoder.step(
            prompt.embeds[None, n_read:], mask[:, :n], positions, cache or self.decoder.empty_cache(1)
        )
        seen.ids, seen.cache = (ids, cache) if keep else ([], {})
        tokens = [choose(self._finite(logits)[0])]
        first_at = time.perf_counter()
        next_position = int(prompt.positions.max()) + 1  # Qwen's three axes are equal in text
        shape = (3, 1, 1) if self.decoder.three_axes else (1, 1)
        while len(tokens) < prompt.limit and tokens[-1] not in ends:
            done = len(tokens)
            embeds = self._embed(np.array([[tokens[-1]]], np.int64))
            positions = np.full(shape, next_position + done - 1, np.int64)
            logits, cache = self.decoder.step(embeds, mask[:, : n + done], positions, cache)
            tokens.append(choose(logits[0]))
        text = self.tokenizer.decode(tokens)
        ended = time.perf_counter()
        timing = Timing(
            total_s=ended - started,
            ttft_s=first_at - started,
            preprocess_s=prepared_at - started,
            vision_s=encoded_at - prepared_at,
            prefill_s=first_at - encoded_at,
            decode_s=ended - first_at,
        )
        return Reply(text, "stop" if tokens[-1] in ends else "length", len(tokens), timing)

    def _ids(self, request: Request, prepared: Prepared) -> list[int]:
        ids = self.tokenizer.encode(prompt_text(self.artifact, request.prompt, prepared.expansion))
        if len(ids) >= self.artifact.context_tokens:
            raise prompt_too_long(len(ids), self.artifact.context_tokens)
        return ids

    def _prompt(self, request: Request, ids: list[int], pixels: Pixels, features: NDArray[np.float32]) -> Prompt:
        """Token embeddings with the image's in their places. MpaError where their numbers or widths differ."""
        image_id, array = self.artifact.tokens.image_id, np.array(ids, np.int64)
        is_image = array == image_id
        embeds = self._embed(array[None])[0].copy()  # the array returned is onnxruntime's own memory
        width = self.decoder.inputs["inputs_embeds"].shape[2]
        expected = (int(is_image.sum()), width)
        if features.shape != expected:
            sizes = " for ".join(f"{rows} x {width}" for rows, width in (features.shape, expected))
            raise MpaError(f"{self.folder}: the vision encoder gives {sizes} numbers: rerun mpa-edge export")
        embeds[is_image, :width] = features
        positions = np.arange(len(ids), dtype=np.int64)
        if self.decoder.three_axes:
            grid = next(array for name, array in pixels.items() if name.endswith("grid_thw"))[0]
            merge = self.artifact.image["merge_size"]
            positions = mrope_positions(ids, image_id, (int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge))
        return Prompt(ids, embeds, positions, min(request.max_new_tokens, self.artifact.context_tokens - len(ids)))

    def _embed(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """(B, S) -> (B, S, hidden); embeddings of each layer stand behind those of the tokens."""
        found = [output.reshape(*ids.shape, -1) for output in self.embed.run({"input_ids": ids})]
        return found[0] if len(found) == 1 else np.concatenate(found, -1)

    def _finite(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(logits).all():
            raise NotFiniteError(self.decoder.path, "decoder")
        return logits


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share from the start.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
