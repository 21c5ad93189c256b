"""Tables of docs/scale.md from docs/scale.json (measured) and scale_plan.py (on paper).

    python benchmarks/scale_report.py --add run-1000000.json --add compare.json

--add takes what `scale.py --details FILE` wrote into docs/scale.json; one of the same kind and size is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import scale_plan
from report import marked
from tables import percent, table

DOCS = Path(__file__).parents[1] / "docs"
MEGA, GIGA, HOUR_S = 1e6, 1e9, 3600.0


def added(stored: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The document with one measurement more."""
    if "overhead" in new:
        return stored | {"compare": new}
    if "growth_bytes" in new:
        return stored | {"flat": new}
    kept = [one for one in stored.get("runs", []) if _kind(one) != _kind(new)]
    return stored | {"runs": sorted([*kept, new], key=_kind)}


def _kind(run: dict[str, Any]) -> tuple[str, int]:
    return run["size"]["engine"], run["images"]


def runs_table(runs: list[dict[str, Any]]) -> str:
    """One row a run: what --json prints."""
    heading = [
        "Engine",
        "Pictures",
        "Rows",
        "Different ids",
        "Rows a second",
        "Driver, MB",
        "Going on after, s",
        "Rows redone",
    ]
    rows = [
        [
            f"{run['size']['engine']}, {run['size']['actors']} actors" if run["size"]["engine"] == "ray" else "local",
            f"{run['images']:,}",
            f"{run['rows']:,}",
            f"{run['unique_ids']:,}",
            f"{run['rows_per_s']:,.0f}",
            f"{run['driver_peak_rss_bytes'] / MEGA:,.0f}",
            f"{run['resume_s']:.1f}",
            f"{run['rows_redone']:,}",
        ]
        for run in runs
    ]
    commands = "\n".join(f"- `{run['command']}`" for run in runs)
    return f"{table(heading, rows)}\n{line_of(runs)}\nCommands ({_machine(runs[0])}):\n\n{commands}\n" if runs else ""


def line_of(runs: list[dict[str, Any]]) -> str:
    """Whether time grows as the number of pictures does: the same between neighbours, start-up taken off."""
    said = []
    for engine in sorted({run["size"]["engine"] for run in runs}):
        ordered = [run for run in runs if run["size"]["engine"] == engine]
        for few, many in pairwise(ordered):
            more_s = walls(many) - walls(few)
            each_ms = 1000 * more_s / (many["images"] - few["images"])
            said.append(f"{engine}, {few['images']:,} to {many['images']:,}: {each_ms:.2f} ms a picture more")
    return f"What a further picture took: {'; '.join(said)}.\n" if said else ""


def walls(run: dict[str, Any]) -> float:
    """Seconds of both attempts."""
    return float(run["first"]["wall_s"] + run["second"]["wall_s"])


def _machine(run: dict[str, Any]) -> str:
    return f"{run['machine']['cores']} cores, {run['machine']['cpu']}"


def flat_table(flat: dict[str, Any]) -> str:
    """Two sizes on the local engine, files of their own."""
    rows = [
        [
            f"{one['pictures']:,}",
            f"{one['peak_rss_bytes'] / MEGA:,.0f}",
            f"{one['run_s']:,.0f}",
            f"{one['resume_s']:.2f}",
        ]
        for one in (flat["small"], flat["large"])
    ]
    return (
        table(["Pictures", "Peak memory, MB", "Whole run, s", "Going on after, s"], rows) + f"\n`{flat['command']}`\n"
    )


def compare_table(compare: dict[str, Any]) -> str:
    """The Ray engine against the local one, one worker each."""
    rows = [[engine, f"{compare[f'{engine}_work_s']:.1f}"] for engine in ("local", "ray")]
    return (
        table(["Engine, one worker", "First to last batch of both stages, s"], rows)
        + f"\nOverhead {percent(compare['overhead'])} on {compare['images']:,} pictures, best of {compare['rounds']} "
        f"in turns; Ray's own start took {compare['ray_start_s']:.1f} s more. `{compare['command']}`\n"
    )


def hours_table(plan: dict[str, Any]) -> str:
    """Hours of each stage, and what it costs."""
    heading = ["GPUs", *plan["one_gpu_s"], "together, h", "USD", "A shard of 1,000 takes, s"]
    rows = [
        [
            str(row["gpus"]),
            *(f"{row['stage_s'][name] / HOUR_S:,.2f}" for name in plan["one_gpu_s"]),
            f"{row['hours']:,.1f}",
            f"{row['usd']:,.0f}",
            f"{row['shard_s']:.0f}",
        ]
        for row in plan["rows"]
        if row["shard_size"] == 1000
    ]
    price = plan["price"]
    return (
        table(heading, rows)
        + f"\n`{plan['plan']}`, {price['usd_per_hour']} USD an hour and GPU ({price['offer']}, {price['date']}); "
        f"`{plan['command']}`. With the recipe's own `level.holdout` and `level.eval_steps`, level alone would take "
        f"{plan['level_with_defaults_s'] / HOUR_S:,.0f} hours of one GPU.\n"
    )


def loads_table(plan: dict[str, Any]) -> str:
    """How full each shared thing is; above 100 % it is what the GPUs wait for."""
    columns = (f"{row['gpus']} GPUs, shards of {row['shard_size']:,}" for row in plan["rows"])
    heading = ["Share of what it can carry", *columns, "What is done about it"]
    shares = [{load["what"]: load for load in row["loads"]} for row in plan["rows"]]
    rows = [
        [what, *(f"{100 * row[what]['share']:,.0f} %" for row in shares), load["answer"]]
        for what, load in shares[-1].items()
    ]
    return table(heading, rows)


def storage_table(plan: dict[str, Any]) -> str:
    """Bytes and files."""
    heading = [
        "Shard size",
        "Files of rows",
        "Rows, GB",
        "Checkpoints and model, GB",
        "Pictures, GB",
        "USD a month",
        "USD for writing",
    ]
    rows = [
        [
            f"{int(size):,}",
            f"{one['files']:,.0f}",
            f"{one['rows_bytes'] / GIGA:,.1f}",
            f"{one['model_bytes'] / GIGA:,.1f}",
            f"{one['pictures_bytes'] / GIGA:,.0f}",
            f"{one['usd_per_month']:,.0f}",
            f"{one['puts_usd']:.2f}",
        ]
        for size, one in plan["storage"].items()
    ]
    return table(heading, rows)


def servers_table(plan: dict[str, Any]) -> str:
    """Teacher servers on the same GPUs, asked by one process."""
    heading = [
        "GPUs with servers",
        "annotate, h",
        "Requests a second",
        "Processes to ask them",
        "25 Gbit/s link, PNG",
        "the same, JPEG",
    ]
    rows = [
        [
            gpus,
            f"{one['annotate_s'] / HOUR_S:,.2f}",
            f"{one['requests_per_s']:,.0f}",
            f"{one['askers']:,.0f}",
            f"{100 * one['link_share']:,.0f} %",
            f"{100 * one['link_share_jpeg']:,.0f} %",
        ]
        for gpus, one in plan["servers"].items()
    ]
    return table(heading, rows)


def assumed_table(plan: dict[str, Any]) -> str:
    """What the tables on paper rest on, beside the plan's own assumptions."""
    rows = [[f"`{name}`", f"{one['value']:.4g}", one["where"]] for name, one in plan["assumed"].items()]
    return table(["Assumed", "Value", "Where it is from"], rows)


def blocks(stored: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(marker, table) of the page."""
    missing = "Not measured yet.\n"
    yield "runs", runs_table(stored["runs"]) if "runs" in stored else missing
    yield "flat", flat_table(stored["flat"]) if "flat" in stored else missing
    yield "compare", compare_table(stored["compare"]) if "compare" in stored else missing
    for name, make in {
        "hours": hours_table,
        "loads": loads_table,
        "storage": storage_table,
        "servers": servers_table,
        "assumed": assumed_table,
    }.items():
        yield name, make(plan)


@click.command()
@click.option("--add", "new", multiple=True, type=click.Path(path_type=Path, exists=True), help="From --details.")
def main(new: tuple[Path, ...]) -> None:
    """Rewrite the tables of docs/scale.md."""
    path, page = DOCS / "scale.json", DOCS / "scale.md"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for one in new:
        stored = added(stored, json.loads(one.read_text()))
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for name, block in blocks(stored, scale_plan.figures()):
        text = marked(text, name, block)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
