"""artifact.json: the description of an export, enough to run it without torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mpa_edge.config.scheme import Component, Format
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.paths import inside, names_in
from mpa_edge.types import Inside, Record

ARTIFACT = "artifact.json"


class PromptParts(Record):
    """The model's chat template, filled in for one image and one question."""

    before: str
    """Everything up to the user's text; holds the image placeholder exactly once."""
    after: str
    """Everything after the user's text, up to where the answer starts."""
    placeholder: str
    """The text that stands for the image: the image processor's tokens replace it."""
    trims: bool = False
    """Whether blanks around the user's text are left out."""


class Tokens(Record):
    """Token ids and texts with a meaning."""

    image: str
    """Token that stands for one image embedding."""
    image_id: int
    """Its id."""
    ends: tuple[int, ...]
    """Ids that end an answer."""
    special: tuple[str, ...]
    """Every special token: removed from a user's text and from answers."""


class Artifact(Record):
    """An exported model."""

    schema_version: Literal[1] = 1
    """Of this document."""
    name: str
    """Name in reports: run and scheme."""
    scheme: str
    """Name of the scheme."""
    format: Format
    """onnx, gguf or hybrid."""
    family: str
    """Family of the student."""
    model_type: str
    """`model_type` of config.json."""
    files: dict[Component, Inside]
    """Component -> path inside the folder."""
    prompt: PromptParts
    """Text around the question."""
    tokens: Tokens
    """Ids that the runtime needs."""
    image: dict[str, Any]
    """Values of the image processor, flat, with the target's image budget applied; `kind` names the pipeline."""
    text: dict[str, Any]
    """Sizes of the language model: hidden_size, num_hidden_layers, num_key_value_heads, head_dim, vocab_size.

    `embeds_size` is the width of its input: with DeepStack the features of inner vision layers stand beside the last's.
    """
    context_tokens: int
    """Longest prompt with its answer."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Logits of tokens that occurred, in the prompt or the answer, are divided by it (multiplied where negative)."""
    threads: int | None = None
    """CPU threads that the target asks for; None: one for each usable core."""
    max_new_tokens: int = 16
    """Longest short answer, as the run asked it."""
    prompt_suffix: str = ""
    """What the run appends to each question; callers of `VLM.answer` have already added it."""


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / ARTIFACT).is_file()


def read_artifact(folder: Path) -> Artifact:
    """The description of an exported model. MpaError where it is missing, damaged, or points outside its folder."""
    try:
        with names_in(folder / ARTIFACT):
            artifact = Artifact.model_validate(read_json(folder / ARTIFACT))
            paths = [inside(folder, name) for name in artifact.files.values()]
    except ValidationError as error:
        raise MpaError(f"{folder / ARTIFACT} is missing or damaged: rerun mpa-edge export") from error
    for path in paths:
        if not path.is_file():
            raise MpaError(f"{path} is missing: copy the whole folder, or rerun mpa-edge export")
    return artifact


def write_artifact(folder: Path, artifact: Artifact) -> None:
    """Write the description beside the files that it names."""
    write_json(folder / ARTIFACT, artifact)
