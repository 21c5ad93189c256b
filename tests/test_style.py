"""The rules of the code that a linter does not know."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mpa_edge"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def faults(source: str) -> list[str]:
    """Every broken rule of one file, with its line."""
    tree = ast.parse(source)
    found = [] if source.count("\n") <= 450 else [f"{source.count(chr(10))} lines in one file"]
    found += [f"line {n}: fmt: skip" for n, line in enumerate(source.split("\n"), 1) if "# fmt: " in line]
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and node.end_lineno - node.lineno + 1 > 60:
            found.append(f"line {node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert (raise MpaError, users run without a debugger)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_keeps_the_rules(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_rules_bite() -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    assert len(faults(long)) == 1
    assert len(faults("try:\n    pass\nexcept:\n    assert 1\n")) == 2
    assert len(faults("x = 1\n" * 451)) == 1
    assert len(faults("x = 1  # fmt: skip\n")) == 1
    assert faults("def f():\n" + "    x = 1\n" * 59) == []


def test_there_are_files() -> None:
    assert len(FILES) > 10


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
    "bench/device/worker.py": {"TemporaryDirectory": "a new folder that only this user may enter"},
    "bench/host/bundle.py": {
        "half.mkdir": "raises where anything has the name",
        "tarfile.open": "into a file of atomic_write",
    },
    "bench/host/job.py": {"file.truncate": "opened by open_in_place"},
    "bench/host/upload.py": {"tarfile.open": "into memory"},
    "bench/transports/process.py": {"tempfile.TemporaryFile": "a file without a name"},
    "bench/transports/ssh.py": {
        "tempfile.mkdtemp": "a new folder that only this user may enter",
        "socket_file.unlink": "in that folder",
        "self._log.open": "in that folder",
        "shutil.rmtree": "of that folder",
    },
    "cli/evaluate.py": {"TemporaryDirectory": "a new folder that only this user may enter"},
    "cli/main.py": {"os.open": "/dev/null"},
    "engines/ray_pool.py": {"tempfile.mkdtemp": "a new folder that only this user may enter"},
    "evaluation/answer_log.py": {"file.truncate": "opened by open_in_place"},
    "stages/near_duplicates.py": {"file.truncate": "opened by open_in_place"},
    "evaluation/review.py": {"file.truncate": "opened by open_in_place", "self.file.truncate": "the same file"},
    "exporters/importance.py": {"np.savez": "into memory"},
    "exporters/build.py": {"shutil.copyfileobj": "into a file of atomic_write"},
    "exporters/gguf/convert.py": {
        "(folder / f'model-{i:05}.safetensors').symlink_to": "in a new folder, which is only removed again",
        "(folder / name).symlink_to": "in a new folder, which is only removed again",
    },
    "exporters/gguf/fetch.py": {
        "tempfile.TemporaryDirectory": "in a new folder of the user's own cache",
        "requirement.write_text": "in that folder",
        "(folder / name).parent.mkdir": "in that folder; the names are those of an archive with a known hash",
        "(folder / name).open": "in that folder; the names are those of an archive with a known hash",
        "shutil.copyfileobj": "into that file",
    },
    "exporters/gguf/lora.py": {"save": "safetensors, into memory"},
    "exporters/onnx/export.py": {"onnx_ir.save": "in a folder of this process, made anew"},
    "exporters/onnx/files.py": {
        "folder.mkdir": "raises where anything has the name",
        "onnx.save_model": "in the folder of work_folder, made anew",
    },
    "exporters/onnx/quantize.py": {
        "files.save": "in the folder of work_folder, made anew",
        "onnx.save": "in the folder of work_folder, made anew",
    },
    "exporters/pipeline.py": {"tempfile.TemporaryDirectory": "a new folder that only this user may enter"},
    "exporters/publish/layout.py": {"processor.save_pretrained": "in a folder that require_plain has looked at"},
    "nursery/render.py": {"picture.image.save": "into a file of new_file"},
    "images/decode.py": {"image.save": "into memory"},
    "runs/files.py": {
        "folder.mkdir": "make_folder, which every other module calls",
        "os.link": "raises where anything has the name",
    },
    "runs/user_cache.py": {
        "(cache / f'.{name}.lock').open": "the user's own cache folder",
        "tempfile.TemporaryDirectory": "a new folder in it",
        "made.mkdir": "in that folder",
        "(made / DONE).touch": "in that folder",
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
    "stages/teacher.py": {"save": "a function of our own"},
    "vlm/llama_cpp/server.py": {"images[0].convert('RGB').save": "into memory"},
    "vlm/transformers/adapter.py": {"save": "safetensors, into memory"},
    "vlm/transformers/merging.py": {"model.save_pretrained": "in a folder that was cleared"},
    "vlm/transformers/checkpoint.py": {"os.open": "/dev/null"},
    "vlm/transformers/own_formats/rewriting.py": {"(out / WEIGHTS).open": "in a new folder of the user's own cache"},
    "vlm/transformers/own_formats/internvl_chat.py": {"processor.save_pretrained": "in such a folder"},
    "vlm/transformers/own_formats/tinyllava.py": {"processor.save_pretrained": "in such a folder"},
    "vlm/openai/kept.py": {"os.ftruncate": "opened by open_in_place"},
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
