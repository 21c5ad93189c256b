from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mpa_edge import assets
from mpa_edge.cli.doctor import pins
from mpa_edge.cli.main import exit_code


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
    assert capsys.readouterr().out == assets.find("recipes", "minicharts").read_text()
    assert exit_code(["show", "minicharts", "--kind", "recipes", "--json", "--set", "level.rank=3"]) == 0
    assert one_document(capsys) == assets.load_recipe("minicharts", ["level.rank=3"]).model_dump(mode="json")


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


def test_copy_then_edit_then_check(capsys) -> None:
    assert exit_code(["copy", "minicharts", "new/My Charts.yaml"]) == 0
    path = Path("new/My Charts.yaml")
    original = assets.find("recipes", "minicharts").read_text()
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


def test_check_knows_the_tasks(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpa_edge.cli import _registry

    monkeypatch.setattr(_registry, "names", lambda kind: ["chartqa"])
    assert exit_code(["check", "minicharts"]) == 1
    assert capsys.readouterr().err == "recipe 'minicharts': no task 'minicharts' (known: chartqa)\n"


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

    project = tomllib.loads((assets.root() / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["align"], *extras["dev"]]
    known = pins((assets.root() / "constraints.txt").read_text())
    names = {item.split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-") for item in wanted}
    assert names - set(known) == set()
