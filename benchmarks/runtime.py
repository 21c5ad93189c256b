"""What our runtimes cost over bare loops, and what the hybrid gains over each single runtime.

    python benchmarks/shapes.py smolvlm-256m 256m
    mpa-edge export 256m --as onnx-int8 --as gguf-q8_0 --as gguf-q4_0 --as hybrid-int8-q4_0 --out 256m-exports
    python benchmarks/runtime.py loops 256m 256m-exports/onnx-int8 256m-exports/gguf-q8_0 --node FOLDER --json
    python benchmarks/runtime.py hybrid 256m-exports/{hybrid-int8-q4_0,gguf-q4_0,onnx-int8} --json

loops: one thread, one tile, a prompt of some 200 tokens. Our VLM against the least that one can write over the same
sessions and contexts, against torch (fp32, sdpa), and for ONNX against transformers.js under node (FOLDER holds
node_modules with @huggingface/transformers; its generate() does not tell vision from prefill).
hybrid: two threads, whole answers: 5 tiles and 32 tokens, 1 tile and 128 tokens.

All arms of a table run in turn, round after round, and medians are compared, so that a busy machine slows all of them.
Not timed: loading, and for one tile the cutting of the picture (llama.cpp always cuts an Idefics3 picture into tiles
and an overview: there only the overview is encoded and read). Model outputs mean nothing with random weights; end
tokens are switched off so that every arm makes the same number of tokens.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
from align import machine
from PIL import Image
from runtime_arms import Arm, NodeArm, Times, bare_llama_arm, bare_onnx_arm, open_vlm, torch_arm, vlm_arm

from mpa_edge.artifact import read_artifact

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SHORT = "What is it?"
PARTS = ("vision_s", "prefill_s", "decode_s")


def drawn(width: int, height: int) -> Image.Image:
    """A picture of nothing in particular."""
    return Image.effect_noise((width, height), 80).convert("RGB")


def interleaved(arms: dict[str, Arm], n: int, rounds: int) -> dict[str, list[Times]]:
    """Every arm in turn, `rounds` times after one that does not count, every other time backwards; times by arm."""
    times: dict[str, list[Times]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in sorted(arms, reverse=number % 2 == 1):
            found = arms[name](n)
            if number:
                times[name].append(found)
                click.echo(f"  {name}: {found['total_s']:.3f} s", err=True)
    return times


def medians(found: dict[str, list[Times]]) -> dict[str, Times]:
    """Median of each part, by arm."""
    return {
        name: {key: round(statistics.median(row[key] for row in rows), 5) for key in rows[0]}
        for name, rows in found.items()
    }


def ratio(found: dict[str, list[Times]], one: str, other: str, parts: tuple[str, ...]) -> float:
    """Median over the rounds of what one arm took over what the other took in the same round."""
    pairs = zip(found[one], found[other], strict=True)
    return round(statistics.median(sum(a[p] for p in parts) / sum(b[p] for p in parts) for a, b in pairs), 4)


def compared(found: dict[str, list[Times]], n: int) -> dict[str, Any]:
    """Speeds, and what our VLM takes over the bare loop: 1.02 is 2 % more."""
    over = {part: ratio(found, "vlm", "bare", (part,)) for part in PARTS} | {
        "whole": ratio(found, "vlm", "bare", PARTS)
    }
    speeds = {name: round((n - 1) / one["decode_s"], 1) for name, one in medians(found).items()}
    return {"seconds": medians(found), "over_bare": over, "decode_tokens_s": speeds}


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.argument("checkpoint", type=FOLDER)
@click.argument("exports", type=FOLDER, nargs=-1, required=True)
@click.option("--node", type=FOLDER, help="Folder that holds node_modules.  [default: no node arm]")
@click.option("--tokens", default=64, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--quick", is_flag=True, help="2 rounds of 8 tokens, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def loops(
    checkpoint: Path, exports: tuple[Path, ...], node: Path | None, tokens: int, rounds: int, quick: bool, as_json: bool
) -> None:
    """VLM against bare loop, torch and node, one thread."""
    tokens, rounds = (8, 2) if quick else (tokens, rounds)
    tables = {}
    for folder in exports:
        click.echo(folder.name, err=True)
        arms = loop_arms(checkpoint, folder, node)
        tables[folder.name] = compared(interleaved(arms, tokens, rounds), tokens)
        for arm in arms.values():
            if isinstance(arm, NodeArm):
                arm.close()
    show({"threads": 1, "tokens": tokens, "rounds": rounds, "machine": machine(), "exports": tables}, as_json)


def loop_arms(checkpoint: Path, folder: Path, node: Path | None) -> dict[str, Arm]:
    """All arms of one folder."""
    vlm = open_vlm(folder, 1, one_tile=True)
    edge = vlm.artifact.image["max_image_size"]["longest_edge"]
    image = drawn(edge, edge)
    if vlm.artifact.format == "onnx":
        arms: dict[str, Any] = {"vlm": vlm_arm(vlm, image), "bare": bare_onnx_arm(vlm, image)}
        if node:
            arms["node"] = NodeArm(vlm, image, node, 1)
    else:
        arms = {"vlm": vlm_arm(vlm, image), "bare": bare_llama_arm(vlm, image)}
    return {**arms, "torch": torch_arm(checkpoint, vlm, image, 1)}


@main.command()
@click.argument("exports", type=FOLDER, nargs=-1, required=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--quick", is_flag=True, help="2 rounds, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def hybrid(exports: tuple[Path, ...], threads: int, rounds: int, quick: bool, as_json: bool) -> None:
    """Whole answers of a hybrid export and of single runtimes; name one folder of each format."""
    rounds = 2 if quick else rounds
    formats = {read_artifact(folder).format: folder for folder in exports}
    if sorted(formats) != ["gguf", "hybrid", "onnx"]:
        raise click.UsageError("name one hybrid, one gguf and one onnx folder")
    cases = {}
    for tiles, tokens in ((5, 32), (1, 128)):
        click.echo(f"{tiles} tiles, {tokens} tokens", err=True)
        vlms = {name: open_vlm(folder, threads, tiles == 1) for name, folder in formats.items()}
        arms = {name: vlm_arm(vlm, drawn(*size_of(tiles, vlm.artifact.image)), SHORT) for name, vlm in vlms.items()}
        found = interleaved(arms, tokens, rounds)
        parts = PARTS if tiles == 1 else ("preprocess_s", *PARTS)
        gains = {name: ratio(found, name, "hybrid", parts) for name in ("gguf", "onnx")}
        cases[f"{tiles} tiles + {tokens} tokens"] = {"seconds": medians(found), "hybrid_is_faster_by": gains}
        for vlm in vlms.values():
            vlm.close()
    show({"threads": threads, "rounds": rounds, "machine": machine(), "cases": cases}, as_json)


def size_of(tiles: int, image: dict[str, Any]) -> tuple[int, int]:
    """(width, height) of a picture that becomes so many tiles, the overview counted."""
    longest, edge = image["size"]["longest_edge"], image["max_image_size"]["longest_edge"]
    shapes = {1: {edge: (edge, edge)}, 5: {2 * edge: (2 * edge, 2 * edge), 4 * edge: (4 * edge, edge)}}
    if longest not in shapes[tiles]:
        raise click.UsageError(f"no picture becomes {tiles} tiles with longest_edge {longest} and tiles of {edge}")
    return shapes[tiles][longest]


def show(document: dict[str, Any], as_json: bool) -> None:
    """One JSON document, or the same with line breaks."""
    click.echo(json.dumps(document, indent=None if as_json else 1))


if __name__ == "__main__":
    main()
