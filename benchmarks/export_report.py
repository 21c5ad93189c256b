"""The export half of docs/results.md and of the README, from docs/export.json. Called by report.py."""

from __future__ import annotations

from typing import Any

from tables import percent, points, table

MB = 1e6
BUSY = " that had other work as well"


def size_mb(export: dict[str, Any]) -> float:
    """All weights of one export."""
    return sum(file["bytes"] for file in export["files"].values()) / MB


def named_components(export: dict[str, Any]) -> str:
    """`vision int8, decoder q4`."""
    return ", ".join(f"{name} {precision}" for name, precision in export["components"].items())


def accuracy_table(result: dict[str, Any]) -> str:
    """One row a scheme: what is left of the gain."""
    heading = ["Scheme", "Components", "MB", "Accuracy", "against aligned (points)", "Gain kept", "The gain"]
    rows = []
    for export in result["exports"]:
        figures = export["accuracy"]
        kept = "" if export["retained_gain"] is None else percent(export["retained_gain"])
        rows.append(
            [
                export["scheme"] + (" (negative control)" if export["control"] else ""),
                named_components(export),
                f"{size_mb(export):.2f}",
                percent(figures["artifact"]),
                points(figures["artifact"] - figures["aligned"]),
                kept,
                export["verdict"],
            ]
        )
    return table(heading, rows)


def shape_table(result: dict[str, Any]) -> str:
    """MB of each component of each scheme."""
    components = list(dict.fromkeys(name for export in result["exports"] for name in export["files"]))
    rows = [
        [
            export["scheme"],
            *(f"{export['files'][c]['bytes'] / MB:,.0f}" if c in export["files"] else "" for c in components),
            f"{size_mb(export):,.0f}",
            percent(size_mb(export) * MB / result["fp32_bytes"]),
            f"{export['seconds']:.0f}",
        ]
        for export in result["exports"]
    ]
    return table(["Scheme", *(f"{name}, MB" for name in components), "All, MB", "of fp32", "Seconds"], rows)


def loops_table(result: dict[str, Any]) -> str:
    """Seconds of each arm, and what our VLM takes over the bare loop."""
    rows = []
    for name, found in result["exports"].items():
        for arm, seconds in found["seconds"].items():
            over = {part: f"{value:.3f}" for part, value in found["over_bare"].items()} if arm == "vlm" else {}
            together = seconds.get("vision_and_prefill_s")
            rows.append(
                [
                    f"{name}: {arm}",
                    f"{seconds['vision_s']:.2f}" if together is None else "",
                    f"{seconds['prefill_s']:.2f}" if together is None else f"{together:.2f} with vision",
                    f"{found['decode_tokens_s'][arm]:.0f}",
                    over.get("prefill_s", ""),
                    over.get("decode_s", ""),
                    over.get("whole", ""),
                ]
            )
    heading = [
        "Export: who runs it",
        "Vision, s a tile",
        "Prefill, s",
        "Decode, tok/s",
        "Prefill over bare",
        "Decode over bare",
        "Whole over bare",
    ]
    return table(heading, rows)


def hybrid_table(result: dict[str, Any]) -> str:
    """Whole answers of the three runtimes."""
    rows = []
    for case, found in result["cases"].items():
        for arm, seconds in found["seconds"].items():
            gain = found["hybrid_is_faster_by"].get(arm)
            parts = (f"{seconds[part]:.2f}" for part in ("vision_s", "prefill_s", "decode_s", "total_s"))
            rows.append([f"{case}: {arm}", *parts, f"{gain:.2f}" if gain else ""])
    return table(["Case: runtime", "Vision, s", "Prefill, s", "Decode, s", "Whole, s", "Hybrid is faster by"], rows)


def runtime_parts(result: dict[str, Any]) -> list[str]:
    """Sections on speed."""
    if not result:
        return []
    loops, hybrid = result["loops"], result["hybrid"]
    return [
        "## Speed on SmolVLM-256M shapes: one thread\n",
        (
            f"`{loops['command']}`: one tile, {loops['tokens']} tokens, medians of {loops['rounds']} rounds, all in "
            "turn. *bare* is the least that one can write over the same sessions; a ratio of 1.02 is 2 % more.\n"
        ),
        loops_table(loops),
        "## Speed on SmolVLM-256M shapes: hybrid, two threads\n",
        f"`{hybrid['command']}`: whole answers, medians of {hybrid['rounds']} rounds.\n",
        hybrid_table(hybrid),
    ]


def export_parts(result: dict[str, Any]) -> list[str]:
    """Sections of docs/results.md."""
    parts = []
    if accuracy := result.get("accuracy"):
        first = accuracy["exports"][0]["accuracy"]
        parts += [
            "## What an export keeps of the gain\n",
            (
                f"`{accuracy['command']}`: {first['n']:,} unseen questions, base {percent(first['base'])}, aligned "
                f"{percent(first['aligned'])} in full precision. *holds*: more than half of the gain is left, with 95 "
                "% confidence; *lost*: less than half.\n"
            ),
            accuracy_table(accuracy),
        ]
    for name in ("smolvlm-256m", "smolvlm-500m"):
        if shape := result.get(name):
            parts += [
                f"## Sizes of real configurations: {name}\n",
                (
                    f"`{shape['command']}`: random weights: answers mean nothing, sizes and seconds do. All six "
                    f"schemes, verification included, in {shape['wall_s']:.0f} s on {shape['machine']['cores']} cores"
                    f"{BUSY if shape.get('busy') else ''}; "
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
