r"""A flat JSON object of named fields: the metric of tasks that read forms, labels and meters.

The score is the share of the fields that are right. What is no JSON object has none of them right.

>>> plate = JsonFields((("serial", "text"), ("bar", "number")))
>>> plate.score('{"serial": "a1", "bar": 3.50}', ['{"serial": "A1", "bar": 3.5}'])
1.0
>>> [plate.score(said, ['{"serial": "A1", "bar": 3.5}']) for said in ('{"serial": "A7", "bar": 3.5}', "A1, 3.5 bar")]
[0.5, 0.0]
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpa_edge.metrics.lenient import checked, normalized
from mpa_edge.metrics.number import Number, plain

FIELD_TYPES = ("text", "number", "boolean")
FENCED = re.compile(r"```\w*\s*\n(.*?)\n?\s*```", re.DOTALL)
MOST_STARTS = 100
DECODER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


def first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, its numbers as written; None where there is none.

    >>> first_object('Sure:\\n{"a": 1.50, "b": null}'), first_object("{a: 1}")
    ({'a': '1.50', 'b': None}, None)
    """
    at = -1
    for _ in range(MOST_STARTS):
        if (at := text.find("{", at + 1)) < 0:
            return None
        try:
            found = DECODER.raw_decode(text, at)[0]
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def whole_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, a code fence around it left out; None where it is none, or more than that."""
    text = text.strip()
    fenced = FENCED.fullmatch(text)
    try:
        found = DECODER.decode(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _typed(value: Any, kind: str) -> str | bool | None:
    """A value of a field as its type; None where it is of another one."""
    if kind == "boolean":
        return value if isinstance(value, bool) else BOOLEANS.get(str(value).strip().casefold())
    if not isinstance(value, str):
        return None
    return plain(value) if kind == "number" else value.strip()


@dataclass(frozen=True)
class JsonFields:
    """Objects with the same fields."""

    fields: tuple[tuple[str, str], ...]
    """Name and type of each: text, number or boolean."""
    relative: float = 0.0
    """Share of the accepted number that a number may be off."""
    absolute: float = 0.0
    """How much a number may be off."""

    fault = "no JSON object with the fields"
    title = "JSON fields"

    @property
    def name(self) -> str:
        """Its name as a metric.

        >>> JsonFields((("serial", "text"), ("bar", "number")), relative=0.05).name
        'json:serial=text,bar=number,relative=0.05'
        """
        tolerances = [(key, f"{value:.12g}") for key in ("relative", "absolute") if (value := getattr(self, key))]
        return "json:" + ",".join(f"{key}={value}" for key, value in [*self.fields, *tolerances])

    def values(self, found: dict[str, Any]) -> dict[str, str | bool | None] | None:
        """Value of each field, null where it is missing; None where one is not of its type."""
        values: dict[str, str | bool | None] = {}
        for name, kind in self.fields:
            value = found.get(name)
            if value is not None and (value := _typed(value, kind)) is None:
                return None
            values[name] = value
        return values

    def canonical(self, text: str) -> str | None:
        """The first object of a text with these fields in their order; None where one is of another type, or all null.

        >>> three = JsonFields((("a", "number"), ("b", "text"), ("c", "boolean")))
        >>> three.canonical('So: {"c": "yes", "a": "1,5", "x": 2}')
        '{"a": 1.5, "b": null, "c": true}'
        >>> JsonFields((("a", "number"),)).canonical('{"a": "unknown"}'), JsonFields((("a", "text"),)).canonical("{}")
        (None, None)
        """
        found = first_object(text)
        values = self.values(found) if found is not None else None
        if values is None or all(value is None for value in values.values()):
            return None
        numbers = {name for name, kind in self.fields if kind == "number"}
        # digits stay as they were written: 1.50 is what stands on the label
        parts = (
            f"{json.dumps(name, ensure_ascii=False)}: "
            + (value if name in numbers and isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in values.items()
        )
        return "{" + ", ".join(parts) + "}"

    def reads(self, text: str) -> bool:
        """Whether a text is a JSON object."""
        return whole_object(text) is not None

    def score(self, prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
        """Share of the fields that are right, of the answer that has the most. MpaError without answers.

        Texts are compared without case and outer blanks, numbers by their value; a field that is missing equals null.
        Lenient takes the first object of a text, and ignores quotes, articles and trailing punctuation inside texts.

        >>> one = JsonFields((("a", "text"),))
        >>> one.score('It is {"a": "x."}', ['{"a": "x"}']), one.score('It is {"a": "x."}', ['{"a": "x"}'], lenient=True)
        (0.0, 1.0)
        """
        said = (first_object if lenient else whole_object)(prediction)
        accepted = [first_object(answer) for answer in checked(answers)]
        if said is None:
            return 0.0
        shares = [
            sum(self._same(said.get(name), one.get(name), kind, lenient) for name, kind in self.fields)
            for one in accepted
            if one is not None
        ]
        return max(shares, default=0) / len(self.fields)

    def _same(self, value: Any, answer: Any, kind: str, lenient: bool) -> bool:
        if not (isinstance(value, str) and isinstance(answer, str)):
            return type(value) is type(answer) and value == answer
        if kind == "number" and (number := plain(value)) is not None and (target := plain(answer)) is not None:
            return Number(self.relative, self.absolute).same(number, target)
        if lenient:
            return normalized(value) == normalized(answer)
        return value.strip().casefold() == answer.strip().casefold()
