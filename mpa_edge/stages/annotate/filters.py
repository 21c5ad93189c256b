"""What makes a pseudo annotation not worth a lesson: said twice, said without looking, said without being sure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from rapidfuzz.distance import Indel

from mpa_edge.errors import MpaError
from mpa_edge.metrics.lenient import normalized
from mpa_edge.types import Drop, PseudoAnnotation, Reply

if TYPE_CHECKING:
    from mpa_edge.config.recipe import AnnotateConfig

GREY = (128, 128, 128)
WORD = re.compile(r"\w+")
Agrees = Callable[[str, str], bool]


def words(question: str) -> list[str]:
    """What is compared of a question.

    >>> words("Which bar is HIGHEST?")
    ['which', 'bar', 'is', 'highest']
    """
    return WORD.findall(question.casefold())


def alikeness(one: str, other: str) -> float:
    """How many of the words of two questions are the same, in order, 0 to 1.

    >>> alikeness("Which bar is highest?", "which bar is the highest"), alikeness("How many?", "What color?")
    (0.8888888888888888, 0.0)
    """
    return float(Indel.normalized_similarity(words(one), words(other)))


def repeats(question: str, answer: str, earlier: Iterable[tuple[str, str]], alike: float) -> bool:
    """Whether a question about a picture was asked before: in the same words, or in such with the same answer.

    Questions that differ in one word are two where the answers differ: "the value of A" is not "the value of B".

    >>> repeats("What is the value of B?", "5", [("What is the value of A?", "3")], 0.8)
    False
    >>> repeats("What is the value of bar A?", "3.", [("What is the value of A?", "3")], 0.8)
    True
    """
    return any(
        question.casefold() == said.casefold()
        or (alike < 1 and normalized(answer) == normalized(label) and alikeness(question, said) >= alike)
        for said, label in earlier
    )


def blind(image: Image.Image) -> Image.Image:
    """A grey picture of the same size: what is answered about it is known, or guessed, without looking."""
    return Image.new("RGB", image.size, GREY)


def guessed(row: PseudoAnnotation, reply: Reply, agrees: Agrees) -> Drop | None:
    """A Drop where the teacher gave its answer without the picture, or where its server gave none at all."""
    if reply.drop is not None:
        return reply.drop
    return Drop("answered without the picture", reply.text[:200]) if agrees(reply.text, row.answer) else None


def voted(row: PseudoAnnotation, replies: Sequence[Reply], config: AnnotateConfig) -> PseudoAnnotation | Drop:
    """The annotation with what the teacher said to its own question, or why it is left out.

    A row that a server left without one of its votes is dropped: a majority of fewer is another measure.
    """
    lost = next((reply.drop for reply in replies if reply.drop is not None), None)
    if lost is not None:
        return lost
    said = row.model_copy(update={"votes": tuple(reply.text for reply in replies)})
    return said if not config.min_confidence else sure(said, replies[0].logprob, config.min_confidence)


def sure(row: PseudoAnnotation, logprob: float | None, min_confidence: float) -> PseudoAnnotation | Drop:
    """The annotation with its log-probability, or a Drop where exp of it is below the limit.

    Raises MpaError where the teacher does not say how sure it was.
    """
    if logprob is None:
        raise MpaError("the teacher gives no token probabilities: leave annotate.min_confidence out")
    if math.exp(logprob) < min_confidence:
        return Drop("the teacher was not sure", f"{row.votes[0][:100]!r} with {math.exp(logprob):.3f}")
    return row.model_copy(update={"logprob": logprob})
