"""The tables of docs/nursery.md, made from the code: `python -m tests.docs.nursery_table` writes them."""

from __future__ import annotations

import re

from mpa_edge.nursery import world
from tests.docs.markdown import ROOT

DOCUMENT = ROOT / "docs" / "nursery.md"
SCENES: tuple[world.Scene, ...] = (
    world.Chart(("A", "K", "T"), ("red", "blue", "green"), (7, 42, 18), 0),
    world.Sign("EXIT", 12, "red", True),
    world.Field(((0, "circle", "red"), (2, "square", "red"), (5, "circle", "blue"))),
)


def kinds() -> str:
    """One row a question kind: focus, an example and its answer."""
    rows: dict[str, str] = {}
    for scene in SCENES:
        for qa in world.questions(scene):
            rows.setdefault(
                qa.kind, f"| `{qa.kind}` | {type(scene).__name__.lower()} | {qa.focus} | {qa.question} | {qa.answer} |"
            )
    return "\n".join(["| Kind | Scene | Focus | Example | Answer |", "|---|---|---|---|---|", *rows.values()]) + "\n"


def pair() -> str:
    """Shapes, parameters and plans of the two models."""
    from mpa_edge.nursery import models
    from tools.nursery_training import train

    columns = [_column(models.SHAPES[name], train.PLANS[name], models.build_model(name)) for name in models.SHAPES]
    rows = [f"| {title} | {' | '.join(column[title] for column in columns)} |" for title in columns[0]]
    return "\n".join([f"| | {' | '.join(models.SHAPES)} |", "|---|---:|---:|", *rows]) + "\n"


def _column(shape, plan, model) -> dict[str, str]:
    return {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "vision: width, MLP, layers": f"{shape.vision_width}, {shape.vision_mlp}, {shape.vision_layers}",
        "text: width, MLP, layers": f"{shape.text_width}, {shape.text_mlp}, {shape.text_layers}",
        "steps": f"{plan.total_steps:,}",
        "images per step": f"{plan.batch_size}",
        "images seen": f"{plan.total_steps * plan.batch_size:,}",
        "share of images in the target style": _shares(plan),
        "questions per image, further look-ups a chart": f"{plan.mix.questions}, {plan.mix.lookups}",
        "learns to ask questions": "yes" if plan.mix.asks else "no",
    }


def _shares(plan) -> str:
    """`1%`, and for each later phase `then 60% for 300 steps`."""
    later = (
        f"then {phase.target_share:.0%} for {phase.steps} steps"
        + f" after pruning {phase.prune:.0%}" * bool(phase.prune)
        for phase in plan.after
    )
    return ", ".join([f"{plan.mix.target_share:.0%}", *later])


def filled(text: str) -> str:
    """The document with the tables of today's code."""
    for name, table in (("kinds", kinds()), ("pair", pair())):
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text = re.sub(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
