"""Progress on a terminal and elsewhere."""

from __future__ import annotations

from mpa_edge import progress


def test_plain_lines_off_a_terminal(capsys, monkeypatch) -> None:
    moments = iter([0.0, 4.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with progress.progress("annotate", 100, 10) as advance:
        advance(10)
        advance(40)
        advance(40)
    assert capsys.readouterr().err == "annotate 60/100, 4.2/s, 10 s left\nannotate 100/100, 4.5/s\n"


def test_a_message_does_not_control_the_terminal(capsys) -> None:
    progress.say("device a\x1b[2J\r\x9b31m\u202eb: warm")
    assert capsys.readouterr().err == "device a\\u001b[2J\\u000d\\u009b31m\\u202eb: warm\n"


def test_a_bar_on_a_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress("annotate", 4) as advance:
        advance(4)
    said = capsys.readouterr()
    assert said.out == ""
    assert "annotate" in said.err
    assert "4/4" in said.err
