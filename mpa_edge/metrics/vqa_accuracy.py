r"""VQA accuracy: the metric of TextVQA and OKVQA.

Source: https://github.com/GT-Vision-Lab/VQA PythonEvaluationTools/vqaEvaluation/vqaEval.py at commit
a013f0043c1e2cdc995922dfe257f7149aa9af06, read as Python 3. Each of the (ten) answers is left out once; of the others,
those that equal the prediction count up to three, and the mean is the score. Its oddities are in every published
number, so they are kept:

- nothing is normalized where all answers are the same text: "2" is wrong against ten times "two"
- one answer alone scores 0, for nothing is left to compare with
- whether a mark is deleted or becomes a blank depends on the whole original text: on a blank beside any mark of its
  kind, or on a comma inside a number anywhere
- its pattern for stops wants "not after a digit" but looks ahead for a literal "<=": every stop without a digit after
  it goes, and only the first 32 of them, because `re.UNICODE` (32) is passed where the count belongs
- the contraction table maps "somebody'd" to "somebodyd"

The reference prints 100 x score, rounded to 2 decimals; here a score is in [0, 1] and not rounded.

>>> [score("stop", ["stop"] * k + ["go"] * (10 - k)) for k in range(6)]
[0.0, 0.3, 0.6, 0.9, 1.0, 1.0]
>>> score("2", ["two"] * 10), score("2", ["two"] * 9 + ["2"])
(0.0, 1.0)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mpa_edge.metrics.lenient import checked, normalized

REFERENCE = "GT-Vision-Lab/VQA@a013f00 PythonEvaluationTools/vqaEvaluation/vqaEval.py"
FULL_MATCHES = 3
MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
STOP = re.compile(r"\.(?!\d)")
STOPS_REMOVED = 32
ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)
"""The right forms; the reference lists for each the spellings with one apostrophe missing."""
CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, char in enumerate(word) if char == "'"
}


def _without_marks(text: str) -> str:
    """`processPunctuation`: what happens to each mark is decided on the original text."""
    out = text
    comma_in_number = COMMA_IN_NUMBER.search(text) is not None
    for mark in MARKS:
        deleted = comma_in_number or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if deleted else " ")
    return STOP.sub("", out, count=STOPS_REMOVED)


def _plain_words(text: str) -> str:
    """`processDigitArticle`: number words become digits, articles go, missing apostrophes come back."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(matches: Sequence[bool], full: int) -> float:
    """Mean over the answers of min(1, matches among the others / full)."""
    total = sum(matches)
    # one term an answer and summed in order, as in the reference: floats add up to the same last bit
    return float(sum(min(1, float(total - match) / full) for match in matches)) / len(matches)


def _lenient(prediction: str, answers: Sequence[str]) -> float:
    label = normalized(prediction)
    matches = [label != "" and normalized(answer) == label for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    return _leave_one_out(matches, min(FULL_MATCHES, len(matches) - 1))


def score(prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
    """Leave-one-out accuracy, 0 to 1, not rounded. MpaError without answers.

    Lenient compares normalized labels (see `lenient.py`) and asks for no more matches than there are answers, so that
    it also judges a prediction against one answer.

    >>> score("yes", ["yes"]), score("Yes.", ["yes"], lenient=True), score("no", ["not"], lenient=True)
    (0.0, 1.0, 0.0)
    """
    if lenient:
        return _lenient(prediction, checked(answers))
    label, labels = _one_line(prediction), [_one_line(answer) for answer in checked(answers)]
    if len(set(labels)) > 1:
        label, *labels = [_plain_words(_without_marks(text)) for text in (label, *labels)]
    return _leave_one_out([other == label for other in labels], FULL_MATCHES)
