"""Which licence goes along, and when the card warns."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.exporters.publish.licences import Licence, front_matter, licence_of

APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


def model(folder: Path, card: str | None = None, text: str | None = None) -> str:
    """A folder that passes for a checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "idefics3"}')
    for name, content in (("README.md", card), ("LICENSE", text)):
        if content is not None:
            (folder / name).write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    ("card", "text", "words", "restricted"),
    [
        ("---\nlicense: apache-2.0\n---\n", None, "apache-2.0", None),
        ("---\nlicense: mit\n---\n", "Gemma Terms of Use", "mit", None),
        ("---\nlicense: cc-by-nc-4.0\n---\n", None, "cc-by-nc-4.0", "no commercial use"),
        ("---\nlicense: cc-by-nd-4.0\n---\n", None, "cc-by-nd-4.0", "a quantized model is one"),
        ("---\nlicense: cc-by-sa-4.0\n---\n", None, "cc-by-sa-4.0", "under the same licence"),
        ("---\nlicense: agpl-3.0\n---\n", None, "agpl-3.0", "under the same licence"),
        ("---\nlicense: llama3.2\n---\n", None, "llama3.2", "Meta's terms"),
        ("---\nlicense: gemma\n---\n", None, "gemma", "Google's terms"),
        ("---\nlicense: openrail\n---\n", None, "openrail", "prohibited uses"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", None, "qwen-research", "research only"),
        ("---\nlicense: other\nlicense_name: custom\n---\n", None, "custom", "its terms are its own"),
        ("---\nlicense: [apache-2.0]\n---\n", None, "apache-2.0", None),
        (None, APACHE, "apache-2.0", None),
        (None, "Our own terms. All rights reserved.", "other", "its terms are its own"),
        (None, None, "unknown", "its terms are its own"),
        ("no front matter", None, "unknown", "its terms are its own"),
        ("---\nlicense: [\n---\n", None, "unknown", "its terms are its own"),
    ],
)
def test_the_licence_of_a_folder(
    tmp_path: Path, card: str | None, text: str | None, words: str, restricted: str | None
) -> None:
    found = licence_of(model(tmp_path / "model", card, text))
    assert (found.model, found.title) == ("model", words)
    assert (found.restriction is None) == (restricted is None)
    assert restricted is None or restricted in (found.restriction or "")


def test_somebody_elses_card_cannot_write_into_ours(tmp_path: Path) -> None:
    name = "x`\\n\\n# Free of charge\\n"
    card = f'---\nlicense: other\nlicense_name: "{name}"\nlicense_link: "a\\nb"\n---\n'
    found = licence_of(model(tmp_path / "model", card))
    assert (found.name, found.link) == ("x # Free of charge", "a b")


def test_the_built_in_models_are_free() -> None:
    for name in ("nursery:student", "nursery:teacher"):
        assert licence_of(name) == Licence(name, "apache-2.0")


def test_a_hub_model_without_a_network_is_unknown_and_never_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = licence_of("owner/model")
    assert found == Licence("owner/model", "unknown")
    assert found.restriction


def test_a_folder_that_is_gone_is_unknown() -> None:
    assert licence_of("/nowhere/at/all/model") == Licence("model", "unknown")


def test_front_matter_is_data_and_no_program() -> None:
    assert front_matter("---\nlicense: !!python/object/apply:os.system ['true']\n---\n") == {}
    assert front_matter("---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: *b\n---\n") == {}
