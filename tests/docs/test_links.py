"""Links and images lead somewhere, and nothing in a document belongs to one machine."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.markdown import DOCUMENTS, ROOT, anchors, links, name_of, prose

NAMES = {name_of(path): path for path in DOCUMENTS}
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|work|tmp|opt|usr|mnt|Users|var)/|[A-Z]:\\\\|localhost|\b(?!127\.0\.0\.1\b)\d+\.\d+\.\d+\.\d+\b"
)
FILES = re.compile(r"`((?:docs|recipes|tests|mpa_edge|targets|export)/[\w./-]*\w)`")
ADJECTIVES = re.compile(
    r"\b(?:powerful|blazing\w*|seamless\w*|cutting-edge|state-of-the-art|robust|simply|easily|effortless\w*|"
    r"revolutionary|amazing|world-class|lightning)\b",
    re.IGNORECASE,
)
ONLY_INSTALLED = ("mpa_edge/_assets",)
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf]")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = NAMES[name]
    for link in links(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document if not path else (document.parent / path).resolve()
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link} leaves the project"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/results.md"])
def test_named_files_exist(name: str) -> None:
    for path in FILES.findall(prose(NAMES[name].read_text(encoding="utf-8"))):
        known = "NAME" in path or path in ONLY_INSTALLED or (ROOT / path).exists()
        assert known, f"{name}: `{path}`"


@pytest.mark.parametrize("name", NAMES)
def test_no_machine_paths_and_plain_words(name: str) -> None:
    text = NAMES[name].read_text(encoding="utf-8")
    assert not MACHINE.findall(text)
    assert not ADJECTIVES.findall(text)
    assert not EMOJI.findall(text)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_and_described(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    assert root.find(f"{space}desc") is not None
    assert not [node for node in root.iter() if node.tag == f"{space}script"]


def test_a_broken_link_is_found_out() -> None:
    assert links("[a](b.md#c) ![d](e.svg) [f](https://g.example)") == ["b.md#c", "e.svg"]
    assert anchors("# What a changed key redoes\n## `make` it\n") == {"what-a-changed-key-redoes", "make-it"}
    assert MACHINE.search("see /home/me/x")
