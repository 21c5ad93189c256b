"""The task: what the teacher is to ask about an image, what an answer is, and how a question is put.

The prompts follow the structure of Model Parity Alignment (arXiv 2509.16633): objective, output format, guidelines; the
words are this project's own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from mpa_edge.config.section import Section

if TYPE_CHECKING:
    from typing import Self  # novm

OUTPUT_FORMAT = (
    "Write exactly two lines and nothing else:\nQuestion: <one question, ending with a question mark>\nAnswer: "
)
MAX_WORDS = 7
TOKENS, TOKENS_A_FIELD = 16, 24
OF_TYPE = {
    "text": ("max_words",),
    "number": ("relative", "absolute", "unit"),
    "choice": ("choices",),
    "json": ("fields", "relative", "absolute"),
}
"""Type of answer -> the keys that belong to it."""
FITS = {
    "text": ("exact-match", "anls", "relaxed-accuracy", "vqa-accuracy"),
    "number": ("relaxed-accuracy", "exact-match"),
    "choice": ("exact-match",),
    "json": (),
}
"""Type of answer -> the metrics that may be named for it; all but text have one of their own."""
Words = Annotated[str, Field(min_length=1, max_length=2000)]
ChoiceText = Annotated[str, Field(min_length=1, max_length=80)]
FieldName = Annotated[str, Field(pattern=r"^\w[\w.-]{0,63}$")]


class KindConfig(Section):
    """One kind of question. Several annotations of an image take the kinds in turn."""

    name: str = Field(pattern=r"^[^:\n]{1,64}$")
    """A word or a few, also in reports."""
    guideline: str = ""
    """What such a question is about."""


class ExampleConfig(Section):
    """A question with its answer, about another image: it shows the teacher the form."""

    question: Words
    """With its question mark."""
    answer: Words
    """In the form of `answer.type`."""


class AnswerConfig(Section):
    """What an answer is. What the teacher writes in another form is dropped, and a model's is wrong."""

    type: Literal["text", "number", "choice", "json"] = "text"
    """text: a few words; number; choice: one of a list; json: a flat object of named fields."""
    max_words: Annotated[int, Field(ge=1, le=50)] | None = None
    """Of a text; null: 7. The teacher's longer answers are dropped: a short reply would hardly ever match them."""
    relative: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share that a number (also in a field) may be off; null: it must be equal."""
    absolute: Annotated[float, Field(ge=0.0, le=1.0e12)] | None = None
    """How much a number (also in a field) may be off; with `relative`, one of both is enough."""
    unit: Annotated[str, Field(pattern=r"^[^\s,=][^,=\n]{0,15}$")] | None = None
    """That may follow a number: bar, °C, %."""
    choices: Annotated[tuple[ChoiceText, ...], Field(strict=False)] | None = None
    """Every answer that there is."""
    fields: dict[FieldName, Literal["text", "number", "boolean"]] | None = None
    """Name of each field and its type."""

    @model_validator(mode="after")
    def _only_of_the_type(self) -> Self:
        for kind, keys in OF_TYPE.items():
            for key in keys:
                if getattr(self, key) is not None and key not in OF_TYPE[self.type]:
                    raise ValueError(f"answer.{key} is for type {kind}, and answer.type is {self.type}: remove one")
        if self.type == "choice" and len(self.choices or ()) < 2:
            n = "one choice" if self.choices else "no choices"
            raise ValueError(f"answer has {n}: list two or more in answer.choices, or use type: text")
        if self.type == "json" and not self.fields:
            raise ValueError("answer has no fields: add answer.fields, such as {serial: text, pressure: number}")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, names in (("choices", self.choices), ("fields", self.fields)):
            if not names:
                continue
            from mpa_edge.metrics.choice import BETWEEN  # a device has no such package, and no tasks
            from mpa_edge.metrics.lenient import normalized

            seen: dict[str, str] = {}
            for name in names:
                if not normalized(name) or name != " ".join(name.split()) or BETWEEN in name:
                    raise ValueError(f"answer.{what} has {name!r}: write words without | and without outer blanks")
                if first := seen.get(normalized(name)):
                    raise ValueError(f"answer.{what} has '{name}' twice ('{first}' is the same): remove one")
                seen[normalized(name)] = name
        return self

    @property
    def form(self) -> str | None:
        """The metric of this type of answer, with its parameters; None for text.

        >>> AnswerConfig(type="number", relative=0.05, unit="bar").form, AnswerConfig().form
        ('number:relative=0.05,unit=bar', None)
        """
        from mpa_edge.metrics.choice import Choice
        from mpa_edge.metrics.json_fields import JsonFields
        from mpa_edge.metrics.number import Number

        relative, absolute = self.relative or 0.0, self.absolute or 0.0
        if self.type == "number":
            return Number(relative, absolute, self.unit or "").name
        if self.type == "choice":
            return Choice(self.choices or ()).name
        return JsonFields(tuple((self.fields or {}).items()), relative, absolute).name if self.type == "json" else None

    @property
    def words(self) -> str:
        """The answer in words, for the one who writes it together with its question."""
        if self.type == "number":
            return f"<a number in digits{f', in {self.unit}' if self.unit else ''}, and nothing else>"
        if self.type == "choice":
            return f"<one of: {', '.join(self.choices or ())}>"
        if self.type == "json":
            return f"<one JSON object on one line, null for what cannot be read: {self.sketch}>"
        return "<a single word or short phrase, without a full sentence and without a final full stop>"

    @property
    def sketch(self) -> str:
        """The object as a prompt shows it.

        >>> AnswerConfig(type="json", fields={"serial": "text", "bar": "number"}).sketch
        '{"serial": text, "bar": number}'
        """
        pairs = (f"{json.dumps(name, ensure_ascii=False)}: {kind}" for name, kind in (self.fields or {}).items())
        return "{" + ", ".join(pairs) + "}"

    @property
    def max_new_tokens(self) -> int:
        """Tokens that are enough for an answer."""
        if self.type == "json":
            return TOKENS + TOKENS_A_FIELD * len(self.fields or ())
        longest = max(map(len, self.choices or ("",)))
        return max(TOKENS, longest // 2 + 2, 2 * (self.max_words or 0) + 2)


class TaskConfig(Section):
    """What to ask about the images, what an answer is, and how it is scored."""

    schema_version: Literal[1] = 1
    """Of this document."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Lower case letters, digits, dot, dash, underscore."""
    title: str = ""
    """One-line description."""
    objective: str = Field("", max_length=4000)
    """What the teacher is shown, and what it is to ask: a few sentences."""
    prompt: str | None = None
    """For a teacher that was trained on fixed words: all that it is told, {kind} and {guideline} filled in."""
    kinds: tuple[KindConfig, ...] = Field(min_length=1, max_length=50, strict=False)
    """The kinds of question; one without a guideline where the objective says it all."""
    answer: AnswerConfig = AnswerConfig()
    """What an answer is."""
    metric: str | None = None
    """Another metric that fits the type of answer; null: exact-match for text, else that of the type."""
    suffix: str | None = Field(None, max_length=2000)
    """What follows a question wherever it is asked; null: by the type of answer."""
    language: str | None = Field(None, min_length=1, max_length=64)
    """Of questions and answers: German, Japanese ...; null: nothing is said about it."""
    examples: tuple[ExampleConfig, ...] = Field((), max_length=8, strict=False)
    """Two or three questions with their answers."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.objective.strip()) == (self.prompt is not None):
            fix = "both objective and prompt: keep one" if self.prompt else "no objective: add 'objective: ...'"
            raise ValueError(f"the task has {fix}")
        if self.prompt is not None and (self.examples or self.language):
            raise ValueError("prompt is all that the teacher is told: move examples and language into it")
        if len(self.kinds) > 1 and self.prompt is not None and len(set(self.annotation_prompts)) < len(self.kinds):
            raise ValueError("prompt is the same for several kinds: write {kind} or {guideline} where they differ")
        names = [kind.name.casefold() for kind in self.kinds]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"kinds has '{twice}' twice: remove or rename one")
        return self

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        from mpa_edge.metrics import get_metric

        kind = self.answer.type
        if self.metric is not None and self.metric not in (*FITS[kind], self.answer.form):
            known = f"name {' or '.join(FITS[kind])}, or leave it out" if FITS[kind] else "leave it out"
            raise ValueError(f"metric '{self.metric}' does not fit answer.type {kind}: {known}")
        form = get_metric(self.answer.form).form if self.answer.form else None
        for example in self.examples:
            if form is not None and form.canonical(example.answer) is None:
                raise ValueError(f"the example answer {example.answer!r:.60} is {form.fault}: correct it")
            if form is None and len(example.answer.split()) > (self.answer.max_words or MAX_WORDS):
                raise ValueError(
                    f"the example answer {example.answer!r:.60} is longer than answer.max_words: shorten it"
                )
        return self

    @property
    def annotation_prompts(self) -> tuple[str, ...]:
        """What the teacher is told: a prompt that names all kinds, then one for each; the annotations take turns."""
        if self.prompt is not None:
            fill = self.prompt.replace
            return tuple(fill("{kind}", kind.name).replace("{guideline}", kind.guideline) for kind in self.kinds)
        if len(self.kinds) == 1:
            return (self._annotation_prompt(self.kinds),)
        return (self._annotation_prompt(self.kinds), *(self._annotation_prompt((kind,)) for kind in self.kinds))

    @property
    def prompt_kinds(self) -> tuple[str | None, ...]:
        """Name of the kind that each annotation prompt asks for; None for the one that names all."""
        names = tuple(kind.name for kind in self.kinds)
        return names if self.prompt is not None or len(names) == 1 else (None, *names)

    def _annotation_prompt(self, kinds: tuple[KindConfig, ...]) -> str:
        """Objective, output format, language, examples and guidelines."""
        parts = [self.objective.strip(), OUTPUT_FORMAT + self.answer.words]
        if self.language:
            parts.append(
                f"Write the question and the answer in {self.language}; the words Question and Answer stay in English."
            )
        if self.examples:
            shown = (f"Question: {one.question}\nAnswer: {one.answer}" for one in self.examples)
            parts.append("\n\n".join(["Examples of the form, about other images:", *shown]))
        if len(self.kinds) > 1 or self.kinds[0].guideline:
            head = "one of these kinds" if len(kinds) > 1 else "this kind"
            lines = (": ".join(filter(None, (kind.name, kind.guideline))) for kind in kinds)
            parts.append("\n".join([f"The question is of {head}:", *(f"- {line}" for line in lines)]))
        return "\n\n".join(parts)

    @property
    def short_answer_suffix(self) -> str:
        """What follows the question wherever it is asked."""
        if self.suffix is not None:
            return self.suffix
        where, answer = f" in {self.language}" if self.language else "", self.answer
        if answer.type == "number":
            return f"\nAnswer the question with a number in digits{f', in {answer.unit}' if answer.unit else ''}."
        if answer.type == "choice":
            return f"\nAnswer the question with one of: {', '.join(answer.choices or ())}."
        if answer.type == "json":
            return f"\nAnswer with one JSON object on one line, null for what cannot be read: {answer.sketch}"
        return f"\nAnswer the question{where} using a single word or phrase."
