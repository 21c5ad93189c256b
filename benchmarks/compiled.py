"""What torch.compile is worth for the two loops that annotate and identify spend their time in.

    python benchmarks/compiled.py --out docs/compiled.json
    python benchmarks/compiled.py --model smolvlm-256m --pictures 1 --rows 4

- vision: the vision tower over a batch of pictures, all batches of one shape
- decode: one token more for every row of a batch, behind a cache that grows by one each time (`dynamic=True`: a program
  for each length would be compiled again and again)

Eager and compiled calls take turns, so that a busy machine slows both; `factor` is the median of their ratios, of
processor time. `compile_s` is what the first calls took longer, and `pays_after_s` how long eager work must last before
compiling it has paid. Whether both give the same numbers stands beside it.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from align import machine
from PIL import Image
from shapes import TEXT, build

from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint

CALLS = 20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds of the processor, result)."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def compared(eager: Callable[[], Any], compiled: Callable[[], Any]) -> dict[str, Any]:
    """Both in turn, after the first calls, in which the one is compiled."""
    wall = time.perf_counter()
    for _ in range(3):
        compiled()
    first_s = time.perf_counter() - wall
    for _ in range(3):
        eager()
    rounds = [(timed(eager), timed(compiled)) for _ in range(CALLS)]
    ratios = [one / other for (one, _), (other, _) in rounds]
    eager_s, compiled_s = (statistics.median(pair[i][0] for pair in rounds) for i in (0, 1))
    factor, compile_s = statistics.median(ratios), first_s - 3 * compiled_s
    (_, expected), (_, found) = rounds[-1]
    return {
        "eager_s": eager_s,
        "compiled_s": compiled_s,
        "factor": factor,
        "compile_s": compile_s,
        "pays_after_s": compile_s / (1 - 1 / factor) if factor > 1 else None,
        "max_abs_diff": float((expected - found).abs().max()),
    }


def vision(model: Any, processor: Any, pictures: int) -> dict[str, Any]:
    """The tower over a batch of pictures."""
    tower = model.base_model.vision_model
    image = Image.effect_noise((96, 96), 40).convert("RGB")
    text = checkpoint.chat_prompt(processor, "What?")
    made = processor(text=[text] * pictures, images=[[image]] * pictures, add_special_tokens=False, return_tensors="pt")
    pixels = made["pixel_values"].flatten(0, 1)
    program = torch.compile(tower)
    return compared(
        lambda: tower(pixel_values=pixels).last_hidden_state, lambda: program(pixel_values=pixels).last_hidden_state
    )


def decode(model: Any, rows: int, before: int) -> dict[str, Any]:
    """One token more for every row, behind a cache."""
    language = model.base_model.text_model
    program = torch.compile(language, dynamic=True)
    ids = torch.randint(0, 100, (rows, before))
    cache = language(input_ids=ids, use_cache=True).past_key_values
    caches = {True: copy.deepcopy(cache), False: cache}

    def step(run: Any, compiled: bool) -> Any:
        return run(input_ids=ids[:, :1], past_key_values=caches[compiled], use_cache=True).last_hidden_state

    return compared(lambda: step(language, False), lambda: step(program, True))


@click.command()
@click.option("--model", "name", default="nursery:teacher", show_default=True, help="A model, or smolvlm-256m.")
@click.option("--pictures", default=16, show_default=True, help="In one batch of the vision tower.")
@click.option("--rows", default=32, show_default=True, help="In one batch of decode.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures here.")
@torch.inference_mode()
def main(name: str, pictures: int, rows: int, threads: int, out: Path | None) -> None:
    """Run the benchmark."""
    checkpoint.set_threads(threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = str(build(name, Path(folder) / name, 0)) if name in TEXT else resolve(name)
        device = checkpoint.pick_device("auto")
        model, processor = checkpoint.load_model(path, device), checkpoint.load_processor(path)
        result = {
            "command": f"python benchmarks/compiled.py --model {name} --pictures {pictures} --rows {rows}",
            "model": name,
            "pictures": pictures,
            "rows": rows,
            "machine": machine() | {"threads": threads},
            "vision": vision(model, processor, pictures),
            "decode": decode(model, rows, 64),
        }
    text = json.dumps(result, indent=1)
    click.echo(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
