"""A GGUF pair (language model and mmproj) as a VLM, through llama.cpp: no torch, no transformers."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.config.accelerator import CPU_ONLY
from mpa_edge.errors import MpaError, NotFiniteError
from mpa_edge.types import FinishReason, Reply, Request, Timing, Trace
from mpa_edge.vlm.llama_cpp.language import PLACES, LanguageModel, Piece, load_llama_cpp, merged, open_table
from mpa_edge.vlm.llama_cpp.offload import choose, devices_here, placement, usage
from mpa_edge.vlm.llama_cpp.vision import EncodedImage, Projector, images_for_mtmd
from mpa_edge.vlm.pixels import internvl, lfm2_vl
from mpa_edge.vlm.pixels.common import pixels_digest
from mpa_edge.vlm.shared.prompts import prompt_text, prompt_too_long, without_special_tokens, without_thought
from mpa_edge.vlm.shared.sampling import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.config.llama_cpp import LlamaCpp
    from mpa_edge.config.scheme import Component
    from mpa_edge.types import Pixels
    from mpa_edge.vlm.shared.usage import Usage

IMAGE_MARK = "\0"
TILED = {"internvl": internvl.expansion, "lfm2_vl": lfm2_vl.expansion}
"""Pipelines whose tiles llama.cpp is shown one by one -> the text that takes the image's place in the prompt."""


@dataclass(frozen=True)
class Prompt:
    """A question about an image, ready to be read."""

    prefix: tuple[Piece, ...]
    """Up to the last image embedding: the same for every question about the image."""
    tail: Piece
    """The text after it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return tuple(token for piece in (*self.prefix, self.tail) for token in piece.ids)


def assemble(before: Sequence[int], encoded: EncodedImage, after: Sequence[int]) -> Prompt:
    """Put an image between the tokens of a prompt.

    A start or end token that both the prompt's template and the image's own pieces contain is kept once.

    >>> image = EncodedImage((Piece((1,)), Piece((9, 9), np.zeros((2, 4), np.float32)), Piece((2,))), 0.0)
    >>> assemble([5, 1], image, [2, 6]).ids
    (5, 1, 9, 9, 2, 6)
    >>> assemble([5], image, [6]).ids
    (5, 1, 9, 9, 2, 6)
    """
    pieces, start, end = list(encoded.pieces), tuple(before), tuple(after)
    trailing = pieces.pop().ids if pieces[-1].embeddings is None else ()
    if pieces[0].embeddings is None:
        leading = pieces.pop(0).ids
        start = start if start[-len(leading) :] == leading else start + leading
    end = end if end[: len(trailing)] == trailing else trailing + end
    return Prompt((Piece(start), *pieces) if start else tuple(pieces), Piece(end))


class LlamaCppVLM:
    """Answers one request at a time. Subclasses may encode the image with another runtime (see `vlm.hybrid`)."""

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        threads: int | None = None,
        accelerators: Sequence[str] = CPU_ONLY,
        provider_options: Mapping[str, Mapping[str, str]] | None = None,
        profile: Path | None = None,
        llama_cpp: LlamaCpp | None = None,
    ) -> None:
        """`accelerators`: in order of preference; `provider_options` and `profile`: of an encoder in ONNX Runtime (see
        `vlm.hybrid`).

        `llama_cpp`: how it uses them, as in a target file.
        MpaError where llama_cpp, a file or all accelerators are missing, or a file is damaged.
        """
        self.folder, self.name = Path(folder), name
        self.accelerators, self.provider_options, self.profile = accelerators, provider_options, profile
        self.artifact = read_artifact(self.folder)
        load_llama_cpp()
        self.language = LanguageModel(
            self.file("language"),
            context_tokens=self.artifact.context_tokens,
            threads=threads or self.artifact.threads,
            offload=choose(self._language_on(), devices_here(), llama_cpp, "llama-cpp-python"),
        )
        self.table = open_table(self.language.path, self.language.header)
        self._cached: tuple[Image, EncodedImage] | None = None
        """The image whose prefix is in the key-value cache, and its pieces."""
        try:
            self.vision: Any = self._load_vision()
        except BaseException:
            self.language.close()  # nobody gets an object to call `close` on
            raise

    def _language_on(self) -> Sequence[str]:
        """Accelerators for the language model, in order of preference."""
        return self.accelerators

    def file(self, component: Component) -> Path:
        """The file of a component. MpaError where the export has none."""
        if component not in self.artifact.files:
            raise MpaError(f"{self.folder} names no {component} file: rerun mpa-edge export")
        return self.folder / self.artifact.files[component]

    def _load_vision(self) -> Any:
        any_size = str(self.artifact.image["kind"]).startswith(("qwen", "lfm2", "gemma"))
        return Projector(self.file("mmproj"), self.language, self.artifact.tokens.image_id, any_size=any_size)

    def look(self, image: Image, pixels: Pixels | None = None) -> EncodedImage:
        """Encode an image. MpaError where `pixels` are given: llama.cpp makes its own."""
        if pixels is not None:
            raise MpaError("llama.cpp takes an image, not pixels: leave them out, or trace a hybrid export")
        config = self.artifact.image
        tiles = [self.vision.look(tile) for tile in images_for_mtmd(config, image)]
        if config["kind"] not in TILED:
            return tiles[0]
        rows = [piece.embeddings for tile in tiles for piece in tile.pieces if piece.embeddings is not None]
        embeddings, token = np.concatenate(rows), re.escape(config["image_token"])
        pieces, n = list[Piece](), 0
        for part in re.findall(f"(?:{token})+|(?:(?!{token}).)+", TILED[config["kind"]](config, image)):
            if not part.startswith(config["image_token"]):
                pieces.append(Piece(tuple(self.language.tokenize(part))))
                continue
            n, first = n + len(part) // len(config["image_token"]), n
            pieces.append(Piece((self.artifact.tokens.image_id,) * (n - first), embeddings[first:n]))
        return EncodedImage(tuple(pieces), sum(tile.vision_s for tile in tiles))

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; consecutive requests about one image share its prefix."""
        try:
            return [self._answer(request) for request in requests]
        finally:
            self._cached = None  # the caller may draw into its image before the next call

    def trace(self, requests: Sequence[Request], pixels: Sequence[Pixels] | None = None) -> list[Trace]:
        """Greedy tokens with their logits, one request at a time. `pixels` replace the output of the image processor.

        MpaError where `pixels` are given and this runtime cannot take them.
        """
        traces = []
        given: Sequence[Pixels | None] = [None] * len(requests) if pixels is None else pixels
        for request, arrays in zip(requests, given, strict=True):
            encoded = self.look(request.image, arrays)
            prompt = self._prompt(request, encoded)
            self._read(prompt, False)
            greedy = dataclasses.replace(request, temperature=0.0)
            steps = [(token, logits.copy()) for token, logits in self._tokens(greedy, prompt)]
            trace = Trace(
                input_ids=prompt.ids,
                pixels_sha256=None if encoded.pixels is None else pixels_digest(encoded.pixels),
                vision=np.concatenate([piece.embeddings for piece in prompt.prefix if piece.embeddings is not None]),
                logits=np.stack([logits for _, logits in steps]),
                tokens=tuple(token for token, _ in steps),
            )
            traces.append(trace)
        return traces

    def profile_of(self, request: Request) -> Usage:
        """Answer once more, and report what computed, by llama.cpp's log of the load and the time of each part."""
        timing = self.answer([request])[0].timing
        return usage(self.language.offload, placement(PLACES), self.file("mmproj"), timing)

    def forced(self, request: Request, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, vocabulary) logits before each of the tokens, which are read behind the prompt.

        Fewer rows where the context ends.
        """
        prompt = self._prompt(request, self.look(request.image))
        self._read(prompt, False)
        rows = [self.language.logits().copy()]
        for token in tokens[: self.artifact.context_tokens - len(prompt.ids)][:-1]:
            self.language.step(token)
            rows.append(self.language.logits().copy())
        return np.stack(rows)

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.vision.close()
        self.language.close()

    def _answer(self, request: Request) -> Reply:
        started = time.perf_counter()
        is_cached = self._cached is not None and self._cached[0] is request.image
        encoded = self._cached[1] if self._cached and is_cached else self.look(request.image)
        prompt = self._prompt(request, encoded)
        ready = time.perf_counter()
        self._read(prompt, is_cached)
        self._cached = request.image, encoded
        first, tokens = 0.0, []
        for token, _ in self._tokens(request, prompt):
            first = first or time.perf_counter()
            tokens.append(token)
        ended = time.perf_counter()
        vision_s = 0.0 if is_cached else encoded.vision_s
        timing = Timing(
            total_s=ended - started,
            ttft_s=first - started,
            preprocess_s=ready - started - vision_s,
            vision_s=vision_s,
            prefill_s=first - ready,
            decode_s=ended - first,
        )
        reason: FinishReason = "stop" if tokens[-1] in self.artifact.tokens.ends else "length"
        spoken = self.language.text(without_thought(tokens, self.language.thought))
        text = without_special_tokens(spoken, self.artifact.tokens.special).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=len(tokens), timing=timing)

    def _prompt(self, request: Request, encoded: EncodedImage) -> Prompt:
        before, _, after = prompt_text(self.artifact, request.prompt, IMAGE_MARK).partition(IMAGE_MARK)
        prompt = assemble(self.language.tokenize(before), encoded, self.language.tokenize(after))
        if len(prompt.ids) >= self.artifact.context_tokens:
            raise prompt_too_long(len(prompt.ids), self.artifact.context_tokens)
        return prompt

    def _read(self, prompt: Prompt, is_cached: bool) -> None:
        """Read a prompt, or only its tail where its image is in the cache and the model can go back to it."""
        self._cached = None  # until all of it is read
        if is_cached and self.language.can_rewind:
            pieces: Sequence[Piece] = (prompt.tail,)
            self.language.rewind(sum(piece.n_positions for piece in prompt.prefix))
        else:
            pieces = merged((*prompt.prefix, prompt.tail), self.table)
            self.language.rewind()
        for piece in pieces[:-1]:
            self.language.read(piece)
        self.language.read(pieces[-1], logits=True)

    def _tokens(self, request: Request, prompt: Prompt) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(token, the logits that it is from) up to an end token or the limit; they are valid until the next token."""
        language, ends = self.language, set(self.artifact.tokens.ends)
        choose = Sampler(request, self.artifact.repetition_penalty, prompt.ids)
        limit = min(request.max_new_tokens, self.artifact.context_tokens - len(prompt.ids))
        if not np.isfinite(language.logits()).all():
            raise NotFiniteError(language.path, "language")
        for n in range(1, limit + 1):
            logits = language.logits()
            scores = choose.scores(logits)
            token = choose(logits)
            yield token, scores
            if token in ends or n == limit:
                return
            language.step(token)
