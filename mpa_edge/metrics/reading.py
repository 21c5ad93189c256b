r"""Files of answers that people write, read strictly: each fault names file and line, and ends with the fix.

JSON lines and tables share what is here: the encoding, and what counts as text and as accepted answers.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

from mpa_edge.errors import MpaError

JSON_TYPES = {
    type(None): "null",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
LINE_END = re.compile(rb"\r\n|\r|\n")
PRINTED_LIST = re.compile(r"\s*(array\(.*\)|[\[({]\s*['\"].*['\"]\s*,?\s*[\])}])\s*", re.DOTALL)


def decode(data: bytes, name: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. MpaError that names the line and the byte.

    >>> decode(b"\\xef\\xbb\\xbfa", "x.csv")
    'a'
    >>> decode(b"a\\ncaf\\xe9", "x.csv")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: x.csv:2: not UTF-8 (byte 6 of the file is 0xe9): save the file as UTF-8
    """
    if data.startswith(WIDE_MARKS):
        raise MpaError(f"{name}:1: not UTF-8 but UTF-16 (byte 1 of the file is its mark): save the file as UTF-8")
    try:
        text, at, problem = data.decode(), data.find(b"\0"), "NUL, as in UTF-16"
    except UnicodeDecodeError as error:
        text, at, problem = "", error.start, f"0x{data[error.start]:02x}"
    if at >= 0:
        line = len(LINE_END.findall(data, 0, at)) + 1
        raise MpaError(f"{name}:{line}: not UTF-8 (byte {at + 1} of the file is {problem}): save the file as UTF-8")
    return text.removeprefix("\ufeff")


def json_lines(data: bytes, name: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; blank lines are skipped. `example` is a line, which errors end with."""
    for number, line in enumerate(StringIO(decode(data, name), newline=""), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            what = "a list over many lines" if line.strip() == "[" else f"{error.msg}, column {error.colno}"
            raise MpaError(f"{name}:{number}: not JSON ({what}): write one object a line, as in {example}") from None
        except (ValueError, RecursionError) as error:
            raise MpaError(f"{name}:{number}: not JSON ({error}): write one object a line, as in {example}") from None
        if not isinstance(row, dict):
            what = JSON_TYPES[type(row)]
            raise MpaError(f"{name}:{number}: the line is {what}: write one object a line, as in {example}")
        yield number, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return found


def text_of(value: Any, what: str, where: str, example: str) -> str:
    """A value that must be text. MpaError that begins with `where`, says `what` it is, and ends with `example`."""
    if not isinstance(value, str):
        raise MpaError(f"{where}: {what} is {JSON_TYPES[type(value)]}: write it as text, as in {example}")
    return value


def no_character(*texts: str) -> str | None:
    """The first half of a surrogate pair, or NUL, in any of the texts: no tokenizer and no file can hold it."""
    return next((char for text in texts for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object, as answers of type json are.

    >>> is_object('{"a": 1}'), is_object("{'a': 1}"), is_object("[1]")
    (True, False, False)
    """
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def answers_of(value: Any, where: str, example: str) -> tuple[str, ...]:
    """The accepted answers of a row, as they stand there.

    >>> answers_of(["5", ""], "x:1", "..."), answers_of([], "x:1", "...")
    (('5', ''), ())
    >>> answers_of(["['stop', 'halt']"], "x:1", '{"answers": ["stop", "halt"]}')
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: x:1: an answer is a list as Python prints it: write it as in {"answers": ["stop", "halt"]}
    """
    if not isinstance(value, list):
        raise MpaError(f"{where}: answers is {JSON_TYPES[type(value)]}: write a list of texts, as in {example}")
    answers = tuple(text_of(answer, "one of the answers", where, example) for answer in value)
    if any(PRINTED_LIST.fullmatch(answer) and not is_object(answer) for answer in answers):
        raise MpaError(f"{where}: an answer is a list as Python prints it: write it as in {example}")
    return answers
