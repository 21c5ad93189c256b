"""The contact sheet says everything about the images, loads nothing, and takes no markup from a teacher."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from mpa_edge.stages.annotate import sheet
from mpa_edge.stages.annotate.sheet import write_sheet
from mpa_edge.stages.annotate.stage import run_annotate

ATTACK = "</div><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\u202e"
TASK = {"name": "mine", "objective": "Ask.", "kinds": [{"name": "a"}, {"name": "b"}]}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def writes(request) -> str:
    number = int(request.image.getpixel((0, 0))[0])
    if request.prompt.startswith("Ask."):
        return f"Question: What {number}{ATTACK}?\nAnswer: 7" if number else "no idea " + ATTACK
    return "7" if number != 2 else "eight" + ATTACK


def test_one_page_with_everything(shelf, make_run, images_folder) -> None:
    (images_folder / "broken.png").write_bytes(b"no image")
    shelf(teacher=writes)
    run = make_run(task=TASK, annotate__samples_per_image=2, annotate__votes=1, evaluate__holdout=0.0)
    assert write_sheet(run) is None
    run_annotate(run)
    path = write_sheet(run)
    assert path == run.folder / "sheet.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("article") == 7
    assert page.tags.count("img") == 6
    assert "script" not in page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "\u202e" not in page.text
    text = " ".join(page.text.split())
    assert "5 questions with answers by nursery:teacher; dropped: duplicate question (5), no question (2)" in text
    assert "What 1</div><script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert len(re.findall(r"not confirmed: asked again, it said ✗ eight", text)) == 1
    assert text.count("asked again: ✓ 7") == 4
    assert "1, any kind" in text
    assert "2, a" in text
    assert "broken.png" in text


def test_more_images_than_a_page_shows(shelf, make_run, monkeypatch) -> None:
    shelf(teacher=writes)
    run = make_run(task=TASK, annotate__samples_per_image=1, evaluate__holdout=0.0)
    run_annotate(run)
    monkeypatch.setattr(sheet, "MOST_IMAGES", 3)
    path = write_sheet(run)
    assert path is not None
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("article") == 3
    assert "The first 3 images are shown." in page.text
