"""One of a closed list: the metric of tasks whose answers are choices. Anything else is wrong.

>>> lamp = Choice(("red", "green", "off"))
>>> lamp.score("Red.", ["red"]), lamp.score("green", ["red"]), lamp.score("dark red", ["dark red"])
(1.0, 0.0, 0.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.metrics.lenient import checked, normalized

BETWEEN = "|"


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


@dataclass(frozen=True)
class Choice:
    """Answers of which each is one of the choices."""

    choices: tuple[str, ...]
    """At least two; no two are equal where case, quotes, articles and trailing punctuation do not count."""

    fault = "none of the choices"
    title = "Choice"

    @property
    def name(self) -> str:
        """Its name as a metric.

        >>> Choice(("yes", "no")).name
        'choice:yes|no'
        """
        return f"choice:{BETWEEN.join(self.choices)}"

    def canonical(self, text: str) -> str | None:
        """The choice that a text is, as it stands in the list; None where it is none.

        >>> Choice(("Red", "Green")).canonical("a red."), Choice(("Red", "Green")).canonical("reddish")
        ('Red', None)
        """
        wanted = normalized(text)
        return next((choice for choice in self.choices if wanted and normalized(choice) == wanted), None)

    def reads(self, text: str) -> bool:
        """Whether a text is one of the choices, with or without a final stop; case does not count."""
        return _plain(text) in map(_plain, self.choices)

    def score(self, prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
        """1.0 where the prediction is a choice and one of the answers, else 0.0. MpaError without answers.

        Lenient also ignores quotes, a leading article and trailing punctuation.

        >>> Choice(("on", "off")).score('"on"', ["on"]), Choice(("on", "off")).score('"on"', ["on"], lenient=True)
        (0.0, 1.0)
        """
        checked(answers)
        if lenient:
            said = self.canonical(prediction)
            return float(said is not None and said in map(self.canonical, answers))
        return float(self.reads(prediction) and _plain(prediction) in map(_plain, answers))
