"""What was exported, in one small file beside the weights: enough to run it without torch and without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mpa_edge.config.scheme import Component, Format
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.types import Record

ARTIFACT = "artifact.json"


class PromptParts(Record):
    """The model's chat template, already filled in for one picture and one question."""

    before: str
    """Everything up to the user's text; holds the image placeholder exactly once."""
    after: str
    """Everything behind the user's text, up to where the answer starts."""
    placeholder: str
    """The text that stands for the picture: the image processor's tokens take its place."""


class Tokens(Record):
    """Token ids and texts with a meaning."""

    image: str
    """Token that stands for one image embedding."""
    image_id: int
    """Its id."""
    ends: tuple[int, ...]
    """Ids that end an answer."""
    special: tuple[str, ...]
    """Every special token: none may come through a user's text or stay in an answer."""


class Artifact(Record):
    """An exported model."""

    schema_version: Literal[1] = 1
    """Of this document."""
    name: str
    """How reports call it: run and scheme."""
    scheme: str
    """Name of the scheme."""
    format: Format
    """Which runtime takes it."""
    family: str
    """Family of the student."""
    model_type: str
    """`model_type` of config.json."""
    files: dict[Component, str]
    """Component -> path inside the folder."""
    prompt: PromptParts
    """Text around the question."""
    tokens: Tokens
    """Ids that the runtime must know."""
    image: dict[str, Any]
    """Values of the image processor, flat, with the target's image budget applied; `kind` names the pipeline."""
    text: dict[str, Any]
    """Sizes of the language model: hidden_size, num_hidden_layers, num_key_value_heads, head_dim, vocab_size.

    `embeds_size` is the width of its input: with DeepStack the features of inner vision layers stand beside the last's.
    """
    context_tokens: int
    """Longest prompt with its answer."""
    threads: int | None = None
    """CPU threads that the target asks for; None: one for each usable core."""
    max_new_tokens: int = 16
    """Longest short answer, as the run asked it."""
    prompt_suffix: str = ""
    """What the run put behind each question; callers of `VLM.answer` have added it already."""


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / ARTIFACT).is_file()


def read_artifact(folder: Path) -> Artifact:
    """The description of an exported model. MpaError where it is missing, damaged, or points outside its folder."""
    try:
        artifact = Artifact.model_validate(read_json(folder / ARTIFACT))
    except ValidationError as error:
        raise MpaError(f"{folder / ARTIFACT} is missing or damaged: export again with mpa-edge export") from error
    for name in artifact.files.values():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise MpaError(f"{folder / ARTIFACT} names '{name}' outside its folder: do not use this export")
        if not path.is_file():
            raise MpaError(f"{path} is missing: copy the whole folder, or export again")
    return artifact


def write_artifact(folder: Path, artifact: Artifact) -> None:
    """Write the description beside the files that it names."""
    write_json(folder / ARTIFACT, artifact)
