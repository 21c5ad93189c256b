"""What every VLM with a GGUF language model does alike: the prompt around the picture, the cache, the answer."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MpaError
from mpa_edge.types import FinishReason, Reply, Request, Timing, Trace
from mpa_edge.vlm.llama_cpp.language import LanguageModel, Piece
from mpa_edge.vlm.llama_cpp.token_table import merged, open_table
from mpa_edge.vlm.prompts import prompt_text, without_special_tokens
from mpa_edge.vlm.sampling import Sampler
from mpa_edge.vlm.trace import pixels_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.config.scheme import Component
    from mpa_edge.types import Pixels

Loaded = TypeVar("Loaded")
PICTURE_HERE = "\0"


@dataclass(frozen=True)
class Picture:
    """What the language model reads in the place of a picture."""

    pieces: tuple[Piece, ...]
    """In order; tokens around and between the embeddings are pieces, too."""
    vision_s: float
    """Seconds in the vision encoder with its connector."""
    pixels: Pixels | None = None
    """What the vision encoder was given; None where it is hidden."""


@dataclass(frozen=True)
class Prompt:
    """A question with its picture, ready to be read."""

    prefix: tuple[Piece, ...]
    """Up to the last image embedding: the same for every question about the picture."""
    tail: Piece
    """The text behind it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return tuple(token for piece in (*self.prefix, self.tail) for token in piece.ids)


@dataclass(frozen=True)
class Seen:
    """What lies in the cache."""

    image: Image
    """The picture."""
    picture: Picture
    """What was made of it."""
    position: int
    """Where the text behind it goes on."""


def assemble(before: Sequence[int], picture: Picture, after: Sequence[int]) -> Prompt:
    """Put a picture between the tokens of a prompt.

    A start or end token that the prompt has around its picture, and the picture's own pieces too, is kept once.

    >>> seen = Picture((Piece((1,)), Piece((9, 9), np.zeros((2, 4), np.float32)), Piece((2,))), 0.0)
    >>> assemble([5, 1], seen, [2, 6]).ids
    (5, 1, 9, 9, 2, 6)
    >>> assemble([5], seen, [6]).ids
    (5, 1, 9, 9, 2, 6)
    """
    pieces, start = list(picture.pieces), tuple(before)
    trailing = pieces.pop().ids if pieces[-1].embeddings is None else ()
    if pieces[0].embeddings is None:
        leading = pieces.pop(0).ids
        start = start if start[-len(leading) :] == leading else start + leading
    end = tuple(after)
    end = end if end[: len(trailing)] == trailing else trailing + end
    return Prompt((Piece(start), *pieces) if start else tuple(pieces), Piece(end))


class LlamaAnswers(ABC):
    """Base of the VLMs: they differ in how they look at a picture."""

    def __init__(self, folder: str | Path, *, name: str, threads: int | None = None) -> None:
        """Load the language model of an export. MpaError where a package or file is missing or damaged."""
        self.folder, self.name = Path(folder), name
        self.artifact = read_artifact(self.folder)
        self.language = LanguageModel(
            self.file("language"),
            context_tokens=self.artifact.context_tokens,
            threads=threads or self.artifact.threads,
        )
        self.table = open_table(self.language.path, self.language.header)
        self._seen: Seen | None = None

    def file(self, component: Component) -> Path:
        """The file of a component. MpaError where the export has none."""
        if component not in self.artifact.files:
            raise MpaError(f"{self.folder} names no {component} file: export again with mpa-edge export")
        return self.folder / self.artifact.files[component]

    @abstractmethod
    def look(self, image: Image, pixels: Pixels | None = None) -> Picture:
        """What the language model reads in the place of a picture; `pixels` replace the own image processor."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order, one at a time; neighbours with the same image share its prefix."""
        try:
            return [self._answer(request) for request in requests]
        finally:
            self._seen = None  # the caller may draw into its image before it asks again

    def trace(self, requests: Sequence[Request], pixels: Sequence[Pixels] | None = None) -> list[Trace]:
        """What goes on at each request, greedy and alone; MpaError where `pixels` are given and cannot be taken."""
        chosen: Sequence[Pixels | None] = [None] * len(requests) if pixels is None else pixels
        return [self._trace(request, given) for request, given in zip(requests, chosen, strict=True)]

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.language.close()

    def _or_close(self, load: Callable[[], Loaded]) -> Loaded:
        """Load the other half; where that fails, nobody will call `close`."""
        try:
            return load()
        except BaseException:
            self.language.close()
            raise

    def _answer(self, request: Request) -> Reply:
        started = time.perf_counter()
        seen = self._seen if self._seen is not None and self._seen.image is request.image else None
        picture = seen.picture if seen else self.look(request.image)
        prompt = self._prompt(request, picture)
        ready = time.perf_counter()
        position = self._read(prompt, seen)
        self._seen = Seen(request.image, picture, position)
        first, tokens = 0.0, []
        for token, _ in self._tokens(request, prompt):
            first = first or time.perf_counter()
            tokens.append(token)
        ended = time.perf_counter()
        vision_s = 0.0 if seen else picture.vision_s
        timing = Timing(
            total_s=ended - started,
            ttft_s=first - started,
            preprocess_s=ready - started - vision_s,
            vision_s=vision_s,
            prefill_s=first - ready,
            decode_s=ended - first,
        )
        return self._reply(tokens, timing)

    def _trace(self, request: Request, pixels: Pixels | None) -> Trace:
        picture = self.look(request.image, pixels)
        prompt = self._prompt(request, picture)
        self._read(prompt, None)
        greedy = dataclasses.replace(request, temperature=0.0)
        steps = [(token, logits.copy()) for token, logits in self._tokens(greedy, prompt)]
        return Trace(
            input_ids=prompt.ids,
            pixels_sha256=None if picture.pixels is None else pixels_digest(picture.pixels),
            vision=np.concatenate([piece.embeddings for piece in prompt.prefix if piece.embeddings is not None]),
            logits=np.stack([logits for _, logits in steps]),
            tokens=tuple(token for token, _ in steps),
        )

    def _prompt(self, request: Request, picture: Picture) -> Prompt:
        text = prompt_text(self.artifact, request.prompt, PICTURE_HERE)
        before, _, after = text.partition(PICTURE_HERE)
        prompt = assemble(self.language.tokenize(before), picture, self.language.tokenize(after))
        if len(prompt.ids) >= self.artifact.context_tokens:
            room = f"{len(prompt.ids)} tokens, this export takes {self.artifact.context_tokens}"
            raise MpaError(f"the prompt has {room}: ask a shorter question, or export for a longer context")
        return prompt

    def _read(self, prompt: Prompt, seen: Seen | None) -> int:
        """Read a prompt, or only what stands behind a picture that is in the cache; where that begins."""
        position = sum(piece.n_positions for piece in prompt.prefix) if seen is None else seen.position
        self.language.rewind(0 if seen is None else position)
        self._seen = None  # until all of it is read
        pieces = merged((*prompt.prefix, prompt.tail), self.table) if seen is None else (prompt.tail,)
        for piece in pieces[:-1]:
            self.language.read(piece)
        self.language.read(pieces[-1], logits=True)
        return position

    def _tokens(self, request: Request, prompt: Prompt) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(token, the logits it was chosen from) up to the end token or the limit; the logits are valid for a step."""
        language, choose, ends = self.language, Sampler(request), set(self.artifact.tokens.ends)
        limit = min(request.max_new_tokens, self.artifact.context_tokens - len(prompt.ids))
        if not np.isfinite(language.logits()).all():
            raise MpaError(f"{language.path} computes values that are not numbers: export with another scheme")
        for n in range(1, limit + 1):
            logits = language.logits()
            token = choose(logits)
            yield token, logits
            if token in ends or n == limit:
                return
            language.step(token)

    def _reply(self, tokens: Sequence[int], timing: Timing) -> Reply:
        reason: FinishReason = "stop" if tokens[-1] in self.artifact.tokens.ends else "length"
        text = without_special_tokens(self.language.text(tokens), self.artifact.tokens.special).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=len(tokens), timing=timing)
