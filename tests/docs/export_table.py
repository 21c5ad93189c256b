"""The tables of docs/export.md and docs/targets.md, made from the YAML files: `python -m tests.docs.export_table`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mpa_edge.config import library
from mpa_edge.config.scheme import Scheme
from mpa_edge.config.target import Target
from mpa_edge.exporters.sizes import forecast_bytes, fp32_bytes
from mpa_edge.exporters.source import Source, within_budget
from mpa_edge.planning.budgets import limits, work_of
from mpa_edge.planning.model_specs import ModelSpec, model_spec
from mpa_edge.vlm import WEIGHTS
from tests.docs.markdown import ROOT
from tests.docs.recipe_table import section

EXPORT, TARGETS = ROOT / "docs" / "export.md", ROOT / "docs" / "targets.md"


def put(text: str, name: str, table: str) -> str:
    """The document with a table between its two marks."""
    block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", text)


def schemes() -> str:
    """Name, what it is, bits of each component, and the size for the built-in student."""
    source = Source("student", WEIGHTS / "student", Path("never-written"))
    rows = ["| Scheme | What it is | Bits | Size |", "|---|---|---|---:|"]
    for scheme in map(library.load_scheme, library.names("schemes")):
        sizes = forecast_bytes(source, scheme)
        share = sum(sizes.values()) / sum(fp32_bytes(source, part) for part in sizes)
        bits = ", ".join(f"{part} {precision}" for part, precision in scheme.components.items())
        control = " (control)" if scheme.control and "control" not in scheme.title else ""
        rows.append(f"| `{scheme.name}` | {scheme.title}{control} | {bits} | {share:.0%} |")
    return "\n".join(rows) + "\n"


def targets() -> str:
    """What a user compares before choosing one."""
    rows = ["| Target | What it is | Schemes, best first | Tiles | Context |", "|---|---|---|---:|---:|"]
    found = [library.load_target(name) for name in library.names("targets")]
    for target in sorted(found, key=lambda one: (one.kind != "class", one.name)):
        chosen = ", ".join(f"`{choice.name}`" for choice in target.schemes)
        tiles, context = target.image.max_tiles, target.context_tokens
        rows.append(f"| `{target.name}` | {target.title} | {chosen} | {tiles} | {context:,} |")
    return "\n".join(rows) + "\n"


def budgets() -> str:
    """What each target asks of two models in 8 bits, about an image of 1024 x 768 pixels."""
    rows = ["| Target | Model | Memory | TTFT | Decoding | Why this speed |", "|---|---|---:|---:|---:|---|"]
    for target in sorted(map(library.load_target, library.names("targets")), key=lambda one: one.name):
        for model in ("HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen3-VL-2B-Instruct"):
            spec = model_spec(model)
            spec = replace(spec, image={**spec.image, **image_budget(spec, target)})
            made = limits(target, work_of(spec, [(1024, 768)], target, {}, target.context_tokens))
            memory, ttft, speed = (made[name].value for name in ("memory_bytes", "ttft_s", "tokens_per_s"))
            figures = f"{memory / 1e9:.1f} GB | {ttft:.1f} s | {speed:.3g} tok/s | {made['tokens_per_s'].why}"
            rows.append(f"| `{target.name}` | {model.partition('/')[2]} | {figures} |")
    return "\n".join(rows) + "\n"


def image_budget(spec: ModelSpec, target: Target) -> dict[str, Any]:
    """The values of an image processor that a target's image budget changes."""
    values = {"merge_size": 2} | dict(spec.image) if spec.config["model_type"] == "qwen3_vl" else dict(spec.image)
    return within_budget(values, target.image)


def keys(model: type[BaseModel]) -> str:
    """Every key of a document, one level deeper than the heading above it."""
    return section(model, "").rstrip("\n") + "\n"


def filled(name: str, text: str) -> str:
    """A document with the tables of today's files."""
    if name == "export.md":
        return put(put(text, "schemes", schemes()), "keys", keys(Scheme).replace("### ", "#### "))
    return put(put(put(text, "targets", targets()), "budgets", budgets()), "keys", keys(Target))


if __name__ == "__main__":
    for path in (EXPORT, TARGETS):
        path.write_text(filled(path.name, path.read_text(encoding="utf-8")), encoding="utf-8")
