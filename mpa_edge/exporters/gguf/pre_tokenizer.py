"""How llama.cpp should cut text into words before it applies the merges, read off a tokenizer's own rules."""

from __future__ import annotations

from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# name in llama.cpp -> the one regular expression of the tokenizer (llama.cpp src/llama-vocab.cpp, commit 0c1e57098)
_SPLITS = {
    _WORDS + r"\p{N}" + _REST: "qwen2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for the rules of a tokenizer.json; "" for a sentencepiece-like one that needs none.

    None where llama.cpp has no equal. Its own converter decides by a fingerprint of the vocabulary, which a tokenizer
    trained by the user cannot have.

    >>> digits, byte_level = {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}
    >>> pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}})
    'smollm'
    >>> pre_tokenizer_name({"pre_tokenizer": byte_level})
    'gpt-2'
    """
    if (tokenizer.get("model") or {}).get("byte_fallback"):
        return ""
    if (tokenizer.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return None
    rules = _rules(tokenizer.get("pre_tokenizer") or {})
    return {
        ("Digits", "words"): "smollm",
        ("words",): "gpt-2",
        ("qwen2", "bytes"): "qwen2",
        ("llama-bpe", "bytes"): "llama-bpe",
    }.get(rules)


def _rules(rule: dict[str, Any]) -> tuple[str, ...]:
    """The steps of a pre-tokenizer in short words; an unknown one makes the whole unknown."""
    kind = rule.get("type")
    if kind == "Sequence":
        return tuple(word for part in rule.get("pretokenizers", []) for word in _rules(part))
    if kind == "Digits" and rule.get("individual_digits"):
        return ("Digits",)
    if kind == "ByteLevel" and not rule.get("add_prefix_space"):
        return ("words" if rule.get("use_regex", True) else "bytes",)
    if kind == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert"):
        return (_SPLITS.get((rule.get("pattern") or {}).get("Regex", ""), "unknown"),)
    return ("unknown",)
