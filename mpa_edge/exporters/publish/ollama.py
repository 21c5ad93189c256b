"""A Modelfile for Ollama: the weights, the checkpoint's chat template in Go's language, where an answer ends.

Ollama fills in the template (https://pkg.go.dev/text/template) with `.System` and `.Messages`, each with `.Role`,
`.Content` and `.Images`. In front of a message's text it writes `[img-0]`, `[img-1]` and so on for its images, and
gives llama.cpp's server a marker in their place. Source: server/prompt.go, template/template.go and
llm/llama_server.go of Ollama, commit fb3076099.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.template import adds_bos, image_text
from mpa_edge.exporters.publish.snippets import pixel_limits
from mpa_edge.vlm.llama_cpp.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from mpa_edge.artifact import Artifact

SYSTEM, QUESTION, ANSWER = "mpa system 0451", "mpa question 0451", "mpa answer 0451"
TEXTS = {"system": SYSTEM, "user": QUESTION, "assistant": ANSWER}
MARK = "[img-{}]"


class Turn(NamedTuple):
    """One message."""

    role: str
    """system, user or assistant."""
    n_images: int = 0
    """In front of its text."""


ASK, SHOW, TWO, SAY, TELL = Turn("user"), Turn("user", 1), Turn("user", 2), Turn("assistant"), Turn("system")
TALKS = (
    (ASK,),
    (SHOW,),
    (TWO,),
    (TELL, SHOW),
    (SHOW, SAY, ASK),
    (ASK, SAY, SHOW, SAY, SHOW),
    (TELL, SHOW, SAY, ASK, SAY, ASK),
)
"""What a template must write as the checkpoint's does."""


class Parts(NamedTuple):
    """What a chat template writes around the texts of a talk."""

    start: str
    """In front of everything."""
    always: bool
    """Whether also in front of a system message."""
    around: dict[str, tuple[str, str]]
    """Role -> in front of a text and behind it."""
    shown: str
    """In front of the first image of a user's message."""
    between: str
    """Behind each image."""
    ask: str
    """Behind everything: the answer starts here."""


def modelfile(processor: Any, artifact: Artifact, folder: Path) -> str:
    """The whole file, for the GGUF pair of an export; paths are relative to it.

    MpaError where the checkpoint's chat template cannot be expressed.
    """
    tokenizer, language = processor.tokenizer, artifact.files["language"]
    bos = str(tokenizer.bos_token) if adds_bos(read_header(folder / language).metadata) else ""
    lines = ["# ollama create my-model -f Modelfile"]
    if limits := pixel_limits(artifact).strip():
        lines.append(f"# Ollama does not take llama.cpp's {limits}: it chooses the size of an image itself")
    lines += [f"FROM ./{artifact.files[part]}" for part in ("language", "mmproj")]
    lines.append(f'TEMPLATE """{go_template(processor, bos)}"""')
    lines += [f'PARAMETER stop "{word}"' for word in tokenizer.convert_ids_to_tokens(list(artifact.tokens.ends))]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {artifact.context_tokens}"]
    if artifact.threads:
        lines.append(f"PARAMETER num_thread {artifact.threads}")
    return "\n".join(lines) + "\n"


def go_template(processor: Any, bos: str = "") -> str:
    """The checkpoint's chat template in Go's language, for talks that end with a question.

    `bos`: the token that llama.cpp writes in front by itself. MpaError where a talk would be written in another way.
    """
    parts = parts_of(processor, bos)
    if parts is None or any(written(parts, talk) != rendered(processor, talk, bos) for talk in TALKS):
        raise MpaError(
            "the checkpoint's chat template cannot be written for Ollama, which fills in fixed texts around each "
            "message: use --client llama-server"
        )
    (before_system, after_system), (before_user, after_user), (before, after) = parts.around.values()
    start = parts.start if parts.always else "{{ if not .System }}" + parts.start + "{{ end }}"
    if parts.shown != before_user:
        before_user = "{{ if .Images }}" + parts.shown + "{{ else }}" + before_user + "{{ end }}"
    text = "{{ .Content }}"
    if parts.between:  # marks of seven characters: up to ten images
        one = "{{ slice $text 0 7 }}" + parts.between + "{{ $text = slice $text 7 }}"
        text = "{{ $text := .Content }}{{ range .Images }}" + one + "{{ end }}{{ $text }}"
    return "".join(
        (
            start + "{{ range .Messages }}",
            '{{ if eq .Role "user" }}' + before_user + text + after_user,
            '{{ else if eq .Role "assistant" }}' + before + "{{ .Content }}" + after,
            '{{ else if eq .Role "system" }}' + before_system + "{{ .Content }}" + after_system,
            "{{ end }}{{ end }}" + parts.ask,
        )
    )


def parts_of(processor: Any, bos: str = "") -> Parts | None:
    """What the checkpoint's chat template writes around texts; None where it has no such parts."""
    from jinja2 import TemplateError

    try:
        asked, shown, told, answered, again, shown_again = (
            rendered(processor, talk, bos, ask=False)
            for talk in ((ASK,), (SHOW,), (TELL, ASK), (ASK, SAY), (ASK, SAY, ASK), (ASK, SAY, SHOW))
        )
        waiting = rendered(processor, (ASK,), bos)
    except (TemplateError, TypeError):
        return None
    first, _, after_user = asked.partition(QUESTION)
    after_assistant = answered.rpartition(ANSWER)[2]
    to_answer, _, to_question = again.partition(QUESTION)[2].rpartition(QUESTION)[0].partition(ANSWER)
    before_user = to_question.removeprefix(after_assistant)
    head, _, rest = told.partition(SYSTEM)
    after_system = rest.partition(QUESTION)[0].removesuffix(before_user)
    image, _, between = shown_again.rpartition(ANSWER)[2].partition(QUESTION)[0].partition(MARK.format(0))
    start = first.removesuffix(before_user)
    always = head.startswith(start)
    around = {
        "system": (head.removeprefix(start) if always else head, after_system),
        "user": (before_user, after_user),
        "assistant": (to_answer.removeprefix(after_user), after_assistant),
    }
    parts = Parts(start, always, around, image.removeprefix(after_assistant), between, waiting.removeprefix(asked))
    whole = "".join((start, *sum(around.values(), ()), parts.shown, between, parts.ask))
    unsafe = "{{" in whole or '"""' in whole or not whole.replace("\n", "").isprintable()
    return None if unsafe or MARK.format(0) not in shown else parts


def written(parts: Parts, talk: Sequence[Turn]) -> str:
    """What the Go template makes of a talk."""
    numbers, text = count(), "" if talk[0].role == "system" and not parts.always else parts.start
    for role, n_images in talk:
        before, after = parts.around[role]
        images = "".join(MARK.format(next(numbers)) + parts.between for _ in range(n_images))
        text += (parts.shown if n_images else before) + images + TEXTS[role] + after
    return text + parts.ask


def rendered(processor: Any, talk: Sequence[Turn], bos: str = "", *, ask: bool = True) -> str:
    """What the checkpoint's own template makes of a talk, with Ollama's marks for images and without `bos` in front."""
    from mpa_edge.vlm.transformers.checkpoint import with_bos

    messages = [
        {"role": role, "content": [*[{"type": "image"}] * n_images, {"type": "text", "text": TEXTS[role]}]}
        for role, n_images in talk
    ]
    text = str(processor.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False))
    first, *others = with_bos(processor.tokenizer, text).removeprefix(bos).split(image_text(processor))
    return first + "".join(MARK.format(number) + other for number, other in enumerate(others))
