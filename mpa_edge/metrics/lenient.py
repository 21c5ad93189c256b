r"""When two short answers are the same where form should not count: agreement of two models, error analysis.

Ignored: case, outer blanks, trailing punctuation, wrapping quotes, a leading article, `$` and `%`, thousands commas.
Nothing else: no substring, no stemming, no number words; signs and decimal points count. A label of which nothing
is left equals nothing, not even itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mpa_edge.errors import MpaError

QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}
TRAILING = " .,;:!?%$。"
ARTICLE = re.compile(r"(?:a|an|the) (?=\S)")
CURRENCY = re.compile(r"^([+-]?)\$\s*([+-]?)")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
THOUGHT = r"(?:(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning))"
OPENING_THOUGHT = re.compile(rf"<{THOUGHT}>|◁think▷|\[THINK\]", re.IGNORECASE)
CLOSING_THOUGHT = re.compile(rf"</{THOUGHT}>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII)


def checked(answers: Sequence[str]) -> Sequence[str]:
    """The answers, unless there are none or they are one bare string: MpaError.

    >>> checked("yes")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: answers is one string: put it into a list
    """
    if isinstance(answers, str):
        raise MpaError("answers is one string: put it into a list")
    if not answers:
        raise MpaError("no answers to score against: give at least one")
    return answers


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its thoughts; "" where they do not end.

    >>> [without_thoughts(t) for t in ("<think>4?</think>3", "hm, 4?\\n</think>\\n3", "<think>cut", "3 <b>")]
    ['3', '3', '', '3 <b>']
    """
    if ended := [*CLOSING_THOUGHT.finditer(text)]:
        text = text[ended[-1].end() :].strip()
    # what stands before an opening tag is an answer, what follows it is not
    return text[: begun.start()].strip() if (begun := OPENING_THOUGHT.search(text)) else text


def unquoted(text: str) -> str:
    """Without one pair of quotes around the whole.

    >>> unquoted('"a"'), unquoted("'don't'"), unquoted('"'), unquoted('"a" or "b"')
    ('a', "don't", '"', '"a" or "b"')
    """
    if len(text) < 2 or QUOTES.get(text[0]) != text[-1]:
        return text
    inner, quote = text[1:-1], re.escape(text[-1])
    # a quote inside that is no apostrophe: the outer two are no pair
    return text if re.search(rf"(?<!\w){quote}|{quote}(?!\w)", inner) else inner.strip()


def _peeled(text: str) -> str:
    """The label with one layer of what does not count removed."""
    text = unquoted(text.rstrip(TRAILING).strip())
    text = CURRENCY.sub(r"\1\2", text, count=1)
    return ARTICLE.sub("", text, count=1) if ARTICLE.match(text) else text


def normalized(text: str) -> str:
    """The label without what does not count; "" where nothing is left.

    >>> [normalized(t) for t in ("The Stop Sign.", '"$1,234.50"', "50 %", "-5", "6.8", "A", "...", "U.S.")]
    ['stop sign', '1234.50', '50', '-5', '6.8', 'a', '', 'u.s']
    """
    text = " ".join(text.casefold().split())
    while (peeled := _peeled(text)) != text:
        text = peeled
    return text.replace(",", "") if THOUSANDS.fullmatch(text) else text


def same(prediction: str, answer: str) -> bool:
    """Whether two labels are equal after normalization.

    >>> same("Yes.", "yes"), same("no", "not"), same("1", "2013"), same("-5", "5"), same("6.8", "68"), same(".", ".")
    (True, False, False, False, False, False)
    """
    left = normalized(prediction)
    return left != "" and left == normalized(answer)


def number(label: str) -> float | None:
    """The finite number that a normalized label is, else None.

    >>> number("1e3"), number("-.5"), number("5 apples"), number("nan"), number("1e999")
    (1000.0, -0.5, None, None, None)
    """
    if not NUMBER.fullmatch(label):
        return None
    value = float(label)
    return value if math.isfinite(value) else None
