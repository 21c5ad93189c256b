"""ANLS, average normalized Levenshtein similarity: the metric of ST-VQA.

Source: the RRC evaluation script, https://github.com/QwenLM/Qwen-VL eval_mm/infographicsvqa_eval.py at commit
aa00ed04091eea5fcdd32985e7915f1c53e7d599. Two oddities are kept: the distance is taken on lower-cased text with
blanks collapsed, but its denominator is the length of the raw text *in upper case* ("ß" counts as two); and two empty
texts are equal.

>>> score("coca  COLA", ["Coca-Cola", "coca cola"])
1.0
>>> score("abcd", ["abxy"]), score("abcd", ["axyz"]), score("", [""])
(0.5, 0.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from mpa_edge.metrics.lenient import checked, normalized, same

REFERENCE = "QwenLM/Qwen-VL@aa00ed0 eval_mm/infographicsvqa_eval.py"
THRESHOLD = 0.5
LENIENT_THRESHOLD = 0.8


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _strict_distance(prediction: str, answer: str) -> float:
    """Normalized distance as the reference computes it."""
    length = max(len(answer.upper()), len(prediction.upper()))
    return Levenshtein.distance(_folded(answer), _folded(prediction)) / length if length else 0.0


def _lenient_similarity(prediction: str, answer: str) -> float:
    """Similarity of normalized labels: 1 where they are equal; a slip is forgiven in longer words, never in a digit."""
    if same(prediction, answer):
        return 1.0
    left, right = normalized(prediction), normalized(answer)
    if not left or not right or any(char.isdigit() for char in left + right):
        return 0.0
    similarity = Levenshtein.normalized_similarity(left, right)
    return similarity if similarity >= LENIENT_THRESHOLD else 0.0


def score(prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
    """Best similarity to an answer, 0 to 1; 0 where it is below 0.5. MpaError without answers.

    Lenient compares normalized labels (see `lenient.py`), asks for equality where there is a digit and for 0.8
    elsewhere: at 0.5, "no" would agree with "not" and "-5" with "5".

    >>> score('"STOP".', ["stop"], lenient=True), score("restaurent", ["restaurant"], lenient=True)
    (1.0, 0.9)
    >>> [score(p, [a], lenient=True) for p, a in (("no", "not"), ("-5", "5"), ("route 65", "route 66"))]
    [0.0, 0.0, 0.0]
    """
    if lenient:
        return max(_lenient_similarity(prediction, answer) for answer in checked(answers))
    best = 1 - min(_strict_distance(prediction, answer) for answer in checked(answers))
    return best if best >= THRESHOLD else 0.0
