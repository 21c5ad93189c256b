"""The prompt of an exported model: the same text and the same token ids as its checkpoint's, without transformers."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from mpa_edge.artifact import Artifact
from mpa_edge.errors import MpaError, missing_package

THOUGHT = ("<|channel>", "<channel|>")
"""Gemma 4's tokens around what it thinks before it answers. What stands between them is text, not a special token."""


def without_special_tokens(text: str, special: Sequence[str] | re.Pattern[str]) -> str:
    """Remove all special tokens, so that no text of a user or a model can pass as an image, a turn or an end.

    `special` are the tokens themselves, or a pattern that matches them.

    >>> without_special_tokens("a<ima<image>ge>b", ("<image>",))
    'ab'
    """
    if not isinstance(special, re.Pattern):
        special = _any_of(tuple(special))
    while (cleaned := special.sub("", text)) != text:  # what is left may form another one
        text = cleaned
    return text


def without_thought(tokens: Sequence[int], thought: Sequence[int | None]) -> Sequence[int]:
    """Tokens of an answer without the thought before it, and none of a thought that does not end.

    `thought` are the tokens that begin and end one, see `THOUGHT`; None where a vocabulary lacks them.

    >>> without_thought([7, 1, 8, 2, 9], (1, 2)), without_thought([7, 1, 8], (1, 2)), without_thought([7], (None, None))
    ([9], [7], [7])
    """
    start, end = thought
    if end is not None and end in tokens:
        return tokens[len(tokens) - list(reversed(tokens)).index(end) :]
    return tokens[: tokens.index(start)] if start is not None and start in tokens else tokens


@functools.lru_cache(8)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that matches each of the tokens, longest first; without tokens, nothing."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


def prompt_text(artifact: Artifact, prompt: str, expansion: str) -> str:
    """The whole text before the answer, with `expansion` in the place of the image.

    Only the template's own placeholder is replaced: special tokens in the user's `prompt` are removed.
    """
    parts = artifact.prompt
    before = parts.before.replace(parts.placeholder, expansion, 1)
    text = without_special_tokens(prompt, artifact.tokens.special)
    return before + (text.strip() if parts.trims else text) + parts.after


def prompt_too_long(n_tokens: int | str, context_tokens: int | str) -> MpaError:
    """The error for a prompt that leaves no token for an answer."""
    return MpaError(
        f"the prompt has {n_tokens} tokens, this export takes {context_tokens}: "
        "ask a shorter question, or export for a longer context"
    )


class PromptTokenizer:
    """tokenizer.json of an exported model: text to ids and back, as its HF tokenizer with add_special_tokens=False."""

    def __init__(self, folder: Path, artifact: Artifact) -> None:
        """MpaError where the tokenizers package or the file is missing, or the file is damaged."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise missing_package("tokenizers", "onnx") from error
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise MpaError(f"{path} is missing or damaged: copy the whole folder, or rerun mpa-edge export") from error
        # a tokenizer may have been saved with padding or truncation turned on
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = artifact.tokens.special
        self._thought = [self._tokenizer.token_to_id(token) for token in THOUGHT]

    def encode(self, text: str) -> list[int]:
        """Token ids; the template's special tokens become their ids, and none is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer, stripped, without thoughts and special tokens."""
        text = self._tokenizer.decode(list(without_thought(list(tokens), self._thought)), skip_special_tokens=True)
        return without_special_tokens(text, self._special).strip()
