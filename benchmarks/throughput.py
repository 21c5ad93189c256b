"""Samples a second of annotate and identify, against the loop that the method was published with.

    python benchmarks/throughput.py --json
    python benchmarks/throughput.py --teacher smolvlm-256m --student smolvlm-256m --pictures 4 --longest-edge 512

A sample is one question about one picture: written by the teacher, answered by the teacher, answered by the student.

- reference: both models in memory, three passes over all samples in the files' order, batches of 8, 128 new tokens at
  most, greedy (the loop of vl2g/MPA at 22c739e, written anew from a description, its mistakes left out)
- ours: what the stages do with their models. The student is asked only what the teacher confirmed, so that some of the
  reference's answers have no counterpart; all others must be the same texts
- steps: ours put together piece by piece, each piece over what was there before it
- both run in turn, round after round, every other round backwards, so that a busy machine slows all of them; the
  speedup is the median of the rounds' ratios, once of wall time and once of processor time. Not timed: loading, and
  the files that the stages write
- smolvlm-256m, smolvlm-500m: the published sizes with random weights. They never end and write no questions: both ways
  get the same given questions, count every one as confirmed (the worst case for us), and make the same number of tokens
  (--new-tokens). --longest-edge limits the pictures' size: 512 is one tile, 2048 the published 13 to 17

decode_share_of_bandwidth: bytes that decoding 32 rows must read, over what the memory could read meanwhile. On a GPU
only; without one the document says "not measured".
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from align import machine
from decode_bound import share_of_bound
from shapes import TEXT, build
from throughput_arms import Ours, PublishedLoop, Said, Steps, Work, opened

from mpa_edge.nursery.render import render
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.model import TransformersVLM

Arm = Callable[[Work], Any]
# every arm is the one before it with one piece more; the first is the reference
LADDER: dict[str, Arm] = {
    "reference": PublishedLoop,
    "student asked only what is confirmed": lambda work: PublishedLoop(work, only_confirmed=True),
    "batches as large as memory allows": lambda work: Ours(work, Steps(False, False, False, False)),
    "a picture's prefix computed once": lambda work: Ours(work, Steps(sort=False, shrink=False, ahead=False)),
    "ended rows drop out": lambda work: Ours(work, Steps(sort=False, ahead=False)),
    "batches of one length": lambda work: Ours(work, Steps(ahead=False)),
    "pictures prepared by a second thread": Ours,
}
BOUND_ROWS = 32
REFERENCE, OURS = next(iter(LADDER)), list(LADDER)[-1]


@dataclass(frozen=True)
class Took:
    """Time of one arm in one round."""

    wall_s: float
    """As a clock on the wall sees it."""
    cpu_s: float
    """Of the processor, all threads together: what others do on the machine hardly matters to it."""


def timed(arm: Arm, work: Work) -> tuple[Took, Said]:
    """The time, and what was said. The models are loaded before and gone after it."""
    loaded = arm(work)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    said = loaded.run()
    took = Took(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    del loaded
    gc.collect()
    return took, said


def interleaved(arms: dict[str, Arm], work: Work, rounds: int) -> tuple[dict[str, list[Took]], dict[str, Said]]:
    """Time of every arm in every round, and what each said in the last one."""
    seconds: dict[str, list[Took]] = {name: [] for name in arms}
    said: dict[str, Said] = {}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            took, said[name] = timed(arms[name], work)
            seconds[name].append(took)
            click.echo(f"  {name}: {took.wall_s:.2f} s, {took.cpu_s:.2f} s of the processor", err=True)
    return seconds, said


def ratio(slow: list[Took], fast: list[Took], part: str = "wall_s") -> float:
    """Median of the rounds' ratios.

    >>> ratio([Took(4, 1), Took(6, 1), Took(9, 1)], [Took(2, 1), Took(2, 1), Took(3, 1)])
    3.0
    """
    return round(statistics.median(getattr(a, part) / getattr(b, part) for a, b in zip(slow, fast, strict=True)), 2)


def rate(n: int, took: list[Took]) -> float:
    """Samples a second of the median round."""
    return round(n / statistics.median(one.wall_s for one in took), 3)


def document(work: Work, seconds: dict[str, list[Took]], said: dict[str, Said]) -> dict[str, Any]:
    """What is printed."""
    n, names = len(work.samples), list(seconds)
    differing = said[OURS].differences(said[REFERENCE])
    return {
        "teacher": work.teacher,
        "student": work.student,
        "pictures": len(work.pictures),
        "questions": work.questions,
        "new_tokens": [work.annotation_tokens, work.answer_tokens],
        "reference_samples_per_s": rate(n, seconds[REFERENCE]),
        "ours_samples_per_s": rate(n, seconds[OURS]),
        "speedup": ratio(seconds[REFERENCE], seconds[OURS]),
        "speedup_cpu": ratio(seconds[REFERENCE], seconds[OURS], "cpu_s"),
        "same_answers": differing == 0,
        "differing_answers": differing,
        "answers": len(said[OURS].annotations) + len(said[OURS].teacher) + len(said[OURS].student),
        "steps": {after: ratio(seconds[before], seconds[after]) for before, after in itertools.pairwise(names)},
        "steps_cpu": {
            after: ratio(seconds[before], seconds[after], "cpu_s") for before, after in itertools.pairwise(names)
        },
        "seconds": {name: [round(one.wall_s, 3) for one in found] for name, found in seconds.items()},
        "seconds_cpu": {name: [round(one.cpu_s, 3) for one in found] for name, found in seconds.items()},
        "decode_share_of_bandwidth": bound(work) if checkpoint.pick_device("auto") == "cuda" else "not measured",
        "machine": machine() | {"threads": torch.get_num_threads(), "device": checkpoint.pick_device("auto")},
    }


def bound(work: Work) -> dict[str, Any]:
    """The teacher's decoding against the memory."""
    vlm = TransformersVLM(resolve(work.teacher), name="teacher")
    return share_of_bound(vlm, opened(work.pictures[0]), BOUND_ROWS)


def model(name: str, folder: Path, longest_edge: int, seed: int) -> str:
    """A reference that can be loaded; checkpoints of published sizes are made first."""
    if name not in TEXT:
        return name
    made = build(name, folder / f"{name}-{seed}", seed)
    processor = checkpoint.load_processor(str(made))
    processor.image_processor.size = {"longest_edge": longest_edge}
    processor.save_pretrained(made)
    return str(made)


@click.command()
@click.option("--teacher", default="nursery:teacher", show_default=True, help="A model, smolvlm-256m or smolvlm-500m.")
@click.option("--student", default="nursery:student", show_default=True, help="A model, smolvlm-256m or smolvlm-500m.")
@click.option("--pictures", default=100, show_default=True, help="Drawn by the built-in generator.")
@click.option("--questions", default=5, show_default=True, help="Annotations of each picture.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--new-tokens", type=(int, int), help="Of an annotation and of an answer; 128 each, 16 and 3 for random weights."
)
@click.option("--longest-edge", default=2048, show_default=True, help="Pixels; for random weights only.")
@click.option("--threads", default=1, show_default=True)
@click.option("--no-steps", is_flag=True, help="Reference and ours only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(
    teacher: str,
    student: str,
    pictures: int,
    questions: int,
    rounds: int,
    new_tokens: tuple[int, int] | None,
    longest_edge: int,
    threads: int,
    no_steps: bool,
    as_json: bool,
) -> None:
    """Run the benchmark."""
    checkpoint.set_threads(threads)
    trained = teacher not in TEXT
    limits = new_tokens or ((128, 128) if trained else (16, 3))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = tuple(sorted(render(folder / "pictures", pictures, 99, "target").glob("*.png")))
        models = [model(name, folder, longest_edge, seed) for seed, name in enumerate((teacher, student))]
        work = Work(drawn, questions, *models, *limits, trained)
        chosen = [REFERENCE, OURS] if no_steps else list(LADDER)
        seconds, said = interleaved({name: LADDER[name] for name in chosen}, work, rounds)
        result = document(work, seconds, said) | {"teacher": teacher, "student": student}
    click.echo(json.dumps(result, indent=1) if as_json else table(result))


def table(result: dict[str, Any]) -> str:
    """For people."""
    cpu = result["steps_cpu"]
    lines = [f"{name:40} x {factor:.2f} (processor x {cpu[name]:.2f})" for name, factor in result["steps"].items()]
    total = f"{result['reference_samples_per_s']} -> {result['ours_samples_per_s']} samples a second"
    same = "same answers" if result["same_answers"] else f"{result['differing_answers']} answers differ"
    all_of_it = f"{'all together':40} x {result['speedup']:.2f} (processor x {result['speedup_cpu']:.2f})"
    return "\n".join([*lines, f"{all_of_it}: {total}, {same}"])


if __name__ == "__main__":
    main()
