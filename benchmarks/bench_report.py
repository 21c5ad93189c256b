"""The benchmark's part of docs/results.md, from docs/bench.json. Called by report.py."""

from __future__ import annotations

from typing import Any

from tables import percent, table

OVERHEAD, MEMORY, REPEAT, OF_TEN = 0.02, 0.03, 0.05, 0.9
MB, GB, MS, US = 1e6, 1e9, 1000, 1e6
WRITES = {"plain": "", "notes": ", bare writes"}
QUIET_LOAD, STOLEN = 0.5, 0.01


def bench_parts(result: dict[str, Any]) -> list[str]:
    """Sections of docs/results.md; nothing where nothing was measured."""
    makers = {"overhead": overhead_part, "memory": memory_part, "repeat": repeat_part, "shapes": shapes_part}
    found = [part for key, make in makers.items() if key in result for part in make(result[key])]
    return ["## Benchmark\n", *found] if found else []


def where(part: dict[str, Any]) -> str:
    """Command, machine, versions and day, and what else ran there."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return (
        f"`{part['command']}`: {part['threads']} thread, {part['machine']['cores']} cores ({part['machine']['cpu']}), "
        f"{versions}; {part['date']}; load before {part['load_before']:.1f}, "
        f"{percent(part['stolen_share'])} of the time taken by other guests of the host.\n"
    )


def noise(part: dict[str, Any]) -> str:
    """A warning where the machine had other work: seconds mean little then, bytes and ratios of neighbours do."""
    busy = part["load_before"] > QUIET_LOAD or part["stolen_share"] > STOLEN
    return "**The machine had other work meanwhile.** " if busy else ""


def verdict(met: bool, asked: str) -> str:
    """The asked bound and whether it is met."""
    return f"{'met' if met else 'missed'} ({asked})"


# --- overhead ---------------------------------------------------------------------------------------------------------


def overhead_part(part: dict[str, Any]) -> list[str]:
    """Harness over bare loop."""
    rows = [
        overhead_row(name + WRITES[kind], one, metric)
        for name, found in part["exports"].items()
        for kind, one in found.items()
        for metric in ("ttft_s", "tokens_per_s")
    ]
    heading = ["Export, figure", "Harness", "Bare", "Harness over bare", "95 %", "Adds", "Costs at most 2 %"]
    return [
        "### What the harness costs\n",
        where(part),
        noise(part)
        + (
            "The worker of a job and a bare loop in a process of its own, A B B A, in turns of all questions; the "
            "median of the pairs' ratios. Below 0 % for the time, above 0 % for the speed: the harness reports better "
            "figures than the bare loop has. It may, as the product reads a prompt in fewer batches than llama.cpp's "
            "own helper. The harness has each answer on the disk before it asks the next question; *bare writes*: so "
            "does the bare loop, which tells the cost of that pause. *Adds*: the ratio as time, for a first token "
            "or for each token. The last column says what the harness costs: met or missed where the whole interval "
            "is below or above 2 %, else open.\n"
        ),
        table(heading, rows),
    ]


def overhead_row(name: str, found: dict[str, Any], metric: str) -> list[str]:
    """One figure of one export."""
    one = found[metric]
    ends = " to ".join(f"{100 * (end - 1):+.1f}" for end in one["ci95"]) if one["ci95"] else ""
    unit, scale, digits = ("TTFT, ms", MS, 1) if metric == "ttft_s" else ("tokens/s", 1, 1)
    return [
        f"{name} ({found['pairs']} pairs), {unit}",
        f"{one['harness'] * scale:.{digits}f}",
        f"{one['bare'] * scale:.{digits}f}",
        f"{100 * (one['ratio'] - 1):+.1f} %",
        ends,
        added(one, metric),
        f"{word(one, metric)} ({100 * costs(one['ratio'], metric):+.1f} %)",
    ]


def word(one: dict[str, Any], metric: str) -> str:
    """met, missed or open: where the interval of the costs lies.

    >>> [word({"ratio": 1.0, "ci95": ends}, "ttft_s") for ends in ((0.99, 1.01), (1.03, 1.05), (1.01, 1.03))]
    ['met', 'missed', 'open']
    """
    ends = [costs(end, metric) for end in one["ci95"] or [one["ratio"]]]
    return "met" if max(ends) <= OVERHEAD else "missed" if min(ends) > OVERHEAD else "open"


def added(one: dict[str, Any], metric: str) -> str:
    """What the harness adds to the time of a first token, or of a token.

    >>> added({"ratio": 1.02, "bare": 0.5}, "ttft_s"), added({"ratio": 0.8, "bare": 1000.0}, "tokens_per_s")
    ('+10.00 ms', '+250 us')
    """
    if metric == "ttft_s":
        return f"{(one['ratio'] - 1) * one['bare'] * MS:+.2f} ms"
    return f"{(1 / one['ratio'] - 1) / one['bare'] * US:+.0f} us"


def costs(ratio: float, metric: str) -> float:
    """What the harness costs, as a share: time that is longer, or speed that is lower.

    >>> round(costs(1.01, "ttft_s"), 3), round(costs(0.98, "tokens_per_s"), 3)
    (0.01, 0.02)
    """
    return ratio - 1 if metric == "ttft_s" else 1 - ratio


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_part(part: dict[str, Any]) -> list[str]:
    """Peak memory against /usr/bin/time."""
    rows = [
        [
            name,
            str(len(found["jobs"])),
            f"{found['jobs'][0]['job_bytes'] / MB:.1f}",
            f"{found['jobs'][0]['time_bytes'] / MB:.1f}",
            percent(found["largest_difference"]),
            verdict(found["largest_difference"] <= MEMORY, "3 %"),
        ]
        for name, found in part["exports"].items()
    ]
    heading = ["Export", "Jobs", "Job says, MB", "time -v, MB", "Largest difference", "Within"]
    return [
        "### Peak memory\n",
        where(part),
        "First job of each; the difference is the largest of all jobs.\n",
        table(heading, rows),
    ]


# --- repeat -----------------------------------------------------------------------------------------------------------


def repeat_part(part: dict[str, Any]) -> list[str]:
    """Ten jobs."""
    rows = [
        repeat_row(f"{name}, {'TTFT' if metric == 'ttft_s' else 'TPOT'}", found, part["rounds"])
        for name, metrics in part["exports"].items()
        for metric, found in metrics.items()
    ]
    heading = [
        "Export, figure",
        "Median, ms",
        "Jobs off the median",
        "Within 5 %",
        "Asked: 9 of 10",
        "Bare loop off its median",
        "Job over bare, within 5 %",
    ]
    return [
        "### The same benchmark again\n",
        where(part),
        noise(part)
        + (
            f"{part['rounds']} jobs through bench.sh, a bare loop before and behind each. The last two columns are the "
            "yardstick: a bare loop that wanders as far as the jobs means that the machine did.\n"
        ),
        table(heading, rows),
    ]


def repeat_row(name: str, found: dict[str, Any], n: int) -> list[str]:
    """One figure of one export."""
    return [
        name,
        f"{found['median'] * MS:.3f}",
        span(found["over_median"]),
        f"{found['within_5_percent']} of {n}",
        verdict(found["within_5_percent"] >= OF_TEN * n, f"{OF_TEN * n:.0f} of {n}"),
        span(found["bare_over_its_median"]),
        f"{found['ratio_within_5_percent']} of {n}",
    ]


def span(ratios: list[float]) -> str:
    """Smallest and largest, in percent off 1.

    >>> span([0.98, 1.0, 1.031])
    '-2.0 to +3.1 %'
    """
    return f"{100 * (min(ratios) - 1):+.1f} to {100 * (max(ratios) - 1):+.1f} %"


# --- SmolVLM's sizes --------------------------------------------------------------------------------------------------


def shapes_part(part: dict[str, Any]) -> list[str]:
    """Every scheme."""
    heading = [
        "Scheme",
        "Load cold, s",
        "Vision, s a tile",
        "TTFT, s",
        "Decode, tok/s",
        "Peak memory, MB",
        "Size, MB",
        "Read a token, MB",
        "Memory, GB/s",
        "Of the bound",
    ]
    rows = [shape_row(name, row, part["tiles"]) for name, row in part["schemes"].items()]
    return [
        "### SmolVLM-256M's sizes, every scheme\n",
        where(part),
        noise(part)
        + (
            f"Random weights: answers mean nothing. One picture of {part['tiles']} tiles (the overview counted), "
            f"{part['tokens']} tokens, medians of {part['rounds']} answers behind a warm-up, through bundle, bench.sh "
            "and worker. *Of the bound*: tokens a second times the bytes that each token has to read (weights of the "
            "language model, keys and values of the context), over the bytes a second that one thread reads with "
            "numpy. onnx-qdq is missing, as it is calibrated on a run's own pictures.\n"
        ),
        table(heading, rows),
    ]


def shape_row(name: str, row: dict[str, Any], tiles: int) -> list[str]:
    """One scheme."""
    return [
        name,
        f"{row['load_s']:.2f}",
        f"{row['vision_encode_s'] / tiles:.2f}",
        f"{row['ttft_s']:.2f}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['peak_bytes'] / MB:,.0f}",
        f"{row['size_bytes'] / MB:,.0f}",
        f"{row['read_bytes_per_token'] / MB:,.0f}",
        f"{row['bandwidth_bytes_per_s'] / GB:.0f}",
        percent(row["share_of_bound"]),
    ]
