"""A data set by its id: real `huggingface_hub` against a hub on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.questions import QuestionSet
from mpa_edge.questions.published import read_benchmark
from mpa_edge.tasks import get_benchmark
from tests.questions import official
from tests.questions.data_hub import hub


def read(data: str, limit: int | None = None) -> QuestionSet:
    return read_benchmark(get_benchmark("textvqa"), data, None, limit)


def test_only_the_files_of_the_split_are_fetched_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    folder = official.textvqa_hub(tmp_path / "hub")
    (folder / "data" / "train-00000-of-00020.parquet").write_bytes(b"8 GB that nobody asked for")
    (folder / "README.md").write_text("card")
    with hub(folder) as (endpoint, asked):
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert len(read("lmms-lab/textvqa").samples) == 12
        fetched = {path.rpartition("/")[2] for path in asked if path.startswith("GET /datasets/")}
        assert fetched == {"validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"}
        with pytest.raises(MpaError, match=r"no folder 'lmms-lab/nothing' here, and no hub that has .* \(Repository"):
            read("lmms-lab/nothing")
    # the hub has gone: what was fetched before is there
    assert len(read("lmms-lab/textvqa", 3).samples) == 3
