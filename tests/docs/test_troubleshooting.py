"""docs/troubleshooting.md quotes what the program says, and quotes all of it."""

from __future__ import annotations

import re

import pytest

from tests.docs.markdown import ROOT
from tests.docs.messages import HOLE, covers, raised, texts

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FIRST_CELL = re.compile(r"^\| (`.+?`(?:, `.+?`)*) \|", re.MULTILINE)
QUOTED = [quote for cell in FIRST_CELL.findall(TEXT) for quote in re.findall(r"`([^`]+)`", cell)]
# `no … '…' (…)` would cover a lot: a quotation counts for the errors of which it names enough
MEANINGFUL_CHARS = 6


@pytest.mark.parametrize("quote", QUOTED)
def test_the_program_says_so(quote: str) -> None:
    assert any(covers(quote, text) for text in texts()), f"nothing in mpa_edge says: {quote}"


def meaning(quote: str) -> str:
    return re.sub(rf"[{HOLE}\s'():;,.]", "", quote)


@pytest.mark.parametrize("text", sorted(raised()))
def test_every_error_is_explained(text: str) -> None:
    explained = any(covers(quote, text) for quote in QUOTED if len(meaning(quote)) >= MEANINGFUL_CHARS)
    assert explained or text == "no … '…' (…)", f"docs/troubleshooting.md does not explain: {text} ({raised()[text]})"


def test_the_tables_are_read() -> None:
    assert len(QUOTED) > 60
    assert len(raised()) > 40


def test_a_made_up_message_is_found_out() -> None:
    assert not any(covers("the flux capacitor is empty", text) for text in texts())
