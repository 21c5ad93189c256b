"""Names and links that lead out of a folder, and the rule that only `runs.paths` deletes and writes."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError, OutsideError
from mpa_edge.runs import files, paths
from mpa_edge.runs.log import logger, open_log
from mpa_edge.runs.manifest import clear
from mpa_edge.types import ParityRecord

LINKS = ("way/a.txt", "sub/way", "file")
PACKAGE = Path(__file__).parents[2] / "mpa_edge"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Files of somebody, beside the run."""
    (tmp_path / "victim" / "sub").mkdir(parents=True)
    (tmp_path / "victim" / "a.txt").write_text("precious")
    (tmp_path / "victim" / "sub" / "b.txt").write_text("deep")
    return tmp_path / "victim"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "sub" / "x").write_text("x")
    return tmp_path / "run"


def untouched(victim: Path) -> bool:
    found = {path.relative_to(victim).as_posix(): path.read_text() for path in victim.rglob("*") if path.is_file()}
    return found == {"a.txt": "precious", "sub/b.txt": "deep"}


@pytest.mark.parametrize("name", ["sub/x", "new", "sub/new/deeper", "..x", "a\\b", "sub//x", "./sub/x"])
def test_names_below_a_root(run: Path, name: str) -> None:
    assert paths.inside(run, name) == run / name
    alias = run.with_name("alias")
    alias.symlink_to(run)
    assert paths.inside(alias, name) == alias / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "./", "..", "../x", "sub/../../x", "sub/..", "/etc/x", "//x", "a\0b", *LINKS],
)
def test_names_that_lead_out(run: Path, victim: Path, name: str) -> None:
    (run / "way").symlink_to(victim)
    (run / "sub" / "way").symlink_to("nowhere")
    (run / "file").symlink_to(victim / "a.txt")
    with pytest.raises(OutsideError, match="leads out of .*: do not use this folder"):
        paths.inside(run, name)


def test_a_row_with_an_image_elsewhere_is_none() -> None:
    row = {"id": "1", "image_id": "0", "question": "q?", "answer": "a", "teacher_answer": "a"}
    row |= {"student_answer": "b", "verdict": "gap"}
    assert ParityRecord.model_validate(row | {"image": "a/b.png"}).image == "a/b.png"
    for image in ("../b.png", "/b.png", "a/../../b.png", ""):
        with pytest.raises(OutsideError, match="leads out of its folder"):
            ParityRecord.model_validate(row | {"image": image})


def test_remove_takes_the_link_and_not_what_it_leads_to(run: Path, victim: Path) -> None:
    for name, to in (("folder", victim), ("file", victim / "a.txt"), ("broken", victim / "none")):
        (run / name).symlink_to(to)
        paths.remove(run / name)
        assert not (run / name).is_symlink()
    (run / "sub" / "way").symlink_to(victim)
    paths.remove(run / "sub")
    assert os.listdir(run) == []
    paths.remove(run / "sub")
    paths.remove(run / "sub" / "x")
    assert untouched(victim)


def test_what_cannot_be_removed_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda _: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    with pytest.raises(MpaError, match=r"cannot remove .*/x \(Operation not permitted\): remove it yourself"):
        paths.remove(run / "sub" / "x")
    paths.remove(run / "sub" / "x", quietly=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_bytes(path, b"new"),
        lambda path: files.write_json(path, {}),
        lambda path: paths.new_file(path).close(),
        lambda path: paths.copy(Path(__file__), path),
        lambda path: files.link_or_copy(Path(__file__), path),
        lambda path: paths.move(path.parent / "sub" / "x", path),
    ],
)
def test_a_link_in_the_place_of_a_file_is_replaced(run: Path, victim: Path, write: Callable[[Path], object]) -> None:
    (run / "file").symlink_to(victim / "a.txt")
    write(run / "file")
    assert not (run / "file").is_symlink()
    assert untouched(victim)


@pytest.mark.parametrize("kind", ["link", "broken link", "hard link", "pipe", "folder"])
def test_a_file_that_is_changed_in_place_is_our_own(run: Path, victim: Path, kind: str) -> None:
    path = run / "log"
    if kind == "hard link":
        os.link(victim / "a.txt", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim / ("a.txt" if kind == "link" else "new"))
    for mode in ("ab", "r+b"):
        with pytest.raises(MpaError, match="is .*: delete it, or put a copy"):  # noqa: SIM117
            with open(path, mode, opener=paths.open_in_place):
                pass
    assert untouched(victim)


def test_the_log_does_not_follow_a_link(run: Path, victim: Path) -> None:
    (run / "run.log").symlink_to(victim / "a.txt")
    open_log(run)
    logger.info("a line")
    assert untouched(victim)


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "broken link", "pipe"])
def test_a_folder_with_anything_but_files_is_refused(run: Path, victim: Path, kind: str) -> None:
    paths.require_plain(run)
    paths.require_plain(run / "not there")
    alias = run.with_name("alias")
    alias.symlink_to(run)
    paths.require_plain(alias)
    path = run / "sub" / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to a folder": victim, "link to a file": victim / "a.txt"}.get(kind, victim / "none"))
    with pytest.raises(MpaError, match="/sub/odd is .*: delete it, or put a copy of what you need in its place"):
        paths.require_plain(alias)


def test_clearing_a_folder_and_sweeping_stay_inside(run: Path, victim: Path) -> None:
    (run / "way").symlink_to(victim)
    (run / "sub" / ".x.tmp").symlink_to(victim)
    (victim / ".y.tmp").write_text("")
    assert files.sweep(run) == 1
    (victim / ".y.tmp").unlink()  # still there
    clear(run)
    assert os.listdir(run) == []
    assert untouched(victim)


# --- every delete and write of the package ----------------------------------------------------------------------------

DELETES = {"unlink", "rmtree", "rmdir", "removedirs", "rename", "renames", "truncate", "ftruncate"}
WRITES = {"write_text", "write_bytes", "copyfile", "copyfileobj", "copy2", "copytree", "touch", "pwrite", "chmod"}
MAKES = {"mkdir", "makedirs", "symlink", "symlink_to", "hardlink_to", "link", "mkdtemp", "mkstemp", "mkfifo", "mknod"}
SAVES = {"save", "save_model", "save_pretrained", "save_file", "write_table", "extractall", "tofile", "savez"}
TEMPORARY = {"TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile"}
NAMED = DELETES | WRITES | MAKES | SAVES | TEMPORARY
PLACE = {"runs/paths.py"}
OURS = {"files", "paths"}
"""Modules whose functions of these names are the place, or built on it."""

# file: call -> why it need not go through runs.paths
ALLOWED = {
    "bench/host/bundle.py": {
        "half.mkdir": "raises where anything has the name",
        "tarfile.open": "into a file of atomic_write",
    },
    "bench/host/job.py": {"file.truncate": "opened by open_in_place"},
    "bench/host/upload.py": {"tarfile.open": "into memory"},
    "bench/results/documents.py": {"opened.save": "into memory"},
    "bench/transports/process.py": {"tempfile.TemporaryFile": "a file without a name"},
    "bench/transports/ssh.py": {
        "tempfile.mkdtemp": "a new folder that only this user may enter",
        "socket_file.unlink": "in that folder",
        "log_file.open": "in that folder",
        "shutil.rmtree": "of that folder",
    },
    "cli/evaluate.py": {"TemporaryDirectory": "a new folder that only this user may enter"},
    "cli/main.py": {"os.open": "/dev/null"},
    "engines/ray_pool.py": {"tempfile.mkdtemp": "a new folder that only this user may enter"},
    "evaluation/answer_log.py": {"file.truncate": "opened by open_in_place"},
    "exporters/build.py": {"shutil.copyfileobj": "into a file of atomic_write"},
    "exporters/gguf/convert.py": {"(folder / path.name).symlink_to": "in a new folder, which is only removed again"},
    "exporters/gguf/fetch.py": {
        "(cache / '.llama-cpp.lock').open": "the user's own cache folder",
        "tempfile.TemporaryDirectory": "a new folder in it",
        "requirement.write_text": "in that folder",
        "(unpacked / DONE).touch": "in that folder",
        "(folder / name).parent.mkdir": "in that folder; the names are those of an archive with a known hash",
        "(folder / name).open": "in that folder; the names are those of an archive with a known hash",
        "shutil.copyfileobj": "into that file",
    },
    "exporters/onnx/export.py": {"onnx_ir.save": "in a folder of this process, made anew"},
    "exporters/onnx/files.py": {
        "folder.mkdir": "raises where anything has the name",
        "onnx.save_model": "in the folder of work_folder, made anew",
    },
    "exporters/onnx/quantize.py": {"files.save": "in the folder of work_folder, made anew"},
    "exporters/publish/layout.py": {"processor.save_pretrained": "in a folder that require_plain has looked at"},
    "nursery/render.py": {"picture.image.save": "into a file of new_file"},
    "runs/files.py": {
        "folder.mkdir": "make_folder, which every other module calls",
        "os.link": "raises where anything has the name",
    },
    "runs/lock.py": {"os.ftruncate": "opened by open_in_place", "os.pwrite": "opened by open_in_place"},
    "runs/parquet.py": {"pq.write_table": "into memory"},
    "runs/remote/stores.py": {"self._fs.makedirs": "a name that _checked has let pass"},
    "stages/level/interpolate.py": {"save": "returns bytes"},
    "stages/level/training.py": {
        "open": "/dev/null",
        "trainer.save_model": "in a new folder of a run that require_plain has looked at",
        "shutil.copytree": "in a new folder of a run that require_plain has looked at",
        "(Path(args.output_dir) / f'checkpoint-{state.global_step}' / COMPLETE).touch": "in a checkpoint just written",
    },
    "stages/merge.py": {"model.save_pretrained": "in a folder that was cleared"},
    "stages/shards.py": {"save": "a function of our own"},
    "stages/teacher.py": {"save": "a function of our own"},
    "vlm/llama_cpp/server.py": {"images[0].convert('RGB').save": "into memory"},
    "vlm/openai/image.py": {"image.save": "into memory", "image.convert('RGB').save": "into memory"},
}


def is_write(call: ast.Call) -> bool:
    """Whether a call deletes, makes or writes a file by a name, outside of `runs.paths` and `runs.files`."""
    target = call.func
    owner = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
    name = target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""
    texts = [ast.unparse(one) for one in (*call.args, *(keyword.value for keyword in call.keywords))]
    if name == "open":
        if "open_in_place" in texts:
            return False
        if owner == "os":
            return any(word in text for text in texts for word in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        modes = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return any(mode and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if name in ("replace", "remove"):  # of os or of a path; text.replace takes two, list.remove is told by its owner
        return owner == "os" or (name == "replace" and bool(owner) and len(call.args) == 1 and not call.keywords)
    if name in ("write_bytes", "write_text"):
        return bool(owner) and owner not in OURS
    if name in ("move", "copy"):
        return owner == "shutil"
    return name in NAMED


def writes(source: str) -> Counter[str]:
    """What is called, for each call of a file that writes or deletes."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return Counter(ast.unparse(call.func) for call in calls if is_write(call))


def test_every_delete_and_write_goes_through_the_place() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in PLACE and (calls := writes(path.read_text(encoding="utf-8"))):
            found[name] = set(calls)
    allowed = {name: set(calls) for name, calls in ALLOWED.items()}
    assert found == allowed, "use mpa_edge.runs.paths, or say in ALLOWED why a call need not"


@pytest.mark.parametrize(
    "line",
    [
        "path.unlink()",
        "os.remove(path)",
        "shutil.rmtree(path, ignore_errors=True)",
        "path.replace(other)",
        "os.replace(a, b)",
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "path.write_text('x')",
        "shutil.copy(a, b)",
        "shutil.move(a, b)",
        "os.truncate(path, 3)",
        "model.save_pretrained(folder)",
    ],
)
def test_the_walk_finds_it(line: str) -> None:
    assert writes(line)


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "open(path, 'ab', opener=open_in_place)",
        "text.replace('a', 'b')",
        "replace(run, engine=engine)",
        "files.write_bytes(path, data)",
        "move(a, b)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_the_walk_leaves_the_rest(line: str) -> None:
    assert not writes(line)
