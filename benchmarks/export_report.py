"""The export half of docs/results.md and of the README, from docs/export.json. Called by report.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables import percent, points, table

MB = 1e6


def size_mb(export: dict[str, Any]) -> float:
    """All weights of one export."""
    return sum(file["bytes"] for file in export["files"].values()) / MB


def named_components(export: dict[str, Any]) -> str:
    """`vision int8, decoder q4`."""
    return ", ".join(f"{name} {precision}" for name, precision in export["components"].items())


def accuracy_table(result: dict[str, Any]) -> str:
    """One row a scheme: what is left of the gain."""
    heading = ["Scheme", "Components", "MB", "Accuracy", "against aligned (points)", "Gain kept", "Seconds"]
    rows = []
    for export in result["exports"]:
        figures = export["accuracy"]
        kept = "" if export["retained_gain"] is None else percent(export["retained_gain"])
        rows.append([
            export["scheme"] + (" (negative control)" if export["control"] else ""), named_components(export),
            f"{size_mb(export):.2f}", percent(figures["artifact"]), points(figures["artifact"] - figures["aligned"]),
            kept, f"{export['seconds']:.0f}",
        ])  # fmt: skip
    return table(heading, rows)


def shape_table(result: dict[str, Any]) -> str:
    """MB of each component of each scheme."""
    components = list(dict.fromkeys(name for export in result["exports"] for name in export["files"]))
    rows = [
        [
            export["scheme"],
            *(f"{export['files'][c]['bytes'] / MB:,.0f}" if c in export["files"] else "" for c in components),
            f"{size_mb(export):,.0f}", percent(size_mb(export) * MB / result["fp32_bytes"]), f"{export['seconds']:.0f}",
        ]
        for export in result["exports"]
    ]  # fmt: skip
    return table(["Scheme", *(f"{name}, MB" for name in components), "All, MB", "of fp32", "Seconds"], rows)


def runtime_table(rows: Sequence[dict[str, Any]]) -> str:
    """Each measured quantity and its ratio to what it is held against."""
    heading = ["What", "Runtime", "Median", "Held against", "Ratio"]
    return table(heading, [[r["what"], r["runtime"], r["median"], r["against"], r["ratio"]] for r in rows])


def export_parts(result: dict[str, Any]) -> list[str]:
    """Sections of docs/results.md."""
    parts = []
    if accuracy := result.get("accuracy"):
        first = accuracy["exports"][0]["accuracy"]
        parts += [
            "## What an export keeps of the gain\n",
            (
                f"`{accuracy['command']}`: {first['n']:,} unseen questions, base {percent(first['base'])}, aligned "
                f"{percent(first['aligned'])} in full precision. Seconds are of the export with its verification.\n"
            ),
            accuracy_table(accuracy),
        ]
    for name in ("smolvlm-256m", "smolvlm-500m"):
        if shape := result.get(name):
            parts += [
                f"## Sizes of real configurations: {name}\n",
                (
                    f"`{shape['command']}`: random weights: answers mean nothing, sizes and seconds do. All six "
                    f"schemes, verification included, in {shape['wall_s']:.0f} s on {shape['machine']['cores']} cores; "
                    f"largest process {shape['peak_bytes'] / 1e9:.2f} GB, {shape['peak_over_fp32']:.2f} times the "
                    "fp32 weights.\n"
                ),
                shape_table(shape),
            ]
    return parts


def readme_export(result: dict[str, Any]) -> str:
    """The export table of the README."""
    accuracy = result["accuracy"]
    wanted = ("onnx-fp16", "onnx-int8", "onnx-q4", "gguf-q8_0", "gguf-q4_0", "hybrid-int8-q4_0")
    rows = [
        [e["scheme"], f"{size_mb(e):.1f}", percent(e["accuracy"]["artifact"]), percent(e["retained_gain"] or 0.0)]
        for name in wanted
        for e in accuracy["exports"]
        if e["scheme"] == name
    ]
    first = accuracy["exports"][0]["accuracy"]
    return (
        table(["Built-in student exported as", "MB", "Accuracy", "Gain kept"], rows)
        + f"\n`{accuracy['command']}` — before {percent(first['base'])}, aligned in full precision "
        + f"{percent(first['aligned'])}; every scheme: [docs/results.md](docs/results.md)\n"
    )
