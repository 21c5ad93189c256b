"""Teacher outputs of every kind -> question and answer, or a reason. The golden rows were judged by eye, one by one."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.config.task import OUTPUT_FORMAT
from mpa_edge.tasks.parse import ABBREVIATIONS, ParsedAnnotation, canonical_answer, parse_annotation
from mpa_edge.types import Drop

LINES = (Path(__file__).parent / "teacher_outputs.jsonl").read_text(encoding="utf-8").split("\n")
ROWS = [json.loads(line) for line in LINES if line]
REASONS = {"empty", "no question", "no answer", "answer too long"}
PIECES = [
    "Question:",
    "Answer:",
    "**Answer:**",
    "Q:",
    "A:",
    "\n",
    " ",
    "What?",
    "red.",
    '"',
    "**",
    "<image>",
    "1.",
    "-",
    "`",
    "<|im_end|>",
    "The answer is",
    "...",
    "_",
    "#",
    "[",
    "]",
    '{"question": "',
    '", "answer": "',
    '"}',
    "\\",
    "</s>",
    "<think>",
    "</think>",
    "<answer>",
    "</question>",
    "```",
]
messy = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
words = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789", min_size=1, max_size=8)
answers = words.filter(lambda word: f"{word.lower()}." not in ABBREVIATIONS)


@pytest.mark.parametrize("row", ROWS, ids=[str(at) for at in range(len(ROWS))])
def test_teacher_outputs(row: dict[str, str]) -> None:
    parsed = parse_annotation(row["text"], 7)
    if "drop" in row:
        assert isinstance(parsed, Drop)
        assert parsed.reason == row["drop"]
    else:
        assert parsed == ParsedAnnotation(row["question"], row["answer"])


def test_golden_rows_cover_every_reason() -> None:
    assert len(ROWS) >= 100
    assert {row["drop"] for row in ROWS if "drop" in row} == REASONS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("U.S.", "U.S."),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("St.", "St."),
        ("-5", "-5"),
        ("-5.", "-5"),
        ("50%", "50%"),
        ("50%.", "50%"),
        ("$5.", "$5"),
        ("Red\nbecause", "Red"),
        ("\n\nRed", "Red"),
        (" a  b ", "a b"),
        ("Yahoo!", "Yahoo!"),
        ("'dog'", "dog"),
        ("dog's", "dog's"),
        ("the dogs'", "the dogs'"),
        ("**", ""),
        ("...", ""),
        ("Answer: 5.", "5"),
        ("The answer is: **4**.", "4"),
        ("Answer island", "Answer island"),
        ("So, the answer is 4", "4"),
        ("C++", "C++"),
        ("#1", "#1"),
        ("## 1", "1"),
        (">5", ">5"),
        ("- 5", "- 5"),
        ("- cat", "cat"),
        ("e.g.", "e.g."),
        ("no. 5", "no. 5"),
        ("7:30", "7:30"),
        ("", ""),
        ("x<end_of_utterance>y", "x"),
        ("<row_1_col_2>4", "4"),
        ("<|endoftext|>", ""),
        ("``", ""),
        ("<3", "<3"),
        ("'", "'"),
        ("<think>2?</think>33", "33"),
        ("2? no.\n</think>\n\n33", "33"),
        ("<think>33", ""),
        ("33</think>", ""),
        ("\\boxed{33}", "33"),
        ("So $\\boxed{\\text{33}}$.", "33"),
        ("\\(33\\)", "33"),
        ("$33$", "33"),
        ("$5", "$5"),
        ("<answer><|begin_of_box|>33<|end_of_box|></answer>", "33"),
        ('```json\n{"answer": 33}\n```', "33"),
        ("I see three.\n\n**Answer:** 33", "33"),
        ("Reasoning: three bars. Answer: 33", "33"),
        ("33 Explanation: three bars", "33"),
        ("Note: fragile", "Note: fragile"),
        ("<b>33</b>", "33"),
        ('**"33."**', "33"),
    ],
)
def test_canonical_answer(text: str, answer: str) -> None:
    assert canonical_answer(text) == answer


@settings(max_examples=500, deadline=None)
@given(messy)
def test_canonical_answer_is_stable_and_one_line(text: str) -> None:
    once = canonical_answer(text)
    assert canonical_answer(once) == once
    assert once == " ".join(once.split())


@settings(max_examples=500, deadline=None)
@given(messy)
def test_any_text_is_parsed_or_dropped_with_a_known_reason(text: str) -> None:
    parsed = parse_annotation(text, 3)
    if isinstance(parsed, Drop):
        assert parsed.reason in REASONS
        return
    assert any(char.isalnum() for char in parsed.question)
    assert parsed.answer == canonical_answer(parsed.answer) != ""
    assert len(parsed.answer.split()) <= 3
    assert "<image>" not in parsed.question + parsed.answer


@settings(max_examples=300, deadline=None)
@given(st.lists(words, min_size=1, max_size=8), answers, st.sampled_from(["{}? {}", "Look. {} {}?", "{} {}"]))
def test_a_plain_pair_comes_back_whole(question: list[str], answer: str, form: str) -> None:
    asked = form.format(" ".join(question), "please")
    for text in (
        f"Question: {asked} Answer: {answer}",
        f"**Question:** {asked}\n**Answer:** {answer}.\n",
        f"Q: {asked}\nA: {answer}",
    ):
        assert parse_annotation(text, 1) == ParsedAnnotation(asked, answer)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "Question: " * 10**5, "<think>" * 10**5, "\\boxed{" * 10**5]
)
def test_a_reply_without_end_costs_no_time(text: str) -> None:
    began = time.monotonic()
    assert isinstance(parse_annotation(text, 7), Drop)
    canonical_answer(text)
    assert time.monotonic() - began < 5


def test_the_words_of_the_output_format_are_no_annotation() -> None:
    assert parse_annotation(OUTPUT_FORMAT, 99) == Drop("no question", " ".join(OUTPUT_FORMAT.split())[:200])


def test_word_limit() -> None:
    text = "Question: Which team?\nAnswer: the red team"
    assert parse_annotation(text, 3) == ParsedAnnotation("Which team?", "the red team")
    assert parse_annotation(text, 2) == Drop("answer too long", "the red team")
