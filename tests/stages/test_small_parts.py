"""Progress, pictures within a budget, Ctrl-C that has to wait."""

from __future__ import annotations

import os
import signal

import pytest
from PIL import Image

from mpa_edge import progress
from mpa_edge.images.cache import ImageCache, groups
from mpa_edge.types import Drop
from mpa_edge.vlm.transformers.interrupts import interrupts_held


def test_groups_fit_the_budget() -> None:
    sizes = {"a": 10, "b": 10, "c": 25, "d": 1, "e": 10}

    def opener(name: str):
        return Drop("broken") if name == "d" else Image.new("RGB", (sizes[name], 1))

    found = [[name for name, _ in group] for group in groups(sizes, opener, 20)]
    assert found == [["a", "b"], ["c"], ["d", "e"]]
    assert [len(group) for group in groups(sizes, opener, 1000)] == [5]
    assert list(groups([], opener)) == []


def test_groups_open_one_after_another() -> None:
    opened: list[int] = []

    def opener(number: int):
        opened.append(number)
        return Image.new("RGB", (10, 1))

    first = next(groups(range(100), opener, 30))
    assert len(first) == 3
    assert len(opened) == 4


def test_the_cache_forgets_the_oldest() -> None:
    opened: list[str] = []

    def opener(name: str) -> Image.Image:
        opened.append(name)
        return Image.new("RGB", (10, 1))

    cache = ImageCache(opener, budget=20)
    for name in "abacab":
        cache(name)
    assert "".join(opened) == "abcb"


def test_plain_lines_off_a_terminal(capsys, monkeypatch) -> None:
    moments = iter([0.0, 4.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with progress.progress("annotate", 100, 10) as advance:
        advance(10)
        advance(40)
        advance(40)
    assert capsys.readouterr().err == "annotate 60/100, 4.2/s, 10 s left\nannotate 100/100, 4.5/s\n"


def test_a_bar_on_a_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress("annotate", 4) as advance:
        advance(4)
    said = capsys.readouterr()
    assert said.out == ""
    assert "annotate" in said.err
    assert "4/4" in said.err


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_held():
        pass
