"""An exported ONNX folder as a VLM: numpy, onnxruntime, tokenizers and pillow, neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MpaError
from mpa_edge.types import Reply, Request, Timing, Trace
from mpa_edge.vlm import positions
from mpa_edge.vlm.clock import Clock
from mpa_edge.vlm.onnxruntime.decoder import Decoder, first_tokens
from mpa_edge.vlm.onnxruntime.sessions import Graph, VisionEncoder, usable_threads
from mpa_edge.vlm.pixels import Prepared, prepare
from mpa_edge.vlm.prompts import PromptTokenizer, prompt_text
from mpa_edge.vlm.sampling import Sampler
from mpa_edge.vlm.trace import pixels_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.types import Pixels
    from mpa_edge.vlm.onnxruntime.decoder import Cache


@dataclass
class Seen:
    """A picture and what is known of it, for all questions about it."""

    image: Image
    prepared: Prepared
    features: NDArray[np.float32] | None = None
    """(image tokens, hidden); None until the vision encoder ran."""
    ids: list[int] = field(default_factory=list)
    """The last prompt about it, where its cache is kept."""
    cache: Cache = field(default_factory=dict)
    """What the decoder made of `ids`; empty where another question cannot use it."""


@dataclass
class Prompt:
    """One question, ready for the decoder."""

    ids: list[int]
    embeds: NDArray[Any]
    """(n, hidden), the picture in its place."""
    places: NDArray[np.int64]
    """(n,), or (3, n) for Qwen."""


class OnnxVLM:
    """Answers one request at a time; questions about one image share its vision features.

    No batches: dynamic int8 graphs find the range of their activations over all rows of a run, so that an answer would
    depend on what else is asked. For the same reason only the other graphs share the decoder's cache of an image.
    """

    def __init__(self, folder: str | Path, *, name: str, threads: int | None = None) -> None:
        """MpaError where the folder is no ONNX export, lacks a file, or holds a damaged one."""
        self.name, self.folder = name, Path(folder)
        self.artifact = read_artifact(self.folder)
        self.threads = usable_threads(threads, self.artifact.threads)
        self.tokenizer = PromptTokenizer(self.folder, self.artifact)
        paths = {component: self.folder / file for component, file in self.artifact.files.items()}
        if sorted(paths) != ["decoder", "embed", "vision"]:
            raise MpaError(f"{self.folder} is no ONNX export (format {self.artifact.format}): name an ONNX folder")
        # a file is in memory twice while it is loaded: the largest comes first
        self.decoder: Any = Decoder(paths["decoder"], self.threads, self.artifact.text)
        self.vision: Any = VisionEncoder(paths["vision"], self.threads)
        self.embed: Any = Graph(paths["embed"], 1)  # a table: nothing to share out

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order. A shared image costs no vision time from the second question on."""
        replies: dict[int, Reply] = {}
        seen: Seen | None = None
        order = by_image(requests)
        for i, following in zip(order, [*order[1:], None], strict=False):
            clock, image = Clock(), requests[i].image
            if seen is None or seen.image is not image:
                seen = None  # its memory goes first
                seen = Seen(image, prepare(self.artifact.image, image))
            again = following is not None and requests[following].image is image
            replies[i] = self._reply(requests[i], seen, again and self.decoder.rows_apart, clock)
        return [replies[i] for i in range(len(requests))]

    def trace(self, requests: Sequence[Request], pixels: Sequence[Pixels] | None = None) -> list[Trace]:
        """Greedy; the decoder takes all requests as one left-padded batch, pictures go one by one, as in `answer`."""
        if not requests:
            return []
        prepared = [prepare(self.artifact.image, request.image) for request in requests]
        given = [one.pixels for one in prepared] if pixels is None else list(pixels)
        features = [self.vision.encode(arrays) for arrays in given]
        ids = [self._ids(request, one) for request, one in zip(requests, prepared, strict=True)]
        prompts = [self._prompt(*parts) for parts in zip(ids, given, features, strict=True)]
        logits = self._greedy(prompts, [self._limit(*pair) for pair in zip(requests, ids, strict=True)])
        return [
            Trace(tuple(prompt.ids), pixels_digest(arrays), seen, row, tuple(row.argmax(-1).tolist()))
            for prompt, arrays, seen, row in zip(prompts, given, features, logits, strict=True)
        ]

    def close(self) -> None:
        """Free the weights."""
        self.vision = self.embed = self.decoder = None

    # --- one request --------------------------------------------------------------------------------------------------

    def _reply(self, request: Request, seen: Seen, keep: bool, clock: Clock) -> Reply:
        """Answer a question; `keep` its cache for the next one about the same picture."""
        ids, sampler = self._ids(request, seen.prepared), Sampler(request)
        preprocess_s = clock.lap()
        if seen.features is None:
            seen.features = self.vision.encode(seen.prepared.pixels)
        vision_s = clock.lap()
        prompt = self._prompt(ids, seen.prepared.pixels, seen.features)
        logits, cache = self._prefill(prompt, seen, keep)
        first = sampler(logits[0])
        prefill_s, ttft_s = clock.lap(), clock.total()
        tokens = self._decode(first, prompt, cache, sampler)
        text = self.tokenizer.decode(tokens)
        stopped = tokens[-1] in self.artifact.tokens.ends
        decode_s = clock.lap()
        timing = Timing(clock.total(), ttft_s, preprocess_s, vision_s, prefill_s, decode_s)
        return Reply(text, "stop" if stopped else "length", len(tokens), timing)

    def _ids(self, request: Request, prepared: Prepared) -> list[int]:
        ids = self.tokenizer.encode(prompt_text(self.artifact, request.prompt, prepared.expansion))
        if len(ids) >= self.artifact.context_tokens:
            room = f"{len(ids)} tokens, this export takes {self.artifact.context_tokens}"
            raise MpaError(f"the prompt has {room}: ask a shorter question, or export for a longer context")
        return ids

    def _limit(self, request: Request, ids: list[int]) -> int:
        return min(request.max_new_tokens, self.artifact.context_tokens - len(ids))

    def _prompt(self, ids: list[int], pixels: Pixels, features: NDArray[np.float32]) -> Prompt:
        """Token embeddings with the picture's in their places. MpaError where their numbers or widths differ."""
        array = np.array(ids, np.int64)
        at = array == self.artifact.tokens.image_id
        # what onnxruntime hands out is its own memory
        embeds = self._embed(array[None])[0].copy()
        wanted = (int(at.sum()), embeds.shape[1])
        if features.shape != wanted:
            sizes = " for ".join(f"{rows} x {width}" for rows, width in (features.shape, wanted))
            raise MpaError(f"{self.folder}: the vision encoder gives {sizes} numbers: export again")
        embeds[at] = features
        return Prompt(ids, embeds, self._places(ids, pixels))

    def _embed(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        embeds: NDArray[Any] = self.embed.run({"input_ids": ids})[0]
        return embeds

    def _places(self, ids: list[int], pixels: Pixels) -> NDArray[np.int64]:
        if not self.decoder.three_axes:
            return positions.counted(len(ids))
        grid = next(array for name, array in pixels.items() if name.endswith("grid_thw"))[0]
        frames, rows, columns = (int(size) for size in grid)
        merged = self.artifact.image["merge_size"]
        return positions.three_axes(ids, self.artifact.tokens.image_id, (frames, rows // merged, columns // merged))

    def _prefill(self, prompt: Prompt, seen: Seen, keep: bool) -> tuple[NDArray[np.float32], Cache]:
        """The decoder over the prompt, or over what differs from the last prompt about the same picture."""
        n = common_prefix(prompt.ids[:-1], seen.ids)
        cache = first_tokens(seen.cache, n) if n else self.decoder.empty_cache(1)
        mask = np.ones((1, len(prompt.ids)), np.int64)
        places = np.expand_dims(prompt.places[..., n:], -2)
        logits, cache = self.decoder.step(prompt.embeds[None, n:], mask, places, cache)
        seen.ids, seen.cache = (prompt.ids, cache) if keep else ([], {})
        return self._finite(logits), cache

    def _decode(self, first: int, prompt: Prompt, cache: Cache, sampler: Sampler) -> list[int]:
        """All tokens of the answer, up to an end token or the limit."""
        tokens, n, ends = [first], len(prompt.ids), self.artifact.tokens.ends
        limit = self._limit(sampler.request, prompt.ids)
        mask = np.ones((1, n + limit), np.int64)
        # the axes of Qwen's positions are equal in a text
        next_place = int(prompt.places.max()) + 1
        shape = (3, 1, 1) if self.decoder.three_axes else (1, 1)
        while len(tokens) < limit and tokens[-1] not in ends:
            done = len(tokens)
            embeds = self._embed(np.array([[tokens[-1]]], np.int64))
            places = np.full(shape, next_place + done - 1, np.int64)
            logits, cache = self.decoder.step(embeds, mask[:, : n + done], places, cache)
            tokens.append(sampler(logits[0]))
        return tokens

    def _finite(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(logits).all():
            raise MpaError(f"{self.decoder.path} computes values that are not numbers: export with another scheme")
        return logits

    # --- many requests ------------------------------------------------------------------------------------------------

    def _greedy(self, prompts: Sequence[Prompt], limits: Sequence[int]) -> list[NDArray[np.float32]]:
        """(steps, vocabulary) logits of each prompt, all as one batch, up to its end token or its limit."""
        n, batch = max(len(prompt.ids) for prompt in prompts), len(prompts)
        mask = np.ones((batch, n + max(limits)), np.int64)
        embeds = np.zeros((batch, n, prompts[0].embeds.shape[-1]), prompts[0].embeds.dtype)
        for row, prompt in enumerate(prompts):
            mask[row, : n - len(prompt.ids)] = 0
            embeds[row, n - len(prompt.ids) :] = prompt.embeds
        places = positions.left_padded([prompt.places for prompt in prompts], n)
        following = np.array([prompt.places.max() + 1 for prompt in prompts])[:, None]
        logits, cache = self.decoder.step(embeds, mask[:, :n], places, self.decoder.empty_cache(batch))
        steps = [self._finite(logits)]
        while len(steps) < max(limits) and not self._all_ended(steps):
            chosen = steps[-1].argmax(-1)[:, None]
            places = following + len(steps) - 1
            places = np.broadcast_to(places, (3, batch, 1)) if self.decoder.three_axes else places
            logits, cache = self.decoder.step(self._embed(chosen), mask[:, : n + len(steps)], places, cache)
            steps.append(logits)
        stacked = np.stack(steps, axis=1)
        return [self._up_to_end(stacked[row, :limit]) for row, limit in enumerate(limits)]

    def _all_ended(self, steps: Sequence[NDArray[np.float32]]) -> bool:
        ended = np.isin([logits.argmax(-1) for logits in steps], self.artifact.tokens.ends)
        return bool(ended.any(axis=0).all())

    def _up_to_end(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        ended = np.isin(logits.argmax(-1), self.artifact.tokens.ends)
        return logits[: int(ended.argmax()) + 1] if ended.any() else logits


def by_image(requests: Sequence[Request]) -> list[int]:
    """Indices of the requests, those about one image in a row."""
    first: dict[int, int] = {}
    for i, request in enumerate(requests):
        first.setdefault(id(request.image), i)
    return sorted(range(len(requests)), key=lambda i: first[id(requests[i].image)])


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share from the start.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
