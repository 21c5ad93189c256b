from __future__ import annotations

from typing import Any

import pytest

from mpa_edge.exporters.gguf.check import pre_tokenizer_name
from mpa_edge.runs.files import read_json
from mpa_edge.vlm import WEIGHTS

# as the tokenizer.json files of Qwen2 and Llama 3 have them
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(regex: str, **changed: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} | changed


def sequence(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rules)}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (sequence(DIGITS, WORDS), "smollm"),
        (sequence(split(QWEN2), BYTES), "qwen2"),
        (sequence(split(QWEN2), BYTES) | {"normalizer": {"type": "NFC"}}, "qwen2"),
        (sequence(split(LLAMA3), BYTES), "llama-bpe"),
        ({"pre_tokenizer": WORDS}, "gpt-2"),
        ({"model": {"byte_fallback": True}, "normalizer": {"type": "Prepend"}}, ""),
    ],
)
def test_rules_that_llama_cpp_has(tokenizer: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(tokenizer) == name


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": WORDS | {"add_prefix_space": True}},
        sequence(DIGITS | {"individual_digits": False}, WORDS),
        sequence(WORDS, DIGITS),
        sequence(split(QWEN2 + "x"), BYTES),
        sequence(split(QWEN2, behavior="Removed"), BYTES),
        sequence(split(QWEN2, invert=True), BYTES),
        sequence(split(QWEN2)),
        {"pre_tokenizer": WORDS, "normalizer": {"type": "Lowercase"}},
    ],
)
def test_rules_that_it_has_not(tokenizer: dict[str, Any]) -> None:
    assert pre_tokenizer_name(tokenizer) is None


def test_the_built_in_student() -> None:
    assert pre_tokenizer_name(read_json(WEIGHTS / "student" / "tokenizer.json")) == "smollm"
