from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.config import library
from mpa_edge.config.recipe import LevelConfig, Recipe
from mpa_edge.errors import MpaError

MINIMAL = "schema_version: 1\nname: mine\ntask: minicharts\nteacher: nursery:teacher\nstudent: nursery:student\n"
# each level names the one before ten times
BILLION_LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9)).encode()


@pytest.fixture
def recipe(tmp_path: Path):
    """recipe("level: {rank: 3}") -> problems of a minimal recipe with that added."""

    def check(more: str = "", base: str = MINIMAL) -> list[str]:
        path = tmp_path / "x.yaml"
        path.write_text(base + more)
        return library.problems("recipes", str(path))

    return check


def test_a_minimal_recipe_is_enough(recipe) -> None:
    assert recipe() == []


@pytest.mark.parametrize("name", library.names("recipes"))
def test_every_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    assert library.load_recipe(name).name == name
    assert (library.root() / "recipes" / f"{name}.yaml").read_text().startswith("# mpa-edge align ")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("level: {lr: 1.0e-4}", "unknown key 'lr' in level (did you mean 'learning_rate'?)"),
        ("level: {ranks: 1}", "unknown key 'ranks' in level (did you mean 'rank'?)"),
        ("level: {votes: 1}", "unknown key 'votes' in level (did you mean 'annotate.votes'?)"),
        ("levle: {}", "unknown key 'levle' (did you mean 'level'?)"),
        ("images: {render: {zzz: 1}}", "unknown key 'zzz' in images.render (known: n, seed, style)"),
        ("level: {rank: 0}", "level.rank is 0: must be a whole number from 1 to 1024"),
        ("level: {rank: 1.5}", "level.rank is 1.5: must be a whole number from 1 to 1024"),
        ("level: {rank: true}", "level.rank is true: must be a whole number from 1 to 1024"),
        ("level: {rank: null}", "level.rank is null: must be a whole number from 1 to 1024"),
        ("level: {method: lorax}", "level.method is 'lorax': must be one of lora, full"),
        ("level: {targets: [eyes]}", "level.targets.0 is 'eyes': must be a list of language, vision, connector"),
        ("level: {targets: []}", "level.targets is []: must be a list of language, vision, connector"),
        ("level: {dropout: 1}", "level.dropout is 1: must be a number from 0.0 to below 1.0"),
        ("level: {dropout: .nan}", "level.dropout is nan: must be a number from 0.0 to below 1.0"),
        ("level: {learning_rate: .inf}", "level.learning_rate is inf: must be a number above 0.0 to 1.0"),
        ("level: 3", "level is 3: must be a section with keys method, rank"),
        ("threads: 0", "threads is 0: must be a whole number from 1 to 1024 or null"),
        ("device: tpu", "device is 'tpu': must be one of auto, cpu, cuda"),
        ("images: {path: a, render: {}}", "images has both path and render"),
        ("images: {render: {seed: 5}}\nevaluate: {seed: 5}", "the questions must be unseen"),
        ("level: {method: full, dora: true}", "those need method: lora"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(recipe, more: str, expected: str) -> None:
    found = recipe(more)
    assert len(found) == 1
    assert found[0].startswith("recipe 'x': ")
    assert expected in found[0]
    assert "\n" not in found[0]


def test_a_number_in_quotes_is_told_how_to_write_it(recipe) -> None:
    (line,) = recipe('level: {learning_rate: "1e-4"}')
    assert line.endswith("it is a string here: write 1.0e-4 without quotes")
    assert recipe("level: {learning_rate: 1e-4}") == []


def test_every_mistake_is_said(recipe) -> None:
    found = recipe("level: {lr: 1, rank: 0}", base="schema_version: 2\nname: A b\ntask: t\nteacher: x\n")
    assert len(found) == 5
    assert any("key 'student' is missing: add 'student: ...'" in line for line in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: [1,\nb: 2", "line 2, column"),
        (b"a: 1\na: 2\n", 'line 2, column 1: found duplicate key "a"'),
        (b"a: !!python/object:os.system 1", "could not determine a constructor"),
        (b"a: \x00", "not a YAML document"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "the document is null: must be a section with keys schema_version"),
        (b"- 1", "the document is [1]: must be a section"),
        (b"[" * 5000 + b"]" * 5000, "line 1, column 51: nested more than 50 deep"),
        (b"a: " + b"{a: " * 5000, "line 1, column 200: nested more than 50 deep"),
        (b"a: &a [1]\nb: *a\n", "line 2, column 4: *a is a YAML alias: write its value out there"),
        (b"a: &a [*a]\n", "line 1, column 8: *a is a YAML alias"),
        (BILLION_LAUGHS, "is a YAML alias"),
        (b"seed: " + b"9" * 5000, "not a YAML document"),
        (b"seed: 0x" + b"f" * 5000, "not a YAML document"),
        (b'name: "\\ud800"', "not a YAML document"),
        (b"[[1]]: 2", "not a YAML document"),
        (b"seed: !!int ''", "not a YAML document"),
        (b"seed: !!bool x", "not a YAML document"),
        (b"#" * 70_000, "is larger than 64 kB"),
    ],
)
def test_broken_documents_are_one_line(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text)
    (line,) = library.problems("recipes", str(path))
    assert expected in line
    assert "\n" not in line


def test_names_and_paths_are_interchangeable(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(library.find("recipes", "minicharts").read_text())
    assert library.load_recipe(str(path)) == library.load_recipe("minicharts")


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(MpaError, match=r"no recipe 'minichart' \(did you mean 'minicharts'\?\)"):
        library.find("recipes", "minichart")
    with pytest.raises(MpaError, match="no file 'nowhere/x.yaml'"):
        library.find("recipes", "nowhere/x.yaml")
    with pytest.raises(MpaError, match="see mpa-edge list targets"):
        library.find("targets", "zzz")


def test_load_recipe_says_the_first_mistake_and_how_many_more(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL + "seed: -1\nlevel: {rank: 0}\n")
    with pytest.raises(MpaError, match=r"seed is -1: .* \(and 1 more: mpa-edge check .*x.yaml\)"):
        library.load_recipe(str(path))


def test_overrides_are_validated_like_the_file() -> None:
    changed = library.load_recipe(
        "minicharts", ["level.rank=8", "images.render=null", "images.path=x", "level.targets=[vision]"]
    )
    assert (changed.level.rank, changed.images.path, changed.level.targets) == (8, "x", ("vision",))
    assert library.load_recipe("minicharts", ["level.learning_rate=1e-4"]).level.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("level.rank", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("level..rank=3", "write it as key=value"),
        ("level.rank.x=3", "level.rank is a value, not a section"),
        ("level.rank=[3", "line 1, column"),
        ("level.rnak=3", "did you mean 'rank'"),
        ("level.rank=lots", "level.rank is 'lots': must be a whole number from 1 to 1024"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, expected: str) -> None:
    with pytest.raises(MpaError) as error:
        library.load_recipe("minicharts", [override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_do_not_change_their_input() -> None:
    raw = {"level": {"rank": 1}}
    assert library.apply_overrides(raw, ["level.rank=2"]) == {"level": {"rank": 2}}
    assert raw == {"level": {"rank": 1}}


def test_defaults_are_themselves_valid() -> None:
    values = {"schema_version": 1, "name": "a", "task": "t", "teacher": "a", "student": "b"}
    assert Recipe.model_validate(Recipe.model_validate(values).model_dump()).level == LevelConfig()
