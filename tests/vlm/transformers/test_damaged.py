"""Every file of a checkpoint, broken in many ways: one line that names the file, before anything is computed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mpa_edge.cli.main import exit_code
from mpa_edge.errors import MpaError
from mpa_edge.types import Request
from mpa_edge.vlm import WEIGHTS, load
from mpa_edge.vlm.transformers.files import check_files, tensor_shapes, weight_files

STUDENT = WEIGHTS / "student"
FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)
Break = Callable[[Path], object]


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


BREAKS: dict[str, Break] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "a git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7"),
    "null": lambda path: path.write_text("null"),
    "no keys": lambda path: path.write_text("{}"),
    "deep": nested,
    "a folder": folder_in_its_place,
    "a pipe": pipe,
    "a link to nowhere": link_to_nowhere,
    "a link to outside": lambda path: (path.rename(path.parent.parent / "x"), path.symlink_to("../x")),
    "missing": lambda path: path.unlink(),
}
# without them a checkpoint is whole, or a template of any text is one
HARMLESS = {
    *(("generation_config.json", how) for how in ("missing", "no keys")),
    *(("tokenizer_config.json", how) for how in ("missing", "no keys")),
    *(("chat_template.jinja", how) for how in ("half", "zeros", "a web page", "a git LFS pointer", "a list")),
    *(("chat_template.jinja", how) for how in ("a number", "null", "no keys", "deep", "not UTF-8", "empty")),
}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STUDENT, tmp_path / "student"))


def dry_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of `export --dry-run`, and what it says on stderr."""
    capfd.readouterr()
    code = exit_code(["export", str(folder), "--out", str(folder.parent / "exports"), "--dry-run"])
    return code, capfd.readouterr().err


def complaint(folder: Path, code: int, said: str) -> str:
    """The one line about a broken checkpoint."""
    assert code == 1, said
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    assert "unexpected" not in said, said
    assert "report" not in said, said
    assert str(folder) in said or "no family for model type" in said, said
    assert len(said) < 800, said
    return said


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named(name: str, how: str, student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BREAKS[how](student / name)
    code, said = dry_run(student, capfd)
    if (name, how) in HARMLESS and code == 0:
        return
    line = complaint(student, code, said)
    allowed = {name} | ({"preprocessor_config.json"} if name == "processor_config.json" else set())
    assert any(one in line for one in allowed), line
    with pytest.raises(MpaError):
        load(str(student), name="student", device="cpu", threads=1)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_this_user_may_not_read_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(shutil.copytree(STUDENT, Path(home) / "student"))
        (folder / name).chmod(0)
        Path(home).chmod(0o755)
        root = os.geteuid() == 0
        if root:  # may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(MpaError, match=rf"{name}' cannot be read \(Permission denied"):
                tensor_shapes(weight_files(folder) if check_files(folder) else [])
        finally:
            if root:
                os.seteuid(0)


# --- single values ----------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (None, 10**12, -1, 0, "x", [], {}, 1.5, "DELETE")


def variants(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(description, the document with one value replaced or deleted), for every value down to two levels."""

    def at(document: Any, steps: tuple[Any, ...]) -> Any:
        for step in steps:
            document = document[step]
        return document

    for key in at(tree, path):
        for odd in ODD:
            changed = copy.deepcopy(tree)
            place = at(changed, path)
            if odd == "DELETE":
                del place[key]
            else:
                place[key] = odd
            yield f"{'.'.join([*path, key])} = {odd!r}", changed
        if isinstance(at(tree, (*path, key)), dict) and len(path) < 2:
            yield from variants(tree, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json") and name != "tokenizer.json"])
def test_an_odd_value_is_harmless_or_its_file_is_named(
    name: str, student: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    # nine kinds of values: every tenth has each key with another kind; all of them take ten minutes
    for what, document in list(variants(json.loads((STUDENT / name).read_text())))[::10]:
        (student / name).write_text(json.dumps(document))
        code, said = dry_run(student, capfd)
        try:
            if code == 0:
                answers(student)
            else:
                complaint(student, code, said)
        except MpaError as error:
            if str(student) not in str(error):
                wrong.append((what, f"{error}"))
        except (AssertionError, Exception) as error:
            wrong.append((what, f"{type(error).__name__}: {error}"))
    assert not wrong, "\n".join(f"{what}: {why}" for what, why in wrong)


def answers(folder: Path) -> None:
    """What passes the checks answers a question."""
    model = load(str(folder), name="student", device="cpu", threads=1)
    assert model.answer([Request(Image.new("RGB", (90, 60), "red"), "What color is it?", 4)])
    model.close()


def test_tensors_of_another_kind_or_shape_name_the_weights(student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = load_file(student / "model.safetensors")
    name = next(iter(sorted(held)))
    for other in (held[name].int(), held[name][:1], held[name].reshape(-1)):
        save_file(held | {name: other.contiguous()}, student / "model.safetensors")
        complaint(student, *dry_run(student, capfd))


PANICS = (
    '{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}',
    '{"version":"1.0","added_tokens":[],"model":{"type":"Unigram","unk_id":9,"vocab":[["a",0.0]]}}',
    '{"version":"1.0","added_tokens":[],"model":{"type":"WordPiece","vocab":{}}}',
)


@pytest.mark.parametrize("text", PANICS)
def test_a_tokenizer_that_cannot_work_is_named(text: str, student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (student / "tokenizer.json").write_text(text)
    assert "tokenizer" in complaint(student, *dry_run(student, capfd))
