"""Every command that a document shows works: shell blocks run line by line, quoted commands parse."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click
import pytest

from mpa_edge.cli import main as cli
from tests.cli.test_examples import COMMANDS, runnable, workplace  # noqa: F401  (a fixture)
from tests.docs.markdown import DOCUMENTS, PROGRAM, ROOT, mentioned, name_of, shell_lines
from tests.questions import official

NAMED = {name_of(path): path.read_text(encoding="utf-8") for path in DOCUMENTS}
RUN = {name: [line for line in shell_lines(text) if line.startswith(f"{PROGRAM} ")] for name, text in NAMED.items()}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# commands that a user runs in a shell, but a test does not
ELSEWHERE = ("make", "pip", "python", "git", "pre-commit", "sh", "tar")


def path_of(words: list[str]) -> tuple[str, ...]:
    """The command's words: ('nursery', 'render') of `nursery render DIR`."""
    return max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len, default=())


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Where the documents' commands run: charts/, photos/, runs/mine, predictions.jsonl."""
    from mpa_edge.config.library import load_recipe
    from mpa_edge.nursery.render import render
    from mpa_edge.stages.run import Run, remember

    monkeypatch.chdir(workplace)
    monkeypatch.setenv("PATH", f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}")
    render(workplace / "charts", 3, 7, "target")
    official.chartqa(workplace / "data" / "chartqa", "train")
    official.write_image(workplace / "data" / "chartqa" / "train" / "png" / "166.png", 99)  # not in the test part
    official.textvqa(workplace / "data" / "textvqa", split="train", rows=[official.textvqa_row(1, "1", "what is it?")])
    official.write_image(workplace / "data" / "textvqa" / "train_images" / "1.jpg", 98)
    for name in ("mine", "photos"):
        if not (workplace / "runs" / name).exists():
            (workplace / "runs" / name).mkdir(parents=True)
            remember(Run(workplace / "runs" / name, load_recipe("minicharts"), str(workplace / "charts")))
    return workplace


# the whole of docs/your-own-images.md is run by test_your_own_images.py
@pytest.mark.parametrize("name", [name for name, lines in RUN.items() if lines and name != "docs/your-own-images.md"])
def test_the_commands_run(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in RUN[name]:
        path = path_of(shlex.split(line)[1:])
        assert path, f"{name}: no such command: {line}"
        words = shlex.split(runnable(path, line))[1:]
        code = cli.exit_code(words)
        said = capsys.readouterr()
        assert code == 0, f"{name}: {line}: {said.err}"
        assert said.out.strip(), f"{name}: {line} printed nothing"
        assert "Traceback" not in said.err


@pytest.mark.parametrize("name", NAMED)
def test_quoted_commands_parse(name: str) -> None:
    for words in mentioned(NAMED[name]):
        if words[0].startswith("-"):
            cli.main.make_parser(click.Context(cli.main)).parse_args(list(words))
            continue
        path = path_of(words)
        assert path, f"{name}: no such command: {PROGRAM} {' '.join(words)}"
        parser = COMMANDS[path].make_parser(click.Context(COMMANDS[path]))
        parser.parse_args(words[len(path) :])


def test_a_wrong_command_is_found_out() -> None:
    assert path_of(["algin", "minicharts"]) == ()
    with pytest.raises(click.NoSuchOption):
        COMMANDS[("align",)].make_parser(click.Context(COMMANDS[("align",)])).parse_args(["--imges", "x"])
    assert shell_lines("```sh\nmpa-edge list  # all\n```\n") == ["mpa-edge list"]
    assert mentioned("see `mpa-edge list recipes` and `mpa_edge/x.py`") == [["list", "recipes"]]


@pytest.mark.parametrize("name", NAMED)
def test_shell_lines_are_of_known_programs(name: str) -> None:
    for line in shell_lines(NAMED[name]):
        assert line.startswith((f"{PROGRAM} ", *(f"{word} " for word in ELSEWHERE))), f"{name}: {line}"


@pytest.mark.parametrize("name", NAMED)
def test_make_targets_exist(name: str) -> None:
    quoted = re.findall(r"`make ([a-z-]+)`", NAMED[name])
    shown = [line.split()[1] for line in shell_lines(NAMED[name]) if line.startswith("make ")]
    assert set(quoted + shown) <= TARGETS


def test_the_readme_starts_with_the_demo() -> None:
    assert shell_lines(NAMED["README.md"])[0].split()[:2] == ["make", "demo"]
    assert len(RUN["README.md"]) >= 8


def test_the_training_commands_parse() -> None:
    from tools.nursery_training import train

    lines = [line for line in shell_lines(NAMED["docs/nursery.md"]) if line.startswith("python ")]
    assert len(lines) == 2
    for line in lines:
        _python, _m, module, *words = shlex.split(line)
        assert module == "tools.nursery_training.train"
        with train.main.make_context("train", words) as ctx:
            assert ctx.params["name"] in train.PLANS
