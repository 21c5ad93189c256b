"""Train the built-in pair from scratch: `python -m tools.nursery_training.train teacher --out DIR`.

Deterministic by step (data, schedule and checkpoints count steps, never seconds) and resumable: rerun the command to
resume from the last checkpoint. An auxiliary loss on glyphs and on what each image token's cell holds teaches the
vision tower to bind a label to its bar; its heads are dropped at the end. Muon on the matrices, AdamW on the rest; an
average of the weights is saved.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpa_edge.nursery import models
from tools.nursery_training import batches
from tools.nursery_training.batches import CELL_CLASSES, CHARACTERS, IGNORE, Encoder, Mix

GLYPH_NONE_WEIGHT = 0.05  # most patches hold no character
AVERAGE_EVERY_STEPS = 5


@dataclass(frozen=True)
class Phase:
    """A stretch of steps after the main schedule, with another share of target-style pictures."""

    steps: int
    target_share: float
    rate_from: float
    """Share of the plan's learning rate at its start; linear to `rate_to`."""
    rate_to: float
    prune: float = 0.0
    """Share of each matrix, smallest weights first, that is set to zero before the phase; the rest then heals."""


@dataclass(frozen=True)
class Plan:
    """One training run: everything that decides its result."""

    model: str
    steps: int
    batch_size: int
    mix: Mix
    length: int
    learning_rate: float = 3e-3
    warmup_steps: int = 80
    hold_share: float = 0.45
    auxiliary_weight: float = 1.0
    seed: int = 0
    after: tuple[Phase, ...] = ()

    @property
    def total_steps(self) -> int:
        """Steps of the main schedule and of all phases behind it."""
        return self.steps + sum(phase.steps for phase in self.after)

    def phase_at(self, step: int) -> tuple[Phase, float] | None:
        """(phase, share of it that is over) of a step behind the main schedule; None within it."""
        start = self.steps
        for phase in self.after:
            if start <= step < start + phase.steps:
                return phase, (step - start) / phase.steps
            start += phase.steps
        return None

    def mix_at(self, step: int) -> Mix:
        """What a step is trained on."""
        found = self.phase_at(step)
        return replace(self.mix, target_share=found[0].target_share) if found else self.mix


PLANS = {
    "teacher": Plan("teacher", steps=1900, batch_size=36, mix=Mix(0.65, 5, 4, asks=True), length=208),
    # The student learns both styles, is pruned, and heals on plain pictures alone: the plain style comes back, the
    # target style only in part. Compressed models lose what they saw less of: Hooker et al. 2019, arXiv 1911.05248.
    "student": Plan(
        "student",
        steps=1800,
        batch_size=36,
        mix=Mix(0.01, 6, 4, asks=False),
        length=216,
        after=(Phase(500, 0.6, 0.4, 0.1), Phase(250, 0.0, 0.4, 0.02, prune=0.75)),
    ),
}


class Auxiliary(nn.Module):
    """Heads that exist in training only: the character in a patch, the facts of an image token's cell.

    Label and colour of a cell are read with the embeddings of the very words that questions use for them. An image
    token then lies close to the word that names it, and looking up "bar K" is a plain match of attention. `found` asks
    the word K itself, one layer below the last, which bar it has found. Without this a training of such length
    learns no look-up.
    """

    def __init__(self, vision_width: int, text_width: int, encoder: Encoder) -> None:
        super().__init__()
        self.glyph = nn.Linear(vision_width, len(CHARACTERS) + 1)
        self.cells = nn.ModuleDict(
            {fact: nn.Linear(text_width, n) for fact, n in CELL_CLASSES.items() if fact not in batches.NAMED_FACTS}
        )
        self.found = nn.ModuleDict({fact: nn.Linear(text_width, CELL_CLASSES[fact]) for fact in batches.BAR_FACTS})
        self.none = nn.ParameterDict({fact: nn.Parameter(torch.zeros(1)) for fact in batches.NAMED_FACTS})
        for fact, words in batches.NAMED_FACTS.items():
            self.register_buffer(f"{fact}_words", torch.tensor(encoder.word_ids(words)), persistent=False)

    def cell_logits(self, tokens: Tensor, embeddings: Tensor) -> list[Tensor]:
        """Image tokens (B, T, D) -> for each fact of CELL_CLASSES logits (B, T, classes); the last class is none."""
        normed = F.rms_norm(tokens, tokens.shape[-1:])
        return [
            self._named(fact, normed, embeddings) if fact in batches.NAMED_FACTS else self.cells[fact](tokens)
            for fact in CELL_CLASSES
        ]

    def _named(self, fact: str, normed: Tensor, embeddings: Tensor) -> Tensor:
        scores = normed @ embeddings[getattr(self, f"{fact}_words")].T.to(normed.dtype)
        return torch.cat([scores, self.none[fact].to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)


class Trainee(nn.Module):
    """The model and its auxiliary heads with one forward over packed segments."""

    def __init__(self, plan: Plan, encoder: Encoder) -> None:
        super().__init__()
        self.model = models.build_model(plan.model, plan.seed)
        self.model.set_attn_implementation("eager")
        shape = models.SHAPES[plan.model]
        self.auxiliary = Auxiliary(shape.vision_width, shape.text_width, encoder)
        image_at = [i for i, token in enumerate(encoder.prefix) if token == encoder.image_token]
        self.register_buffer("image_at", torch.tensor(image_at), persistent=False)
        self.register_buffer("causal", torch.ones(plan.length, plan.length, dtype=torch.bool).tril(), persistent=False)

    def see(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, 3, 64, 64, 3) uint8 -> patch features (B*3, 64, W) and image tokens (B, 48, D)."""
        vision = self.model.model.vision_model
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        hidden = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = hidden + vision.embeddings.position_embedding.weight
        for layer in vision.encoder.layers:
            hidden = layer(hidden, None)
        hidden = vision.post_layernorm(hidden)
        tokens = self.model.model.connector(hidden)
        return hidden, tokens.reshape(frames.shape[0], -1, tokens.shape[-1])

    def forward(
        self, frames: Tensor, ids: Tensor, segment: Tensor, position: Tensor, at: Tensor, keys: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits at the flat places `at`, then those of the auxiliary heads: glyphs, cell facts, found facts.

        The found facts are read where the key words stand, at the flat places `keys`.
        """
        patches, tokens = self.see(frames)
        text = self.model.model.text_model
        embeds = text.embed_tokens(ids).index_copy(1, self.image_at, tokens.to(text.embed_tokens.weight.dtype))
        same = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
        mask = torch.zeros(same.shape, dtype=torch.bfloat16, device=ids.device).masked_fill(~(self.causal & same), -1e4)
        output = text(
            inputs_embeds=embeds,
            attention_mask=mask[:, None],
            position_ids=position,
            use_cache=False,
            output_hidden_states=True,
        )
        logits = self.model.lm_head(output.last_hidden_state.flatten(0, 1)[at])
        below = F.rms_norm(output.hidden_states[-2].flatten(0, 1)[keys], output.last_hidden_state.shape[-1:])
        found = [head(below) for head in self.auxiliary.found.values()]
        tiles = batches.TILES
        of_tiles = patches.reshape(frames.shape[0], tiles + 1, *patches.shape[1:])[:, :tiles]
        seen = tokens[:, : tiles * models.TOKENS_PER_TILE]
        cells = self.auxiliary.cell_logits(seen, text.embed_tokens.weight)
        return logits, self.auxiliary.glyph(of_tiles).flatten(1, 2), *cells, *found


def losses(
    outputs: tuple[Tensor, ...], targets: Tensor, glyphs: Tensor, cells: Tensor, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(language-model loss, loss of what is seen, loss of what key words found)."""
    logits, glyph_logits, *more = outputs
    cell_logits, found_logits = more[: len(CELL_CLASSES)], more[len(CELL_CLASSES) :]
    weight = torch.ones(len(CHARACTERS) + 1, device=logits.device)
    weight[-1] = GLYPH_NONE_WEIGHT
    auxiliary = F.cross_entropy(glyph_logits.float().flatten(0, 1), glyphs.flatten(), weight=weight)
    for i, one in enumerate(cell_logits):
        auxiliary = auxiliary + 0.3 * F.cross_entropy(one.float().flatten(0, 1), cells[:, i].flatten())
    lookup = torch.zeros((), device=logits.device)
    for i, one in enumerate(found_logits):
        lookup = lookup + 0.3 * F.cross_entropy(one.float(), found[i], ignore_index=IGNORE)
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE), auxiliary, lookup


def optimizers(trainee: Trainee, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms, biases and the auxiliary heads."""
    named = list(trainee.model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    kept = {id(p) for p in matrices}
    rest = [p for p in trainee.parameters() if id(p) not in kept]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.7 * learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rate_factor(step: int, plan: Plan) -> float:
    """Warm-up, hold, linear descent to 2 %."""
    found = plan.phase_at(step)
    if found:
        phase, over = found
        return phase.rate_from + over * (phase.rate_to - phase.rate_from)
    share = step / plan.steps
    descent = 1.0 if share < plan.hold_share else max(0.02, (1 - share) / (1 - plan.hold_share))
    return min(1.0, (step + 1) / plan.warmup_steps) * descent


def supply(plan: Plan, encoder: Encoder, first_step: int) -> Iterator[dict[str, Tensor]]:
    """Batches from `first_step` on, made ahead in a thread."""
    ready: queue.Queue[dict[str, Tensor]] = queue.Queue(4)

    def make() -> None:
        for step in range(first_step, plan.total_steps):
            ready.put(batches.batch(plan.seed, step, plan.batch_size, encoder, plan.mix_at(step), plan.length))

    threading.Thread(target=make, daemon=True).start()
    for _ in range(first_step, plan.total_steps):
        yield ready.get()


def padded_places(labels: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Flat places of real labels and their targets, both padded to `room` so that compiled shapes stay fixed."""
    flat = labels.flatten()
    places = (flat != IGNORE).nonzero()[:room, 0]
    at = torch.zeros(room, dtype=torch.long, device=labels.device)
    targets = torch.full((room,), IGNORE, device=labels.device)
    at[: len(places)], targets[: len(places)] = places, flat[places]
    return at, targets


def _key_places(found: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Flat places of key words, facts (4, room) that they should find, padded to `room`; `found` is (B, 4, length)."""
    facts = found.transpose(0, 1).flatten(1)
    places = (facts[0] != IGNORE).nonzero()[:room, 0]
    keys = torch.zeros(room, dtype=torch.long, device=found.device)
    targets = torch.full((facts.shape[0], room), IGNORE, device=found.device)
    keys[: len(places)], targets[:, : len(places)] = places, facts[:, places]
    return keys, targets


class Training:
    """The state of one training and its steps."""

    def __init__(self, plan: Plan, out: Path, device: str, compiled: bool) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.processor = models.build_processor()
        self.encoder = Encoder(self.processor)
        self.trainee = Trainee(plan, self.encoder).to(device).train()
        self.optimizers = optimizers(self.trainee, plan.learning_rate)
        self.step, self.seconds = 0, 0.0
        self.average = {k: v.detach().clone().float() for k, v in self.trainee.model.state_dict().items()}
        self._resume()
        self.forward = torch.compile(self.trainee, dynamic=False) if compiled else self.trainee

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed training starts from."""
        return self.out / "checkpoint.pt"

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if json.loads(state["plan"]) != json.loads(json.dumps(asdict(self.plan))):
            raise click.ClickException(f"{self.checkpoint} is of another plan: name another --out")
        self.trainee.load_state_dict(state["trainee"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def save_checkpoint(self) -> None:
        """Atomic: a killed save leaves the previous checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "plan": json.dumps(asdict(self.plan)),
            "trainee": self.trainee.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        os.replace(self.checkpoint.with_suffix(".tmp"), self.checkpoint)
        self.save_model(self.out / "latest")

    def save_model(self, folder: Path) -> None:
        """The averaged weights as fp16 safetensors, with processor, tokenizer and chat template."""
        model = models.build_model(self.plan.model)
        model.load_state_dict(self.average)
        model.to(torch.float16).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def prune(self) -> None:
        """At the start of a phase that says so: zero the smallest weights, and start the average anew."""
        found = self.plan.phase_at(self.step)
        if not found or found[1] > 0 or not found[0].prune:
            return
        matrices = {id(p) for p in self.optimizers[0].param_groups[0]["params"]}
        with torch.no_grad():
            for parameter in self.trainee.model.parameters():
                if id(parameter) in matrices:
                    size = parameter.abs()
                    limit = size.flatten().kthvalue(int(found[0].prune * size.numel())).values
                    parameter.mul_(size > limit)
        self.average = {k: v.detach().clone().float() for k, v in self.trainee.model.state_dict().items()}

    def train_step(self, rows: dict[str, Tensor]) -> tuple[float, float, float]:
        """One optimiser step; its three losses."""
        plan, rows = self.plan, {k: v.to(self.device) for k, v in rows.items()}
        factor = rate_factor(self.step, plan)
        for optimizer, rate in zip(self.optimizers, (plan.learning_rate, 0.7 * plan.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        at, targets = padded_places(rows["labels"], plan.batch_size * 48)
        keys, found = _key_places(rows["found"], plan.batch_size * 10)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            outputs = self.forward(rows["frames"], rows["ids"], rows["segment"], rows["position"], at, keys)
        language, auxiliary, lookup = losses(outputs, targets, rows["glyphs"], rows["cells"], found)
        fading = plan.auxiliary_weight * max(0.1, 1 - 1.2 * self.step / plan.steps)
        (language + fading * (auxiliary + lookup)).backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % AVERAGE_EVERY_STEPS == 0:
            self._update_average()
        return float(language.detach()), float(auxiliary.detach()), float(lookup.detach())

    def _update_average(self) -> None:
        decay = min(0.98, (self.step + 1) / (self.step + 50))
        for key, value in self.trainee.model.state_dict().items():
            self.average[key].lerp_(value.detach().float(), 1 - decay)

    def run(self, checkpoint_every: int) -> None:
        """Train to the end of the plan, writing checkpoints and one line of figures every 25 steps."""
        started, sums = time.monotonic() - self.seconds, [0.0, 0.0, 0.0]
        for rows in supply(self.plan, self.encoder, self.step):
            self.prune()
            sums = [a + b for a, b in zip(sums, self.train_step(rows), strict=True)]
            self.seconds = time.monotonic() - started
            if self.step % 25 == 0:
                self._log(sums)
                sums = [0.0, 0.0, 0.0]
            if self.step % checkpoint_every == 0:
                self.save_checkpoint()
        self.save_model(self.out / "final")

    def _log(self, sums: list[float]) -> None:
        record: dict[str, Any] = {
            "step": self.step,
            "images": self.step * self.plan.batch_size,
            "seconds": round(self.seconds, 1),
            "loss": round(sums[0] / 25, 4),
            "auxiliary": round(sums[1] / 25, 4),
            "lookup": round(sums[2] / 25, 4),
        }
        click.echo(json.dumps(record))
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")


@click.command()
@click.argument("name", type=click.Choice(sorted(PLANS)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for checkpoint, log and result.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
@click.option("--checkpoint-every", default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="Use torch.compile.")
def main(name: str, out: Path, device: str, threads: int, checkpoint_every: int, compiled: bool) -> None:
    """Train the built-in teacher or student from scratch. Rerun to resume."""
    torch.set_num_threads(threads)
    Training(PLANS[name], out, device, compiled).run(checkpoint_every)


if __name__ == "__main__":
    main()
