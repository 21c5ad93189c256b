"""A number with its tolerance and the unit that may follow: the metric of tasks whose answers are numbers.

Decimals may have a point or a comma. One comma before exactly three digits separates thousands, as in "1,250", unless
the number begins with a zero; a point alone never does. Spaces may separate thousands, too.

>>> bar = Number(relative=0.05, unit="bar")
>>> bar.score("3,5bar", ["3.5 bar"]), bar.score("3.6", ["3.5"]), bar.score("3.5 psi", ["3.5"]), bar.score("?", ["3.5"])
(1.0, 1.0, 0.0, 0.0)
>>> [plain(text) for text in ("1,250", "0,125", "1.250,5", "12 500", "1.250", "-.5", "+07", "1,25,0", "five")]
['1250', '0.125', '1250.5', '12500', '1.250', '-0.5', '7', None, None]
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.metrics.lenient import checked, normalized

SPACE = "[ \u00a0\u2009\u202f]"
PLAIN = re.compile(r"([+-]?)(\d*)(?:[.,](\d+))?(e[+-]?\d{1,3})?", re.ASCII)
THOUSANDS = re.compile(
    rf"[+-]?(?:[1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d+)?|[1-9]\d{{0,2}}(?:\.\d{{3}})+,\d+|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}"
    rf"|[1-9]\d{{0,2}}(?:{SPACE}\d{{3}})+(?:[.,]\d+)?)",
    re.ASCII,
)
ROUNDING = 1e-9


def plain(text: str, unit: str = "") -> str | None:
    """The number that a text is, as JSON writes it, without its unit; None where it is none."""
    text = text.strip().removesuffix(".").replace("\u2212", "-").casefold()
    if unit:
        text = text.removesuffix(unit.casefold()).removeprefix(unit.casefold()).strip()
    if THOUSANDS.fullmatch(text):
        whole, decimals = text, ""
        if len(set(re.findall(r"[^\d+-]", text))) > 1:  # the last mark is not that between thousands
            whole, decimals = re.split(r"[.,](?=\d+$)", text)
            decimals = f".{decimals}"
        return re.sub(r"[^\d-]", "", whole) + decimals
    found = PLAIN.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return None
    sign, whole, decimals, exponent = found.groups(default="")
    number = f"{sign.strip('+')}{whole.lstrip('0') or '0'}{decimals and f'.{decimals}'}{exponent}"
    return number if math.isfinite(float(number)) else None


@dataclass(frozen=True)
class Number:
    """Numbers that are the same within a tolerance; with both kinds of tolerance, one of them is enough."""

    relative: float = 0.0
    """Share of the accepted answer that a prediction may be off."""
    absolute: float = 0.0
    """How much a prediction may be off, in the unit."""
    unit: str = ""
    """May stand after the number, or before it; case does not count. Another unit makes an answer wrong."""

    fault = "no number"
    title = "Number"

    @property
    def name(self) -> str:
        """Its name as a metric.

        >>> Number(0.05, unit="bar").name, Number().name
        ('number:relative=0.05,unit=bar', 'number')
        """
        tolerances = [f"{key}={value:.12g}" for key in ("relative", "absolute") if (value := getattr(self, key))]
        return ":".join(filter(None, ("number", ",".join(tolerances + [f"unit={self.unit}"] * bool(self.unit)))))

    def canonical(self, text: str) -> str | None:
        """The number without its unit, in the form in which a student should learn it; None where it is none.

        >>> Number(unit="bar").canonical("3,50 Bar"), Number().canonical("$1,250"), Number().canonical("two")
        ('3.50', '1250', None)
        """
        found = plain(text, self.unit)
        return plain(normalized(text), self.unit) if found is None else found

    def reads(self, text: str) -> bool:
        """Whether a text is a number."""
        return plain(text, self.unit) is not None

    def same(self, prediction: str, answer: str) -> bool:
        """Whether two numbers in plain form are the same within the tolerance."""
        value, target = float(prediction), float(answer)
        within = max(self.absolute, self.relative * abs(target))
        return abs(value - target) <= within + ROUNDING * max(abs(target), within)

    def score(self, prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
        """1.0 where the prediction is a number within the tolerance of an answer, else 0.0. MpaError without answers.

        Lenient also ignores quotes, a leading article, trailing punctuation, `$` and `%`.

        >>> Number(absolute=1).score("11", ["10"]), Number().score('"10"', ["10"]), Number().score("0", ["0.0"])
        (1.0, 0.0, 1.0)
        >>> Number().score('"$10"', ["10"], lenient=True)
        1.0
        """
        read = self.canonical if lenient else lambda text: plain(text, self.unit)
        said, accepted = read(prediction), [read(answer) for answer in checked(answers)]
        return float(said is not None and any(one is not None and self.same(said, one) for one in accepted))
