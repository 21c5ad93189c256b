"""The export parity matrix: every family in every scheme, and the tables of docs/parity.md made from what was measured.

`MPA_EDGE_WRITE_DOCS=1 pytest tests/exporters/test_matrix.py` measures and writes; `python -m tests.exporters.matrix`
writes the tables again from docs/parity.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.config import library
from mpa_edge.config.library import load_recipe
from mpa_edge.config.scheme import Scheme
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.exporters import build
from mpa_edge.exporters.pipeline import check_possible
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify import gate
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.runs.manifest import EXPORTS, FOLDERS, RENDERED
from mpa_edge.runs.parquet import write_part
from mpa_edge.types import ParityRecord
from tests.docs.markdown import ROOT
from tests.families import zoo
from tests.vlm.exported import checkpoint

MODELS = (*zoo.MODEL_TYPES, "llava:clip")
TITLES = {"llava": "llava (SigLIP)", "llava:clip": "llava (CLIP)"}
RECORD, DOCUMENT = ROOT / "docs" / "parity.json", ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- matrix:begin -->\n", "<!-- matrix:end -->\n"
CONTEXT_TOKENS = 1024
Cell = dict[str, Any]
REFERENCES: dict[Path, gate.References] = {}


def run_of(model: str, home: Path) -> Source:
    """A checkpoint of the zoo as if it came from a run: with images and confirmed questions to calibrate on."""
    run = home / model.replace(":", "-")
    if not run.is_dir():
        (run / RENDERED).mkdir(parents=True)
        (run / FOLDERS["identify"]).mkdir()
        write_part(run / FOLDERS["identify"], 0, [_record(i, run / RENDERED) for i in range(8)], [], ParityRecord)
    folder = checkpoint(model)
    recipe = load_recipe("minicharts").model_copy(update={"student": str(folder)})
    return Source(run.name, folder, run / EXPORTS, run=run, recipe=recipe)


def _record(i: int, images: Path) -> ParityRecord:
    drawn(160 + 16 * i, 200 - 16 * i, seed=10 + i).save(images / f"{i}.png")
    return ParityRecord(
        id=f"q{i}",
        image_id=f"{i:016}",
        image=f"{i}.png",
        question=f"How many shapes are there, {i} or more?",
        answer="red",
        teacher_answer="red",
        student_answer="blue",
        verdict="gap",
    )


def measure(source: Source, scheme: Scheme) -> Cell:
    """Export and verify one cell."""
    folder, parts = source.exports / scheme.name, source.exports / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_possible(source, scheme)
    except MpaError as error:
        return {"result": "refused", "reason": str(error)}
    build.build(build.BuildContext(source, folder, parts, None, 1), scheme)
    write_layout(source, scheme, folder, None, CONTEXT_TOKENS, 1)
    try:
        parity, details = gate.verify(source, folder, scheme, None, 1, references(source))
    except VerificationError as error:
        return {"result": "failed", "reason": str(error)}
    figures = {**parity.model_dump(), "relative_logit_diff": details.relative_logit_diff}
    return {"result": "equal", **{name: _short(value) for name, value in figures.items()}}


def references(source: Source) -> gate.References:
    """What every scheme of a model is compared with, traced once."""
    if source.checkpoint not in REFERENCES:
        REFERENCES[source.checkpoint] = gate.trace_references(source, None, 1)
    return REFERENCES[source.checkpoint]


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most steps in this process: starting one for each costs more than a tiny model does.

    llama.cpp's quantizer keeps its own: it leaves a log handler behind that lives no longer than its function.
    """

    def here(function: Any, *arguments: Any, **_: Any) -> tuple[Any, int]:
        return function(*arguments), 0

    for module in (build, gate):
        monkeypatch.setattr(module, "run_isolated", here)


# --- the record and the document --------------------------------------------------------------------------------------


def recorded() -> dict[str, dict[str, Cell]]:
    """Model -> scheme -> cell, as it was measured last."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def keep(model: str, scheme: str, cell: Cell) -> None:
    """Write a cell down where the run was asked to."""
    if os.environ.get("MPA_EDGE_WRITE_DOCS") != "1":
        return
    table = recorded()
    table.setdefault(model, {})[scheme] = cell
    text = json.dumps({key: table[key] for key in MODELS if key in table}, indent=1, sort_keys=True) + "\n"
    RECORD.write_text(text, encoding="utf-8")
    write_document()


def shown(cell: Cell | None) -> str:
    if cell is None:
        return "?"
    if cell["result"] != "equal":
        return cell["result"]
    return f"{cell['vision_cosine_min']:.4f} / {cell['relative_logit_diff']:.2g}"


def table() -> str:
    """One row a scheme, one column a model; then why a cell was refused."""
    cells, schemes = recorded(), library.names("schemes")
    head = [TITLES.get(model, model) for model in MODELS]
    lines = [f"| Scheme | {' | '.join(head)} |", "|---" * (1 + len(MODELS)) + "|"]
    for scheme in schemes:
        row = [shown(cells.get(model, {}).get(scheme)) for model in MODELS]
        lines.append(f"| `{scheme}` | {' | '.join(row)} |")
    return "\n".join([*lines, "", *_refusals(cells, schemes)]) + "\n"


def _refusals(cells: dict[str, dict[str, Cell]], schemes: list[str]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for model in MODELS:
        for scheme in schemes:
            cell = cells.get(model, {}).get(scheme, {})
            if cell.get("result") == "refused":
                reasons.setdefault(f"{TITLES.get(model, model)}: {cell['reason']}", []).append(f"`{scheme}`")
    if not reasons:
        return ["No cell is refused."]
    return ["Refused, before anything is computed:", "", *(f"- {why} ({', '.join(n)})" for why, n in reasons.items())]


def with_table(text: str) -> str:
    """The document with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def write_document() -> None:
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_document()
    sys.stdout.write(f"{DOCUMENT}\n")
