"""What exporting a 2B model needs: Qwen2-VL-2B's published sizes with random weights, peak memory and seconds.

    python benchmarks/large_export.py --out docs/large_export.json
    python benchmarks/large_export.py --out /tmp/small.json --layers 4 --vision-layers 4

The checkpoint is written in bfloat16, in shards, as it is published; its tokenizer is that of the tests, its words take
the first rows of the full vocabulary. Each scheme is made by the command, in a process of its own, gate included. Every
half second the proportional set size (PSS) of the command and all its children is added up, so that memory which two
processes share counts once; mapped files count where they are in memory. Takes 20 minutes and 25 GB of disk. With
--scheme, a scheme that is not made again keeps its figures.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from common import DOCS, ROOT, Document, command, machine, marked, read, remember

SCHEMES = ("onnx-int8", "gguf-q4_k_m")
TEXT = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
VISION = {"embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
INTERVAL_S = 0.5
SURENESS = 0.06
"""Of the last norm: logits with a standard deviation of 2.4."""


def build(folder: Path, layers: int, vision_layers: int, seed: int = 0) -> None:
    """Write the checkpoint. Call it in a process of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    sys.path.insert(0, str(ROOT))
    from mpa_edge.vlm.transformers.checkpoint import load_processor
    from tests.families import zoo

    tiny = zoo.checkpoint("qwen2_vl")
    config, processor = AutoConfig.from_pretrained(tiny), load_processor(str(tiny))
    for part, sizes in ((config.text_config, TEXT), (config.vision_config, VISION)):
        for key, value in sizes.items():
            setattr(part, key, value)
    config.text_config.num_hidden_layers, config.vision_config.depth = layers, vision_layers
    config.text_config.layer_types = ["full_attention"] * layers
    config.text_config.head_dim = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    config.text_config.rope_parameters["mrope_section"] = [16, 24, 24]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name or "ln_q" in name else 0.0)
                if "bias" in name:
                    parameter.zero_()
                continue
            gain = 1.0 if "embed_tokens" in name else parameter[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                gain *= (2 * (vision_layers if "visual" in name else layers)) ** -0.5
            parameter.normal_(0, gain, generator=random)
        model.model.language_model.norm.weight.fill_(SURENESS)
    for key in ("bos", "eos", "pad"):
        setattr(model.generation_config, f"{key}_token_id", getattr(processor.tokenizer, f"{key}_token_id"))
    model.save_pretrained(folder, max_shard_size="4GB")
    processor.save_pretrained(folder)


def measured(words: list[str]) -> Document:
    """Run a command; its exit code, seconds, and the peaks of the memory of all its processes."""
    started, peaks = time.monotonic(), {"Pss": 0, "Pss_Anon": 0}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        found = memory_kib(process.pid)
        peaks = {name: max(peak, found[name]) for name, peak in peaks.items()}
        time.sleep(INTERVAL_S)
    return {
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - started),
        "peak_gb": round(peaks["Pss"] * 1024 / 1e9, 2),
        "peak_without_files_gb": round(peaks["Pss_Anon"] * 1024 / 1e9, 2),
    }


def memory_kib(root: int) -> dict[str, int]:
    """PSS of a process and all its descendants, with and without mapped files."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    ours = {root}
    while more := {one for one, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = {"Pss": 0, "Pss_Anon": 0}
    for one in ours:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        for name, _, value in (line.partition(":") for line in lines):
            if name in total:
                total[name] += int(value.split()[0])
    return total


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON document for the results.")
@click.option("--layers", default=28, show_default=True, help="Of the language model.")
@click.option("--vision-layers", default=32, show_default=True, help="Of the vision encoder.")
@click.option("--scheme", "schemes", multiple=True, default=SCHEMES, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for checkpoint and exports, removed at the end.")
def main(out: Path, layers: int, vision_layers: int, schemes: tuple[str, ...], work: Path | None) -> None:
    """Make the checkpoint, export it in each scheme, and write down what that took."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="large-export-", dir=work))
    try:
        checkpoint = folder / "checkpoint"
        child = multiprocessing.get_context("spawn").Process(target=build, args=(checkpoint, layers, vision_layers))
        child.start()
        child.join()
        found: dict[str, Any] = {}
        for scheme in schemes:
            words = [sys.executable, "-m", "mpa_edge", "export", str(checkpoint), "--as", scheme]
            found[scheme] = measured([*words, "--out", str(folder / "exports"), "--json"])
            click.echo(f"{scheme}: {found[scheme]}")
            shutil.rmtree(folder / "exports", ignore_errors=True)
        checkpoint_gb = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 1e9
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {"layers": layers, "vision_layers": vision_layers, "checkpoint_gb": round(checkpoint_gb, 2)}
    typed = command("large_export.py", sys.argv[1:], without=("--work", "--scheme"))
    earlier = read(out).get("qwen2-vl-2b", {})
    kept = {scheme: earlier[scheme] for scheme in SCHEMES if sizes.items() <= earlier.items() and scheme in earlier}
    document = {**sizes, **kept, **found, "command": typed, **machine()}
    remember(out, "qwen2-vl-2b", document)
    if out.resolve() == (DOCS / "large_export.json").resolve():
        for page in (ROOT / "README.md", DOCS / "export.md"):
            page.write_text(marked(page.read_text(), "large", sentence(document)))


def sentence(document: Document) -> str:
    """What the documents say."""
    told = [
        f"`{scheme}` takes {found['peak_gb']:.1f} GB of memory and {found['seconds'] / 60:.0f} minutes"
        for scheme, found in ((name, document[name]) for name in SCHEMES)
    ]
    return (
        f"Exporting a 2B model (Qwen2-VL-2B's sizes, bf16, {document['checkpoint_gb']:.1f} GB), with verification, on "
        f"{document['cores']} cores\n(`python benchmarks/large_export.py --out docs/large_export.json`):\n"
        f"{', '.join(told)}.\n"
    )


if __name__ == "__main__":
    main()
