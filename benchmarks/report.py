"""Write what was measured (docs/{results,ablation,export,runtime,bench}.json) to docs/results.md and the README tables.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from ablation import points_over
from bench_report import bench_parts
from export_report import export_parts, readme_export, runtime_parts
from tables import mean, percent, points, table

ROOT = Path(__file__).parents[1]


def seeds_table(runs: Sequence[dict[str, Any]]) -> str:
    """One row a seed, and the mean."""
    heading = [
        "Seed",
        "Teacher",
        "Student before",
        "Student after",
        "Gain (points)",
        "95 % interval",
        "p (McNemar)",
        "Plain style, before",
        "after",
    ]
    rows = [
        [
            str(run["seed"]),
            *(percent(run["accuracy"][m]) for m in ("teacher", "base", "aligned")),
            points(run["gain"]),
            " to ".join(points(x) for x in run["gain_ci95"]),
            f"{run['p_mcnemar']:.1e}",
            percent(run["plain"]["base"]),
            percent(run["plain"]["aligned"]),
        ]
        for run in runs
    ]
    averages = [mean([run["accuracy"][m] for run in runs]) for m in ("teacher", "base", "aligned")]
    plain = [mean([run["plain"][m] for run in runs]) for m in ("base", "aligned")]
    gain = mean([run["gain"] for run in runs])
    rows.append(["mean", *map(percent, averages), points(gain), "", "", *map(percent, plain)])
    return table(heading, rows)


def kinds_table(runs: Sequence[dict[str, Any]]) -> str:
    """Accuracy by question kind, all seeds together: target style, and plain style before and after."""
    heading = ["Question kind", "n", "Teacher", "Before", "After", "Plain before", "Plain after"]
    rows = []
    for kind in sorted(runs[0]["kinds"]):
        cells = [run["kinds"][kind] for run in runs if kind in run["kinds"]]
        plain = [run["plain"]["kinds"][kind] for run in runs if kind in run["plain"]["kinds"]]
        rows.append(
            [
                kind,
                f"{cells[0]['n']:.0f}",
                *(percent(mean([c[m] for c in cells])) for m in ("teacher", "base", "aligned")),
                *(percent(mean([c[m] for c in plain])) for m in ("base", "aligned")),
            ]
        )
    return table(heading, rows)


def cost_table(runs: Sequence[dict[str, Any]]) -> str:
    """Where the time and the memory go."""
    stages = list(runs[0]["seconds"])
    seconds = [f"{stage} s" for stage in stages]
    heading = ["Seed", "Annotated", "Verified", "Gap", *seconds, "Whole process s", "Overhead", "Peak memory GB"]
    rows = [
        [
            str(run["seed"]),
            str(run["annotated"]),
            str(run["verified"]),
            str(run["gap"]),
            *(f"{run['seconds'][stage]:.0f}" for stage in stages),
            f"{run['wall_s']:.0f}",
            percent(run["overhead"]),
            f"{run['peak_rss_bytes'] / 1e9:.2f}",
        ]
        for run in runs
    ]
    return table(heading, rows)


def ablation_table(result: dict[str, Any]) -> str:
    """One row an arm: means of the seeds, and on each seed the difference to the recipe as it stands."""
    heading = [
        "Arm",
        "Changed",
        "Seeds",
        "Samples",
        "After",
        "Gain (points)",
        "Over the first line (points)",
        "Exported, over the first line",
        "Plain style (points)",
    ]
    reference = result["arms"].get(result["reference"], {"seeds": {}})
    return table(heading, [ablation_row(arm, row, reference) for arm, row in result["arms"].items() if row["seeds"]])


def ablation_row(arm: str, row: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """One arm; the difference is the mean of the seeds with the least and the largest one."""
    seeds = list(row["seeds"].values())
    averages = {key: mean([one[key] for one in seeds]) for key in ("samples", "aligned", "gain", "plain")}
    over = [spread(points_over(row, reference, key)) for key in ("aligned", "exported_aligned")]
    return [
        arm,
        " ".join(f"`{change}`" for change in row["set"]),
        str(len(seeds)),
        f"{averages['samples']:.0f}",
        percent(averages["aligned"]),
        points(averages["gain"]),
        *over,
        points(averages["plain"]),
    ]


def spread(differences: Sequence[float]) -> str:
    """Mean with the least and the largest; nothing where there is nothing to compare."""
    if not differences:
        return ""
    ends = f" ({points(min(differences))} to {points(max(differences))})" if len(differences) > 1 else ""
    return points(mean(differences)) + ends


def readme_block(result: dict[str, Any]) -> str:
    """The one table of the README."""
    runs = result["runs"]
    accuracy = {m: percent(mean([run["accuracy"][m] for run in runs])) for m in ("teacher", "base", "aligned")}
    n, wall_s = runs[0]["accuracy"]["n"], mean([run["wall_s"] for run in runs])
    heading = ["Built-in models, target style", "Teacher (5.8 M)", "Student (2.8 M) before", "after", "Gain (points)"]
    row = [f"{n:,} unseen questions, mean of {len(runs)} seeds", *accuracy.values(), points(result["mean_gain"])]
    return (
        table(heading, [row])
        + f"\n`{result['command']}` — {wall_s:.0f} s a run on {result['machine']['cores']} CPU cores; "
        + "every figure: [docs/results.md](docs/results.md)\n"
    )


def marked(text: str, name: str, block: str) -> str:
    """The text with what stands between two markers replaced."""
    between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.S)
    return between.sub(lambda match: match[1] + block + match[2], text)


def document(result: dict[str, Any], ablation: dict[str, Any], export: dict[str, Any], runtime: dict[str, Any]) -> str:
    """docs/results.md."""
    parts = [
        "# Results\n",
        (
            f"Made by `{result['command']}` and `python benchmarks/report.py` on {result['machine']['cores']} "
            f"cores ({result['machine']['cpu']}). Nothing on this page is typed by hand.\n"
        ),
        "## Gain on 1,000 unseen questions\n",
        (
            "The unlabelled images and the questions are in the target style. The plain style is what the student "
            "mastered before: those two columns show whether it forgot.\n"
        ),
        seeds_table(result["runs"]),
        "## By question kind, mean of the seeds\n",
        kinds_table(result["runs"]),
        "## Cost\n",
        (
            "Overhead is the share of the whole process outside `generate`, the vision tower and the optimiser: "
            "parquet, hashing, images, progress, and loading Python, torch and the models.\n"
        ),
        cost_table(result["runs"]),
    ]
    if ablation:
        parts += [
            "## What to train on\n",
            (
                f"`{ablation['command']}`: each option alone, {ablation['steps']} training steps in bf16 and the same "
                f"questions on every line; the column Seeds says how often. A difference that changes its sign "
                f"from seed to seed is none.\n"
            ),
            ablation_table(ablation),
        ]
    return "\n".join(parts + export_parts(export) + runtime_parts(runtime))


@click.command()
def main() -> None:
    """Rewrite docs/results.md and the marked tables of README.md."""
    result, ablation, export, runtime = (_read(name) for name in ("results", "ablation", "export", "runtime"))
    parts = [document(result, ablation, export, runtime), *bench_parts(_read("bench"))]
    (ROOT / "docs" / "results.md").write_text("\n".join(parts))
    readme = ROOT / "README.md"
    text = marked(readme.read_text(), "results", readme_block(result))
    readme.write_text(marked(text, "export", readme_export(export)) if "accuracy" in export else text)


def _read(name: str) -> dict[str, Any]:
    path = ROOT / "docs" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


if __name__ == "__main__":
    main()
