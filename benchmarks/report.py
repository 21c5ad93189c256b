"""Write what was measured (docs/*.json) to docs/results.md and to the tables of README.md and docs/scale.md.

python benchmarks/report.py
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from ablation import ARMS, over_reference
from common import DOCS, ROOT, Document, marked, mean, percent, points, read, table
from label_free import parts as label_free_parts

MODELS = ("teacher", "base", "aligned")
MB = 1e6
# the ablation's options that are no longer there: the commit at which they were measured
REMOVED_AT = "0646151"
# a study that has come to its end: the commit that has its script
AWARE_AT = "ac7ac46"
README_SCHEMES = ("onnx-fp16", "onnx-int8", "onnx-q4", "gguf-q8_0", "gguf-q4_0", "hybrid-int8-q4_0")


# --- alignment --------------------------------------------------------------------------------------------------------


def seeds_table(runs: Sequence[Document]) -> str:
    """One row a seed, and the mean."""
    average = {
        "seed": "mean",
        "accuracy": {model: mean([run["accuracy"][model] for run in runs]) for model in MODELS},
        "plain": {model: mean([run["plain"][model] for run in runs]) for model in ("base", "aligned")},
        "gain": mean([run["gain"] for run in runs]),
    }
    columns = {
        "Seed": lambda run: str(run["seed"]),
        "Teacher": lambda run: percent(run["accuracy"]["teacher"]),
        "Student before": lambda run: percent(run["accuracy"]["base"]),
        "Student after": lambda run: percent(run["accuracy"]["aligned"]),
        "Gain (points)": lambda run: points(run["gain"]),
        "95 % interval": lambda run: " to ".join(points(end) for end in run.get("gain_ci95", ())),
        "p (McNemar)": lambda run: f"{run['p_mcnemar']:.1e}" if "p_mcnemar" in run else "",
        "Plain style, before": lambda run: percent(run["plain"]["base"]),
        "after": lambda run: percent(run["plain"]["aligned"]),
    }
    return table(columns, [*runs, average])


def kinds_table(runs: Sequence[Document]) -> str:
    """Accuracy by question kind, mean of the seeds: target style, and plain style before and after."""

    target, plain = [run["kinds"] for run in runs], [run["plain"]["kinds"] for run in runs]

    def share(kinds: Sequence[Document], model: str) -> Any:
        return lambda kind: percent(mean([one[kind][model] for one in kinds if kind in one]))

    columns = {
        "Question kind": str,
        "n": lambda kind: f"{next(one[kind]['n'] for one in target if kind in one):.0f}",
        "Teacher": share(target, "teacher"),
        "Before": share(target, "base"),
        "After": share(target, "aligned"),
        "Plain before": share(plain, "base"),
        "Plain after": share(plain, "aligned"),
    }
    return table(columns, sorted(runs[0]["kinds"]))


def cost_table(runs: Sequence[Document]) -> str:
    """Where the time and the memory go."""
    columns = {
        "Seed": lambda run: str(run["seed"]),
        "Annotated": lambda run: str(run["annotated"]),
        "Verified": lambda run: str(run["verified"]),
        "Gap": lambda run: str(run["gap"]),
        **{f"{stage} s": lambda run, stage=stage: f"{run['seconds'][stage]:.0f}" for stage in runs[0]["seconds"]},
        "Whole process s": lambda run: f"{run['wall_s']:.0f}",
        "Overhead": lambda run: percent(run["overhead"]),
        "Peak memory GB": lambda run: f"{run['peak_rss_bytes'] / 1e9:.2f}",
    }
    return table(columns, runs)


def align_parts(result: Document) -> list[str]:
    """What aligning gains, and what it costs."""
    runs = result["runs"]
    return [
        "## Gain on 1,000 unseen questions\n",
        (
            "The unlabelled images and the questions are in the target style. The plain style is what the student "
            "mastered before: those two columns show whether it forgot.\n"
        ),
        seeds_table(runs),
        "## By question kind, mean of the seeds\n",
        kinds_table(runs),
        "## Cost\n",
        (
            "Overhead is the share of the whole process outside `generate`, the vision tower and the optimiser: "
            "parquet, hashing, images, progress, and loading Python, torch and the models.\n"
        ),
        cost_table(runs),
    ]


# --- ablation ---------------------------------------------------------------------------------------------------------


def ablation_table(result: Document, names: Sequence[str], exported: bool = False) -> str:
    """One row an arm: means of the seeds, and on each seed the difference to the recipe as it stands."""
    arms = result["arms"]

    def average(key: str) -> Any:
        return lambda name: mean([one[key] for one in arms[name]["seeds"].values()])

    def over(key: str) -> Any:
        return lambda name: spread(over_reference(arms[name], arms[result["reference"]], key))

    columns = {
        "Arm": str,
        "Changed": lambda name: " ".join(f"`{change}`" for change in arms[name]["set"]),
        "Seeds": lambda name: str(len(arms[name]["seeds"])),
        "Samples": lambda name: f"{average('samples')(name):.0f}",
        "After": lambda name: percent(average("aligned")(name)),
        "Gain (points)": lambda name: points(average("gain")(name)),
        "Over the first line (points)": over("aligned"),
        **({"Exported, over the first line": over("exported_aligned")} if exported else {}),
        "Plain style (points)": lambda name: points(average("plain")(name)),
    }
    return table(columns, names)


def spread(differences: Sequence[float]) -> str:
    """Mean with the least and the largest; nothing where there is nothing to compare."""
    if not differences:
        return ""
    ends = f" ({points(min(differences))} to {points(max(differences))})" if len(differences) > 1 else ""
    return points(mean(differences)) + ends


def ablation_parts(result: Document) -> list[str]:
    """What each option is worth, and what those were worth that have been removed."""
    removed = [name for name in result["arms"] if name not in ARMS]
    parts = [
        "## What to train on\n",
        (
            f"`{result['command']}`: each option alone, {result['steps']} training steps in bf16 and the same "
            "questions on every line; the column Seeds says how often. A difference that changes its sign from seed "
            "to seed is none.\n"
        ),
        ablation_table(result, [name for name in result["arms"] if name in ARMS]),
    ]
    if removed:
        parts += [
            "### Options that have been removed\n",
            (
                f"Measured at commit {REMOVED_AT} with options that have since been removed, because none of them "
                "helped. The first line is that of the table above.\n"
            ),
            ablation_table(result, removed, exported=True),
        ]
    return parts + aware_parts(result["quantization_aware"])


def aware_parts(result: Document) -> list[str]:
    """What leveling against quantized weights keeps at few bits."""
    seeds = list(result["seeds"].values())
    rows = [(bits, strength) for bits in result["bits"] for strength in ("0.6", "1")]

    def average(kind: str) -> Any:
        return lambda row: percent(mean([one[f"{kind}, {row[0]}, {row[1]}"] for one in seeds]))

    def difference(row: tuple[int, str]) -> str:
        at = f", {row[0]}, {row[1]}"
        return spread([one[f"aware{at}"] - one[f"plain{at}"] for one in seeds])

    columns = {
        "Bits": lambda row: str(row[0]),
        "Strength": lambda row: row[1],
        "Before": lambda row: percent(mean([one[f"before, {row[0]}"] for one in seeds])),
        "Leveled, then quantized": average("plain"),
        "Leveled against quantized weights": average("aware"),
        "Difference (points)": difference,
        "Leveled, in full precision": lambda row: percent(mean([one[f"plain, 0, {row[1]}"] for one in seeds])),
    }
    return [
        "### Leveling against quantized weights\n",
        (
            f"`{result['command']}` at commit {AWARE_AT}: the decoder in blocks as the scheme onnx-q2 has them, and "
            f"the same with 3 bits; {len(seeds)} seeds, {result['steps']} training steps in bf16, "
            f"{result['images']:,} images, {result['n']} unseen questions (before, in full precision: "
            f"{percent(mean([one['before, 0'] for one in seeds]))}). Strength is the share of the change that is kept. "
            "The gradient goes straight through the rounding. It keeps more at 2 bits, but no scheme that is meant to "
            "be shipped has so few, and rounding to 4 keeps nearly all of the gain (next table): it is not an option "
            "of `level`.\n"
        ),
        table(columns, rows),
    ]


# --- export -----------------------------------------------------------------------------------------------------------


def size_mb(export: Document) -> float:
    """All weights of one export."""
    return sum(file["bytes"] for file in export["files"].values()) / MB


def accuracy_table(result: Document) -> str:
    """One row a scheme: what is left of the gain."""
    columns = {
        "Scheme": lambda one: one["scheme"] + (" (negative control)" if one["control"] else ""),
        "Components": lambda one: ", ".join(f"{name} {precision}" for name, precision in one["components"].items()),
        "MB": lambda one: f"{size_mb(one):.2f}",
        "Accuracy": lambda one: percent(one["accuracy"]["artifact"]),
        "against aligned (points)": lambda one: points(one["accuracy"]["artifact"] - one["accuracy"]["aligned"]),
        "Gain kept": lambda one: percent(one["retained_gain"]),
        "The gain": lambda one: one["verdict"],
    }
    return table(columns, result["exports"])


def export_parts(result: Document) -> list[str]:
    """What an export keeps of the gain."""
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
    return parts


def real_parts(rows: Document) -> list[str]:
    """What each scheme keeps of a trained language model."""
    first = next(iter(rows.values()))
    flags = ", ".join(first["machine"]["flags"])
    schemes = " ".join(f"--scheme {name}" for name in rows)
    columns = {
        "Scheme": lambda one: one["scheme"],
        "Language side, MB": lambda one: f"{language_mb(one):.0f}",
        "Perplexity": lambda one: f"{100 * (one['perplexity'] / one['perplexity_fp32'] - 1):+.1f} %",
        "Same first choice": lambda one: percent(one["top1"]),
        "KL, mean": lambda one: f"{one['kl_mean']:.4f}",
        "KL, 99th percentile": lambda one: f"{one['kl_p99']:.2f}",
        "Greedy tokens": lambda one: percent(one["greedy_agreement"]),
    }
    return [
        "## What a scheme keeps of a trained language model\n",
        (
            f"`python benchmarks/real_weights.py {schemes} --out docs/real.json`: SmolLM2-135M, the decoder of "
            f"SmolVLM-256M, on {first['passages']} English passages against fp32 (perplexity "
            f"{first['perplexity_fp32']:.1f}). Greedy tokens: of the answers to 30 instructions, 32 tokens at most, "
            "the share before the first one that differs; a near tie is enough to end it. "
            f"{first['machine']['cpu']} with {flags}. The built-in student has no activations hundreds of times larger "
            "than the rest, as trained models do: where the two tables disagree, this one decides.\n"
        ),
        table(columns, list(rows.values())),
    ]


def language_mb(row: Document) -> float:
    """The decoder with its table of embeddings, or the language model of a GGUF pair."""
    return sum(size for part, size in row["bytes_of"].items() if part not in ("vision", "mmproj")) / MB


# --- benchmark --------------------------------------------------------------------------------------------------------


def where(part: Document) -> str:
    """Command, machine, versions and date, and what else ran there."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    busy = part.get("load_before", 0.0) > 0.5 or part["stolen_share"] > 0.01
    load = f"load before {part['load_before']:.1f}, " if "load_before" in part else ""
    threads = f"{part['threads']} thread, " if "threads" in part else ""
    flags = " with " + ", ".join(part["machine"]["flags"]) if "flags" in part["machine"] else ""
    return (
        f"`{part['command']}`: {threads}{part['machine']['cores']} cores ({part['machine']['cpu']}{flags}), "
        f"{versions}; {part['date']}; {load}"
        f"{percent(part['stolen_share'])} of the time taken by other guests of the host.\n"
        + ("\n**The machine had other work at the time.**\n" if busy else "")
    )


def verdict(met: bool, bound: str) -> str:
    """A bound and whether it is met."""
    return f"{'met' if met else 'missed'} ({bound})"


def memory_part(part: Document) -> list[str]:
    """Peak memory against /usr/bin/time."""
    columns = {
        "Export": lambda row: row[0],
        "Jobs": lambda row: str(len(row[1]["jobs"])),
        "Job says, MB": lambda row: f"{row[1]['jobs'][0]['job_bytes'] / MB:.1f}",
        "time -v, MB": lambda row: f"{row[1]['jobs'][0]['time_bytes'] / MB:.1f}",
        "Largest difference": lambda row: percent(row[1]["largest_difference"]),
        "Within": lambda row: verdict(row[1]["largest_difference"] <= 0.03, "3 %"),
    }
    return [
        "### Peak memory\n",
        where(part),
        "First job of each; the difference is the largest of all jobs.\n",
        table(columns, part["exports"].items()),
    ]


def repeat_part(part: Document) -> list[str]:
    """The same job ten times."""
    n, least = part["rounds"], 0.9 * part["rounds"]
    rows = [(name, metric, one) for name, found in part["exports"].items() for metric, one in found.items()]
    columns = {
        "Export, figure": lambda row: f"{row[0]}, {'TTFT' if row[1] == 'ttft_s' else 'TPOT'}",
        "Median, ms": lambda row: f"{row[2]['median'] * 1000:.3f}",
        "Jobs off the median": lambda row: (
            " to ".join(f"{100 * (end - 1):+.1f}" for end in (min(row[2]["over_median"]), max(row[2]["over_median"])))
            + " %"
        ),
        "Within 5 %": lambda row: f"{row[2]['within_5_percent']} of {n}",
        "Bound": lambda row: verdict(row[2]["within_5_percent"] >= least, f"{least:.0f} of {n}"),
    }
    return ["### The same benchmark again\n", where(part), f"{n} jobs through bench.sh.\n", table(columns, rows)]


def peers_parts(cases: Document) -> list[str]:
    """Whole answers against other programs, a table for each model and number of threads."""
    parts: list[str] = []
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in cases):
        many, one = cases[f"{name}, 5"], cases[f"{name}, 1"]
        rows = [(row, many["programs"].get(row), one["programs"].get(row)) for row in many["programs"]]
        columns = {
            "Program": lambda row: row[0],
            "Vision, s a tile": lambda row: f"{row[1]['vision_s'] / 5:.2f}" if "vision_s" in row[1] else "",
            "First token, s": lambda row: f"{row[1]['ttft_s']:.2f}" if "ttft_s" in row[1] else "",
            "Decode, tok/s": lambda row: f"{decode_speed(row[1], 32):.0f}" if "ttft_s" in row[1] else "",
            "5 tiles, 32 tokens, s": lambda row: f"{row[1]['total_s']:.2f}",
            "1 tile, 128 tokens, s": lambda row: f"{row[2]['total_s']:.2f}" if row[2] else "",
            "Peak memory, MB": lambda row: f"{row[1]['peak_bytes'] / MB:,.0f}",
        }
        model, threads = name.split(", ")
        parts += [
            f"### {model}, {threads} {'thread' if threads == '1' else 'threads'}\n",
            table(columns, rows),
            f"{best_of(many, '5 tiles and 32 tokens')} {best_of(one, '1 tile and 128 tokens')} {bounds(many)}\n",
        ]
    first = next(iter(cases.values()))
    return [
        "## Whole answers against other programs\n",
        (
            f"{where(first)}\nThe head of benchmarks/peers.py says what the programs are and what is timed. Medians of "
            f"{first['rounds']} answers in turns; decoding speed is that behind 5 tiles. llama.cpp splits an image "
            "into four tiles at least.\n"
        ),
        *parts,
    ]


def decode_speed(row: Document, n: int) -> float:
    """Tokens a second behind the first one."""
    return (n - 1) / float(row["total_s"] - row["ttft_s"])


def best_of(case: Document, what: str) -> str:
    """The quickest of ours against the quickest of theirs, in a sentence."""
    ours, theirs = (
        min((row["total_s"], name) for name, row in case["programs"].items() if name.startswith("mpa-edge") is own)
        for own in (True, False)
    )
    return f"{what}: {ours[1].removeprefix('mpa-edge, ')} takes {ours[0] / theirs[0]:.2f} of the time of {theirs[1]}."


def bounds(case: Document) -> str:
    """Share of the memory's bandwidth that decoding reaches."""
    shares = [
        f"{scheme} {percent(decode_speed(case['programs'][f'mpa-edge, {scheme}'], 32) * size / case['bytes_per_s'])}"
        for scheme, size in case["bytes_a_token"].items()
        if f"mpa-edge, {scheme}" in case["programs"]
    ]
    return (
        f"Decoding reads weights at this share of the {case['bytes_per_s'] / 1e9:.1f} GB/s that reading memory "
        f"reaches: {', '.join(shares)}."
    )


def bench_parts(result: Document) -> list[str]:
    """How true the benchmark's figures are."""
    makers = {"memory": memory_part, "repeat": repeat_part}
    found = [part for key, make in makers.items() if key in result for part in make(result[key])]
    return ["## Benchmark\n", *found] if found else []


# --- scale ------------------------------------------------------------------------------------------------------------


def runs_block(runs: Sequence[Document]) -> str:
    """One row a run, and whether time grows as the number of images does."""
    columns = {
        "Engine": lambda run: f"ray, {run['size']['actors']} actors" if run["size"]["engine"] == "ray" else "local",
        "Images": lambda run: f"{run['images']:,}",
        "Rows": lambda run: f"{run['rows']:,}",
        "Different ids": lambda run: f"{run['unique_ids']:,}",
        "Rows a second": lambda run: f"{run['rows_per_s']:,.0f}",
        "Driver, MB": lambda run: f"{run['driver_peak_rss_bytes'] / MB:,.0f}",
        "Resumed after, s": lambda run: f"{run['resume_s']:.1f}",
        "Rows redone": lambda run: f"{run['rows_redone']:,}",
    }
    said = []
    for few, many in itertools.pairwise(runs):
        if few["size"]["engine"] == many["size"]["engine"]:
            more_s = sum(many[part]["wall_s"] - few[part]["wall_s"] for part in ("first", "second"))
            each_ms = 1000 * more_s / (many["images"] - few["images"])
            said.append(f"{few['size']['engine']}, {few['images']:,} to {many['images']:,}: {each_ms:.2f} ms")
    commands = "\n".join(f"- `{run['command']}`" for run in runs)
    where = f"{runs[0]['machine']['cores']} cores, {runs[0]['machine']['cpu']}"
    growth = f"Time for each further image: {'; '.join(said)}."
    return f"{table(columns, runs)}\n{growth}\n\nCommands ({where}):\n\n{commands}\n"


def compare_block(compare: Document) -> str:
    """The Ray engine against the local one, one worker each."""
    columns = {
        "Engine, one worker": str,
        "First to last batch of both stages, s": lambda engine: f"{compare[f'{engine}_work_s']:.1f}",
    }
    return (
        table(columns, ["local", "ray"])
        + f"\nOverhead {percent(compare['overhead'])} on {compare['images']:,} images, best of {compare['rounds']} in "
        f"turns; Ray's own start took {compare['ray_start_s']:.1f} s more. `{compare['command']}`\n"
    )


# --- the documents ----------------------------------------------------------------------------------------------------


def results_page() -> str:
    """docs/results.md."""
    names = ("results", "ablation", "export", "bench", "real", "label_free", "peers")
    result, ablation, export, bench, real, label_free, peers = (read(DOCS / f"{name}.json") for name in names)
    head = (
        f"# Results\n\nMade by `{result['command']}` and `python benchmarks/report.py` on "
        f"{result['machine']['cores']} cores ({result['machine']['cpu']}). Nothing on this page is typed by hand.\n"
    )
    ablated = ablation_parts(ablation) if ablation else []
    without_labels = label_free_parts(label_free) if label_free else []
    aligned = [*align_parts(result), *without_labels, *ablated]
    return "\n".join(
        [head, *aligned, *export_parts(export), *real_parts(real), *peers_parts(peers), *bench_parts(bench)]
    )


def readme_results(result: Document) -> str:
    """The README's table of what aligning gains."""
    runs = result["runs"]
    n, wall_s = runs[0]["accuracy"]["n"], mean([run["wall_s"] for run in runs])
    columns = {
        "Built-in models, target style": lambda _: f"{n:,} unseen questions, mean of {len(runs)} seeds",
        "Teacher (5.8 M)": lambda one: percent(one["teacher"]),
        "Student (2.8 M) before": lambda one: percent(one["base"]),
        "after": lambda one: percent(one["aligned"]),
        "Gain (points)": lambda _: points(result["mean_gain"]),
    }
    return (
        table(columns, [{model: mean([run["accuracy"][model] for run in runs]) for model in MODELS}])
        + f"\n`{result['command']}` — {wall_s:.0f} s a run on {result['machine']['cores']} CPU cores; "
        + "every figure: [docs/results.md](docs/results.md)\n"
    )


def readme_export(accuracy: Document) -> str:
    """The README's table of exports."""
    first, by_scheme = accuracy["exports"][0]["accuracy"], {one["scheme"]: one for one in accuracy["exports"]}
    columns = {
        "Built-in student exported as": lambda one: one["scheme"],
        "MB": lambda one: f"{size_mb(one):.1f}",
        "Accuracy": lambda one: percent(one["accuracy"]["artifact"]),
        "Gain kept": lambda one: percent(one["retained_gain"] or 0.0),
    }
    return (
        table(columns, [by_scheme[name] for name in README_SCHEMES])
        + f"\n`{accuracy['command']}` — before {percent(first['base'])}, aligned in full precision "
        + f"{percent(first['aligned'])}; every scheme: [docs/results.md](docs/results.md).\n"
    )


@click.command()
def main() -> None:
    """Rewrite docs/results.md and the marked tables of README.md and docs/scale.md."""
    (DOCS / "results.md").write_text(results_page())
    results, export, scale = (read(DOCS / f"{name}.json") for name in ("results", "export", "scale"))
    blocks = {"results": readme_results(results), "export": readme_export(export["accuracy"])}
    rewrite(ROOT / "README.md", blocks)
    rewrite(DOCS / "scale.md", {"runs": runs_block(scale["runs"]), "compare": compare_block(scale["compare"])})


def rewrite(path: Path, blocks: dict[str, str]) -> None:
    """Put each block between its two markers."""
    text = path.read_text()
    for name, block in blocks.items():
        text = marked(text, name, block)
    path.write_text(text)


if __name__ == "__main__":
    main()
