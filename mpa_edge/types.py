"""The records that flow between the stages. All are frozen; a field's docstring is the line under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict

from mpa_edge.errors import OutsideError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = dict[str, NDArray[Any]]
    """What an image processor made of one picture: input name of the vision encoder -> array."""

FinishReason = Literal["stop", "length", "filtered", "failed"]
Verdict = Literal["gap", "parity", "unverified"]
Truth = Literal["labels", "reviewed", "teacher"]
"""What answers are compared with: known ones, those of the teacher, or these corrected by what a person reviewed."""


def is_inside(name: str) -> bool:
    """Whether a path that stands in a document or a listing stays below the folder that it belongs to.

    >>> [is_inside(name) for name in ("a/b.png", "", ".", "/etc/x.png", "../x.png", "a/../../x", "a\\0b")]
    [True, False, False, False, False, False, False]
    """
    parts = name.split("/")
    return bool(parts[0]) and "\0" not in name and ".." not in parts and any(part not in ("", ".") for part in parts)


def _require_inside(name: str) -> str:
    if not is_inside(name):
        raise OutsideError(f"{name!r:.200} leads out of its folder: do not use this file, or correct the name")
    return name


Inside = Annotated[str, AfterValidator(_require_inside)]
"""A path below the folder that a record belongs to; OutsideError where a record names another one."""


@dataclass(frozen=True)
class Drop:
    """Why something is left out: returned instead of None, written to the dropped rows, counted on screen."""

    reason: str
    """A short phrase, the same for every case of its kind: it is what gets counted."""
    detail: str = ""
    """What was special about this one case."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one reply went."""

    total_s: float
    """From the request to the last token, seconds (for a batch: its wall time divided by its size)."""
    ttft_s: float | None = None
    """From the request to the first token, seconds; None where the runtime does not say."""
    preprocess_s: float | None = None
    """Picture and text to numbers."""
    vision_s: float | None = None
    """Vision encoder with its connector."""
    prefill_s: float | None = None
    """Language model over the prompt."""
    decode_s: float | None = None
    """All tokens after the first."""


@dataclass(frozen=True)
class Request:
    """One question about one image."""

    image: Image
    """RGB, already decoded under the pixel cap."""
    prompt: str
    """The user's turn, without chat template and image token: the model's own file adds those."""
    max_new_tokens: int = 16
    """Upper bound of generated tokens, the end token included."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus mass; only read when temperature > 0."""
    seed: int = 0
    """Seed of this request's sampling; only read when temperature > 0."""


@dataclass(frozen=True)
class Reply:
    """What a model said."""

    text: str
    """Decoded text without special tokens and outer blanks."""
    finish_reason: FinishReason
    """stop: the end token came; length: cut at max_new_tokens; filtered: a server withheld it; failed: nothing came."""
    n_tokens: int
    """Generated tokens, the end token included."""
    timing: Timing | None = None
    """None where nothing was measured."""
    drop: Drop | None = None
    """Why there is nothing in it to use, where a server failed or said nothing; None for every answer of a model."""


@dataclass(frozen=True)
class Trace:
    """What went on inside a model at one request: two of them tell whether two files hold the same model."""

    input_ids: tuple[int, ...]
    """Prompt as the language model met it, padding left out; the image token's id at every image position."""
    pixels_sha256: str | None
    """Hash of the vision encoder's input (`vlm.pixels.common.pixels_digest`); None where the runtime hides it."""
    vision: NDArray[np.float32]
    """(image tokens, hidden): what took the place of the image tokens."""
    logits: NDArray[np.float32]
    """(steps, vocabulary): before each greedy token, the first from the prompt alone."""
    tokens: tuple[int, ...]
    """(steps,) greedy tokens, the end token included."""


class VLM(Protocol):
    """Something that answers questions about images: a checkpoint, an ONNX folder, a GGUF pair, a server."""

    name: str
    """How reports call it."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer every request, in order: one reply each."""
        ...

    def close(self) -> None:
        """Free the memory; the model cannot be used afterwards. Safe to call twice."""
        ...


class Record(BaseModel):
    """Base of everything that is written to disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(Record):
    """A question with known answers, for evaluation only."""

    id: str
    """Unique within its file."""
    image: str
    """Path of the image, relative to the file that names it."""
    question: str
    """As people asked it, with its question mark."""
    answers: tuple[str, ...]
    """Every accepted answer; at least one."""
    kind: str | None = None
    """Question kind for the breakdown, where the benchmark has one."""
    group: str | None = None
    """Images of one group are near-duplicates: intervals count them as one; None: each image is its own."""


class PseudoAnnotation(Record):
    """A question and an answer that the teacher wrote for an unlabelled image."""

    id: str
    """Stable across runs: made from image id, sample number and question."""
    image_id: str
    """First 16 hex digits of the sha256 of the image file."""
    image: Inside
    """Path of the image, relative to the images folder."""
    question: str
    """The whole question, with its question mark."""
    answer: str
    """Canonical short answer."""
    votes: tuple[str, ...]
    """What the teacher said when it was asked its own question again, greedy first."""
    teacher: str
    """Name of the model that wrote it."""


class ParityRecord(Record):
    """One pseudo annotation after both models answered it."""

    id: str
    """Id of the pseudo annotation."""
    image_id: str
    """First 16 hex digits of the sha256 of the image file."""
    image: Inside
    """Path of the image, relative to the images folder."""
    question: str
    """The whole question, with its question mark."""
    answer: str
    """Canonical pseudo answer: the training label where the verdict is gap."""
    teacher_answer: str
    """The teacher's own answer to the question."""
    student_answer: str | None
    """The student's answer; None where the teacher did not confirm its own, so that nobody asked."""
    verdict: Verdict
    """gap: teacher agrees, student does not; parity: both agree; unverified: the teacher does not."""


class Dropped(Record):
    """A row that was left out, and why."""

    id: str
    """Id of the row, or of the image where there was no row yet."""
    image: str
    """Path of the image, relative to the images folder."""
    stage: str
    """Stage that dropped it: annotate, identify, level or evaluate."""
    reason: str
    """Short phrase that is counted."""
    detail: str
    """What was special about this case; may be empty."""


class Prediction(Record):
    """One model's answer to one evaluation question."""

    sample_id: str
    """Id of the sample."""
    image_id: str
    """Bootstrap cluster: questions about one image, or one group of near-duplicates, belong together."""
    kind: str | None
    """Question kind, where the benchmark has one."""
    question: str
    """The question as it was asked."""
    answers: tuple[str, ...]
    """The accepted answers."""
    model: str
    """teacher, base, aligned, or the name of an export."""
    text: str
    """What the model said."""
    score: float
    """Strict metric of the task, 0 to 1."""


class AlignAccuracy(Record):
    """Strict metric on the held-out questions, 0 to 1: agreement with the teacher where the truth is its answers."""

    teacher: float | None = None
    """The large model; null where the truth is its own answers."""
    base: float
    """The small model before."""
    aligned: float
    """The small model after."""
    n: int
    """Number of questions, the same for all three."""


class TeacherUsage(Record):
    """What a teacher behind a server has cost a run, all attempts together."""

    requests: int = 0
    """Replies that came, whatever was in them."""
    failures: int = 0
    """Attempts that came to nothing: errors, time-outs, unusable replies."""
    tokens_in: int = 0
    """Tokens of prompts and images, as the server counts them."""
    tokens_out: int = 0
    """Tokens of answers."""
    uncounted: int = 0
    """Replies whose tokens the server did not count."""
    cost: float | None = None
    """In the currency of the recipe's prices; null without prices."""


class AlignReport(Record):
    """What `mpa-edge align --json` prints. A value is null where the run did not measure it."""

    run: str
    """The run folder."""
    images: int
    """Images that could be read."""
    annotated: int
    """Pseudo annotations kept by annotate."""
    dropped: dict[str, int]
    """Dropped rows of all stages, by reason."""
    verified: int
    """Pseudo annotations that the teacher confirmed."""
    gap: int
    """Verified ones that the student got wrong: the parity subset."""
    truth: Truth | None = None
    """labels; teacher: the accuracy is none, but the agreement with the teacher; reviewed: an estimate of the true
    accuracy. Null without evaluation."""
    n_reviewed: int | None = None
    """Questions that a person has reviewed; null, as the next three, unless the truth is reviewed."""
    teacher_accuracy: float | None = None
    """Of these that can be answered, the share in which the teacher was right."""
    teacher_ci95: tuple[float, float] | None = None
    """95 % interval of it."""
    method: str | None = None
    """How the gain was estimated: prediction-powered, or from the reviewed rows alone."""
    accuracy: AlignAccuracy | None
    """Null where there was nothing to evaluate on."""
    gain: float | None
    """aligned - base, 0 to 1."""
    gain_ci95: tuple[float, float] | None
    """95 % interval of the gain, clustered by image."""
    p_mcnemar: float | None
    """Exact McNemar test of aligned against base, two-sided; null for an estimate from reviewed questions."""
    seconds: dict[str, float]
    """Wall seconds of each stage, all attempts together."""
    peak_rss_bytes: int
    """Largest resident memory of any process of the run."""
