from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mpa_edge.cli.doctor import pins
from mpa_edge.cli.main import exit_code
from mpa_edge.config import library


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one_document(capsys) -> dict:
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_list_says_what_there_is(capsys) -> None:
    assert exit_code(["list", "--json"]) == 0
    found = one_document(capsys)
    assert list(found) == ["recipes", "targets", "schemes", "tasks", "families"]
    assert "minicharts" in [row["name"] for row in found["recipes"]]
    assert exit_code(["list", "recipes"]) == 0
    assert "  minicharts  " in capsys.readouterr().out


def test_show_is_the_file_and_json_is_the_record(capsys) -> None:
    assert exit_code(["show", "minicharts", "--kind", "recipes"]) == 0
    assert capsys.readouterr().out == library.find("recipes", "minicharts").read_text()
    assert exit_code(["show", "minicharts", "--kind", "recipes", "--json", "--set", "level.rank=3"]) == 0
    assert one_document(capsys) == library.load_recipe("minicharts", ["level.rank=3"]).model_dump(mode="json")


def test_show_says_where_else_the_name_is(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpa_edge.cli import _registry

    monkeypatch.setattr(_registry, "names", lambda kind: ["minicharts"] if kind in ("recipes", "tasks") else [])
    assert exit_code(["show", "minicharts"]) == 0
    assert capsys.readouterr().err == "(this is from recipes; --kind tasks shows the other 'minicharts')\n"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["show", "minichart"], "nothing is called 'minichart' (did you mean 'minicharts'?)"),
        (["show", "minicharts", "--kind", "targets"], "use --kind recipes"),
        (["show", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["copy", "minichart", "a.yaml"], "did you mean 'minicharts'?"),
        (["copy", "minicharts", "a.txt"], "write a.yaml"),
        (["check", "nowhere.yaml"], "no file 'nowhere.yaml'"),
    ],
)
def test_a_mistake_is_one_line(capsys, argv: list[str], text: str) -> None:
    assert exit_code(argv) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_strangers_file_does_not_control_the_terminal(capsys, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text('name: x\n"a\\e[2J\\u202eb": 1\ntitle: "\\x9b31m"\n')
    assert exit_code(["check", str(path)]) == 1
    said = capsys.readouterr().err
    assert "unknown key 'a\\u001b[2J\\u202eb'" in said
    assert all(one.isprintable() or one == "\n" for one in said)
    path.write_text("title: \x1b[2J\x9b31m\n")
    assert exit_code(["show", str(path), "--kind", "recipes"]) == 0
    assert capsys.readouterr().out == "title: \\u001b[2J\\u009b31m\n"


def test_copy_then_edit_then_check(capsys) -> None:
    assert exit_code(["copy", "minicharts", "new/My Charts.yaml"]) == 0
    path = Path("new/My Charts.yaml")
    original = library.find("recipes", "minicharts").read_text()
    assert path.read_text() == original.replace("name: minicharts", "name: my-charts", 1)
    assert exit_code(["copy", "minicharts", str(path)]) == 1
    assert exit_code(["copy", "minicharts", str(path), "--force"]) == 0
    capsys.readouterr()
    assert exit_code(["check", str(path), "minicharts"]) == 0
    assert capsys.readouterr().out == f"{path}: ok\nminicharts: ok\n"


def test_check_says_every_mistake(capsys) -> None:
    assert exit_code(["copy", "minicharts", "a.yaml"]) == 0
    text = Path("a.yaml").read_text().replace("rank: 32", "rnak: 32").replace("votes: 1", "votes: lots")
    Path("a.yaml").write_text(text)
    capsys.readouterr()
    assert exit_code(["check", "a.yaml", "minicharts"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "recipe 'a': annotate.votes is 'lots': must be a whole number from 0 to 32",
        "recipe 'a': unknown key 'rnak' in level (did you mean 'rank'?)",
    ]
    assert captured.out == "minicharts: ok\n"
    assert exit_code(["check", "a.yaml", "--json"]) == 1
    found = one_document(capsys)
    assert (found["ok"], len(found["problems"]["a.yaml"])) == (False, 2)


def test_check_knows_the_tasks(capsys) -> None:
    assert exit_code(["check", "minicharts", "--set", "task=minichart"]) == 1
    assert capsys.readouterr().err == "recipe 'minicharts': no task 'minichart': did you mean 'minicharts'?\n"
    assert exit_code(["check", *library.names("tasks"), "--json"]) == 0


def test_doctor_knows_this_machine(capsys) -> None:
    assert exit_code(["doctor", "--json"]) == 0
    found = one_document(capsys)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] > found["memory_available_bytes"] > 0
    assert (found["gpu"]["name"] is None) == (found["gpu"]["reason"] is not None)
    for extra, line in found["missing"].items():
        assert line == f"pip install 'mpa-edge[{extra}]'"
    assert exit_code(["doctor"]) == 0
    assert "cores" in capsys.readouterr().out


def test_constraints_pin_every_package_that_a_checkout_needs() -> None:
    import tomllib

    project = tomllib.loads((library.root() / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["align"], *extras["dev"]]
    known = pins((library.root() / "constraints.txt").read_text())
    names = {item.split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-") for item in wanted}
    assert names - set(known) == set()


@pytest.mark.parametrize("kind", ["targets", "schemes"])
def test_every_target_and_scheme_is_valid_and_shown_with_its_defaults(capsys, kind: library.Kind) -> None:
    names = library.names(kind)
    assert names
    assert exit_code(["check", *names, "--json"]) == 0, capsys.readouterr()
    assert one_document(capsys) == {"ok": True, "problems": {name: [] for name in names}}
    load = library.load_target if kind == "targets" else library.load_scheme
    for name in names:
        assert load(name).name == name
        assert load(name).title
        assert exit_code(["show", name, "--kind", kind, "--json"]) == 0
        assert one_document(capsys) == load(name).model_dump(mode="json")


def test_every_file_says_what_it_is_and_its_command() -> None:
    for name in library.names("targets"):
        first = library.find("targets", name).read_text().splitlines()[:2]
        assert first[0] == f"# mpa-edge export runs/minicharts --target {name}"
        assert first[1].startswith("# ")


@pytest.mark.parametrize(("name", "key"), [("cpu", "runtimes"), ("onnx-int8", "tolerance")])
def test_a_copy_of_a_target_or_a_scheme_is_known_by_its_keys(capsys, name: str, key: str) -> None:
    assert exit_code(["copy", name, "mine.yaml"]) == 0
    assert exit_code(["check", "mine.yaml"]) == 0
    capsys.readouterr()
    assert exit_code(["show", "mine.yaml", "--json"]) == 0
    found = one_document(capsys)
    assert (found["name"], key in found) == ("mine", True)
    Path("mine.yaml").write_text(Path("mine.yaml").read_text() + "taks: x\n")
    assert exit_code(["check", "mine.yaml"]) == 1
    assert "unknown key 'taks'" in capsys.readouterr().err


def test_a_target_of_what_is_not_there_is_found_out(capsys) -> None:
    """Every mistake at once: an unknown scheme, foreign components, a negative control, no runtime for a format."""
    text = library.find("targets", "cpu").read_text().replace("name: cpu", "name: mine")
    head, _, rest = text.partition("schemes:\n")
    tail = rest[rest.index("image:") :]
    choices = (
        "  - {name: onnx-int9, components: {vision: int8, embed: int8, decoder: int8}}\n"
        "  - {name: onnx-int8, components: {vision: q4_0, embed: int8, decoder: int8}}\n"
        "  - {name: gguf-q2_k, components: {mmproj: f16, language: q2_k}}\n"
    )
    Path("mine.yaml").write_text(
        head.replace("[onnxruntime, llama.cpp]", "[onnxruntime]") + "schemes:\n" + choices + tail
    )
    assert exit_code(["check", "mine.yaml"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "target 'mine': no scheme 'onnx-int9' (did you mean 'onnx-int8'?)"
    assert "scheme 'onnx-int8': components.vision is q4_0" in lines[1]
    assert "scheme 'gguf-q2_k' is a negative control" in lines[2]
    assert "scheme 'gguf-q2_k' needs llama.cpp" in lines[3]


def test_a_value_without_a_source_is_found_out(capsys) -> None:
    text = library.find("targets", "cpu").read_text()
    Path("mine.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("  budgets: ")))
    assert exit_code(["check", "mine.yaml"]) == 1
    assert "sources.budgets has no source" in capsys.readouterr().err
