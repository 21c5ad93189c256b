"""What a teacher wrote -> one question and one short answer, or why there is none.

Teachers add markdown, numbering, several pairs, JSON, special tokens and explanations. The question is kept whole, with
its question mark; the answer is brought into the form in which a student should learn it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpa_edge.metrics import Form
from mpa_edge.metrics.json_fields import JsonFields
from mpa_edge.metrics.lenient import unquoted, without_thoughts
from mpa_edge.types import Drop

SPECIAL_TOKEN = re.compile(
    r"<[|｜][^<>\n]{0,60}?[|｜]>|\[/?INST\]|</?s>|</?(?:box|ref|img|image|video|IMG_CONTEXT|pad|eos|bos|unk)>"
    r"|<(?:end_of_utterance|fake_token_around_image|global-img|row_\d+_col_\d+|end_of_turn|start_of_turn|im_start|im_end)>",
    re.IGNORECASE | re.DOTALL,
)
OPENING_TAG = re.compile(r"<(question|answer)>", re.IGNORECASE)
CLOSING_TAG = re.compile(r"</(?:question|answer)>", re.IGNORECASE)
ESCAPE = re.compile(r'\\(["\\/bfnrtu])?')
JSON_START = re.compile(r"[{\[]")
MOST_JSON_STARTS = 100
QUESTION_KEYS = ("question", "q", "generated_question", "pseudo_question", "query")
ANSWER_KEYS = ("answer", "a", "short_answer", "final_answer", "correct_answer")
# at the start of a line any case is taken, after bullets, numbers and bold; a heading of its own needs no colon
HEADING = re.compile(
    r"^[ \t>#*_`~|•–-]*(?:\(?\d{1,2}[.):][ \t]*)?[*_`\[]*(?:(?:generated|pseudo|short|final|correct)[ -])?"
    r"(?:question|answer)s?[ \t]*#?\d{0,2}[*_`\]]*"
    r"(?:[ \t]*[:：][*_`]*|[ \t]+[-–—](?=[ \t])|[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
# inside a line: with a capital and a colon only, for "the right answer: a or b?" is part of a question
INLINE = re.compile(
    r"(?<=[\s?.!*_])[*_`]*(?:Question|QUESTION|Answer|ANSWER)[ \t]*\d{0,2}[*_`]*"
    r"[ \t]*[:：][*_`]*"
)
SHORT = re.compile(
    r"(?:^[ \t>#*_`•-]*(?:\d{1,2}[.)][ \t]*)?[*_`]*(?:[Qq]|[Aa](?:ns)?)"
    r"|(?<=\s)[*_`]*Q|(?<=[?.!] )[*_`]*A)\d{0,2}[*_`]*[ \t]*[:：][*_`]*",
    re.MULTILINE,
)
# what some write between question and answer, or after both; the second words also stand in questions and on signs
ASIDE = re.compile(
    r"(?:(?:^[ \t>#*_`•-]*|(?<=[\s*_`]))[*_`]*(?:Reason(?:ing)?|Explanation|Rationale|Thoughts?|Thinking|Analysis|"
    r"Justification|Evidence|Observations?|Chain[ -]of[ -][Tt]hought)"
    r"|(?:^[ \t>#*_`•-]*|(?<=[?.!][\s*_`]))[*_`]*(?:Note|Hint|Steps?|Context|Description|Solution|Calculation))"
    r"[*_`]*[ \t]*[:：][*_`]*",
    re.MULTILINE,
)
# a question's end; one inside quotes is no end
ASKED = re.compile(r"[?？؟](?![\"”’»]\s+[^\W\dA-Z])")
# what may follow it: nothing of weight, brackets, the options to choose from, or a word or two such as "please"
BELONGS = re.compile(
    r"\W*|\W*[(\[].*[)\]]\W*|[^\w(]*(?:(?i:options|choices|choose|select|pick)\b|\(?(?:[A-Ha-h][).:]|[1-9]\))).*"
    r"|\s+[^\W\dA-Z]\w*(?:\s+\w+){0,2}\W*",
    re.DOTALL,
)
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
IN_MATH = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]")
BRACKETS = {"<": ">", "[": "]", "{": "}"}
PLACEHOLDER = re.compile(
    r"(?:your|the|one|a|an|insert|write|short)\b.*\b(?:question|answer|phrase)\b.*|question|answer", re.I
)
MARKDOWN_PAIRS = re.compile(r"(\*\*|__|~~)(?=\S)(.+?)(?<=\S)\1")
WRAPPED = re.compile(r"([*_])(?=[^\s*_])([^*_]+)(?<=\S)\1")
LEADING_NOISE = re.compile(r"(?:#{1,6}|[>|•]|[*–—-](?=\s+[^\d\s]))\s+")
ANSWER_IS = re.compile(
    r"(?:so,?\s+|therefore,?\s+)?(?:the\s+|my\s+)?(?:(?:correct|final|short|right|best)\s+)?ans(?:wer)?"
    r"(?:\s+to\s+(?:the|this)\s+question)?(?:\s+is\b\s*:?|\s*[:：])\s*",
    re.IGNORECASE,
)
INITIALS = re.compile(r"(?:[^\W\d_]{1,2}\.){2,}")
ABBREVIATED = (
    "st mr mrs ms dr jr sr inc ltd co corp bros ave blvd rd mt ft prof gen sgt capt lt dept est vs etc "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
ABBREVIATIONS = frozenset(f"{word}." for word in ABBREVIATED.split())
HTML = re.compile(r"</?(?:b|i|em|strong|code|u|p|span)>", re.IGNORECASE)
FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)
DETAIL_CHARS = 200
# more than an answer may have; what a broken server sends can be without end
MOST_CHARS = 20_000


@dataclass(frozen=True)
class ParsedAnnotation:
    """A question with its short answer, ready to be asked."""

    question: str
    """The whole question on one line, with its question mark where the teacher wrote one."""
    answer: str
    """Canonical short answer; never empty."""


def parse_annotation(text: str, max_answer_words: int, form: Form | None = None) -> ParsedAnnotation | Drop:
    """The first complete question-answer pair of a teacher's output, or the reason why it is left out.

    Reasons: "empty", "no question", "no answer", "answer too long" (more than max_answer_words words); where answers
    have a form, "answer is ..." instead of the length: "no number", "none of the choices", "no JSON object ...".

    >>> parse_annotation("**Question:** Look at the bus. What colour is it?\\n**Answer:** Red.", 7)
    ParsedAnnotation(question='Look at the bus. What colour is it?', answer='Red')
    >>> parse_annotation("Q: How many? A: 3 Q: Why? A: So", 7)
    ParsedAnnotation(question='How many?', answer='3')
    >>> parse_annotation("Question: How many? Reasoning: I see two, so it is 2. Answer: 2", 7)
    ParsedAnnotation(question='How many?', answer='2')
    >>> parse_annotation("Question: What is this?", 7)
    Drop(reason='no answer', detail='What is this?')
    >>> from mpa_edge.metrics.number import Number
    >>> parse_annotation("Question: How high?\\nAnswer: about 3,5 bar.", 7, Number(unit="bar"))
    Drop(reason='answer is no number', detail='about 3,5 bar')
    """
    plain = _without_tokens(without_thoughts(text)[:MOST_CHARS])
    if not plain:
        return Drop("empty")
    question, answer = _first_pair(plain, form)
    if not question:
        return Drop("no question", " ".join(plain.split())[:DETAIL_CHARS])
    if not answer:
        return Drop("no answer", question[:DETAIL_CHARS])
    if form is not None:
        found = form.canonical(answer)
        return ParsedAnnotation(question, found) if found else Drop(f"answer is {form.fault}", answer[:DETAIL_CHARS])
    if len(answer.split()) > max_answer_words:
        return Drop("answer too long", answer[:DETAIL_CHARS])
    return ParsedAnnotation(question, answer)


def _first_pair(text: str, form: Form | None) -> tuple[str, str]:
    """The first question that has an answer; where none has, the last question and "", or two empty texts."""
    whole = isinstance(form, JsonFields)
    for found in _objects(text):
        question, answer = _question(_value(found, QUESTION_KEYS)), canonical_answer(_value(found, ANSWER_KEYS))
        if whole and (fields := next((found[key] for key in ANSWER_KEYS if isinstance(found.get(key), dict)), None)):
            answer = json.dumps(fields, ensure_ascii=False)
        if question and answer:
            return question, answer
    labels = _labels(text)
    question = ""
    if labels and not _is_question(labels[0]) and (before := text[: labels[0].start()].strip()):
        # a question without a label, just before the answer's
        last = _question(before.splitlines()[-1])
        question = last if last.endswith(("?", "？")) else ""
    for i, label in enumerate(labels):
        end = labels[i + 1].start() if i + 1 < len(labels) else len(text)
        body = text[label.end() : end]
        if _is_question(label):
            question = _question(body) or question
        elif question and label.re is not ASIDE and (answer := body.strip() if whole else canonical_answer(body)):
            return question, answer
    return question, ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a text, also inside of others, with its keys in lower case and its numbers as written.

    A list of a question and one more is taken for an object.
    """
    # a backslash before any other letter is an error in JSON, and common
    text = ESCAPE.sub(lambda match: match[0] if match[1] else "\\\\", text)
    decoder, at = json.JSONDecoder(strict=False, parse_int=str, parse_float=str), 0
    for _ in range(MOST_JSON_STARTS):
        if not (begun := JSON_START.search(text, at)):
            return
        try:
            value, at = decoder.raw_decode(text, begun.start())
        except (ValueError, RecursionError):
            at = begun.end()
            continue
        inside = [value]
        while inside:
            one = inside.pop(0)
            if isinstance(one, list) and len(one) == 2 and str(one[0]).rstrip().endswith("?"):
                one = dict(zip((QUESTION_KEYS[0], ANSWER_KEYS[0]), one, strict=True))
            if isinstance(one, dict):
                yield {key.strip().lower().replace(" ", "_"): held for key, held in one.items()}
            inside = [*(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()), *inside]


def _value(found: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The text under the first of the keys; "" where it is none. Of a list it is the first one."""
    value = next((found[key] for key in keys if key in found), "")
    value = value[0] if isinstance(value, list) and value else value
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value if isinstance(value, str) else ""


def _labels(text: str) -> list[re.Match[str]]:
    """Where "Question:" and "Answer:" stand, and what ends them, such as "Reasoning:".

    "Q:" and "A:" count only where there is no written-out answer label.
    """
    found = [*HEADING.finditer(text), *INLINE.finditer(text)]
    if all(_is_question(match) for match in found):
        found += SHORT.finditer(text)
    found += ASIDE.finditer(text)
    labels: list[re.Match[str]] = []
    for match in sorted(found, key=lambda match: (match.start(), -match.end())):
        if not labels or match.start() >= labels[-1].end():
            labels.append(match)
    return labels


def _is_question(label: re.Match[str]) -> bool:
    """Whether a label begins a question: no other word in a label has a q."""
    return label.re is not ASIDE and "q" in label[0].lower()


def _question(text: str) -> str:
    """The question on one line, without what was said after it; "" where there is no word in it."""
    text = _without_tokens(text)
    if ends := [*ASKED.finditer(text)]:
        text = text if BELONGS.fullmatch(text, ends[-1].end()) else text[: ends[-1].end()]
    else:
        text = next((line for line in text.splitlines() if any(char.isalnum() for char in line)), "")
    text = " ".join(text.split())
    while (peeled := re.sub(r"^[\s#>|•*_-]+|[\s#>|*_-]+$", "", _unmarked(text))) != text:
        text = peeled
    return text if any(char.isalnum() for char in text) else ""


def in_form(text: str, form: Form | None) -> str:
    """The answer in the form in which two are compared: canonical, and what its type makes of it; "" if none.

    >>> from mpa_edge.metrics.number import Number
    >>> in_form("The answer is 3,50 bar.", Number(unit="bar")), in_form("high", Number()), in_form("**Red**", None)
    ('3.50', '', 'Red')
    >>> in_form('```json\\n{"serial": "A 1"}\\n```', JsonFields((("serial", "text"),)))
    '{"serial": "A 1"}'
    """
    if isinstance(form, JsonFields):
        return form.canonical(without_thoughts(text)[:MOST_CHARS]) or ""
    text = canonical_answer(text)
    return text if form is None else form.canonical(text) or ""


def canonical_answer(text: str) -> str:
    """The short answer in the form a student should learn: first line, no decoration, no final stop; "" if none.

    It is the form in which answers of models are compared, too.

    >>> [canonical_answer(t) for t in ("**Red.**", "The answer is 3.5.", '"Stop"<|im_end|>', "red\\n\\nBecause")]
    ['Red', '3.5', 'Stop', 'red']
    >>> [canonical_answer(t) for t in ("U.S.", "Main St.", "-5", "50%", "$1,000", "3.5", "B.")]
    ['U.S.', 'Main St.', '-5', '50%', '$1,000', '3.5', 'B']
    >>> [canonical_answer(t) for t in ("I see 3.\\nAnswer: 3", "So: $\\\\boxed{3}$.", '{"answer": 3}', "2?</think>3")]
    ['3', '3', '3', '3']
    """
    text, before = without_thoughts(text)[:MOST_CHARS], None
    while text != before:
        before = text
        text = _unwrapped(_without_tokens(text))
        lines = (line.strip() for line in text.splitlines())
        text = _unmarked(next((line for line in lines if line.strip("*_`#>-|. ")), ""))
        if noise := LEADING_NOISE.match(text):
            text = text[noise.end() :]
        if lead := ANSWER_IS.match(text):
            text = text[lead.end() :]
        text = _without_stop(text)
    return text


def _unwrapped(text: str) -> str:
    """What is inside of JSON, after the last label "Answer:", before an explanation, in a box or between math marks."""
    if text.startswith(("{", "[")) and (
        found := next((v for o in _objects(text) if (v := _value(o, ANSWER_KEYS))), "")
    ):
        text = found
    labels = [match for match in (*HEADING.finditer(text), *INLINE.finditer(text)) if not _is_question(match)]
    if labels and (after := text[max(label.end() for label in labels) :].strip()):
        text = after
    if (aside := ASIDE.search(text)) and (before := text[: aside.start()].strip()):
        text = before
    if boxes := BOXED.findall(text):
        text = boxes[-1]
    text = IN_MATH.sub(r"\1", text)
    return next(filter(None, math.groups())).strip() if (math := MATH.fullmatch(text.strip())) else text


def _without_tokens(text: str) -> str:
    """Special tokens become line ends: what follows one is another turn."""
    text = CLOSING_TAG.sub("\n", OPENING_TAG.sub(r"\n\1: ", without_thoughts(text)))
    return FENCE.sub("", SPECIAL_TOKEN.sub("\n", HTML.sub("", text))).strip()


def _unmarked(text: str) -> str:
    """Without markdown: paired bold anywhere; emphasis, code, quotes or brackets around the whole.

    "" where the brackets hold the words of the output format.
    """
    text = MARKDOWN_PAIRS.sub(r"\2", " ".join(text.split()))
    text = text.removeprefix("**").removesuffix("**").strip() if text.count("**") == 1 else text
    wrapped = WRAPPED.fullmatch(text)
    text = unquoted(wrapped[2] if wrapped else text)
    if len(text) < 2 or BRACKETS.get(text[0]) != text[-1] or set(text[1:-1]) & {text[0], text[-1]}:
        return text
    inner = text[1:-1].strip()
    return "" if PLACEHOLDER.fullmatch(inner) else inner


def _without_stop(text: str) -> str:
    """Without a final stop, comma or colon, unless the stop belongs to the last word."""
    if text.endswith(("..", ",", ";", ":", "。", "…")):
        return text[:-1].rstrip()
    if not text.endswith("."):
        return text
    last = text.split()[-1].lstrip("(\"'")
    return text if last.lower() in ABBREVIATIONS or INITIALS.fullmatch(last) else text[:-1].rstrip()
