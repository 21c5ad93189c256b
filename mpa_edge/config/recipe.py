"""The recipe: how to align. All keys have defaults except schema_version, name, task, teacher and student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mpa_edge.config.section import Section
from mpa_edge.config.task import TOKENS, TaskConfig

if TYPE_CHECKING:
    from typing import Self  # novm

PILLOW_PIXEL_CAP = 89_478_485
SERVER_PREFIX = "openai:"
Style = Literal["target", "plain", "mixed"]

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Tokens = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
NAME_TAG, SECTION_TAG = "<name>", "<section>"


def _named_or_written(task: object) -> str:
    return SECTION_TAG if isinstance(task, dict | TaskConfig) else NAME_TAG


TaskChoice = Annotated[
    Annotated[str, Field(min_length=1), Tag(NAME_TAG)] | Annotated[TaskConfig, Tag(SECTION_TAG)],
    Discriminator(_named_or_written),
]


class RenderConfig(Section):
    """Unlabelled images drawn by the built-in generator."""

    n: Count = 1000
    """Number of images."""
    seed: Seed = 7
    """Seed of the generator; must differ from evaluate.seed."""
    style: Style = "target"
    """Look of the charts."""


class ImagesConfig(Section):
    """Where the unlabelled images come from: a folder, or the generator; `--images DIR` overrides both."""

    path: str | None = None
    """Folder of images, relative to where the command runs."""
    render: RenderConfig | None = None
    """Draw the images instead."""
    split: str | None = None
    """Only the images of this split of the task's benchmark, whose files are in the folder; null: all of them."""
    max_pixels: int = Field(PILLOW_PIXEL_CAP, ge=1024, le=2 * PILLOW_PIXEL_CAP)
    """Images with more pixels are dropped before they are decoded."""
    group: Literal["auto", "folder", "none"] = "auto"
    """What is held out as a whole: near-duplicates, the images of one folder, or each image by itself."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.render is not None:
            raise ValueError("images has both path and render: keep one (--set images.render=null drops the other)")
        if self.split is not None and self.render is not None:
            raise ValueError("images has both split and render: drawn images have no splits, keep one")
        return self


class AnnotateConfig(Section):
    """Pseudo Annotator: the teacher writes questions and answers."""

    samples_per_image: int = Field(4, ge=1, le=256)
    """Annotations asked for each image; duplicates are removed."""
    temperature: float = Field(1.0, ge=0.0, le=5.0)
    """Of the teacher when it writes questions; 0 is greedy."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Nucleus mass when it writes questions."""
    votes: int = Field(1, ge=0, le=32)
    """How often the teacher answers its own question, greedy first; 0 is never."""
    max_new_tokens: Tokens = 128
    """For one question with its answer."""
    batch_size: BatchSize = 256
    """Largest batch. The first has 32 requests; it grows while memory allows and is halved when memory runs out."""
    shard_size: int = Field(100, ge=1, le=100_000)
    """Images in one shard; a crash loses at most one shard."""


class IdentifyConfig(Section):
    """Parity Identifier: both models answer; what only the teacher knows is the gap."""

    batch_size: BatchSize = 256
    """Largest batch. The first has 32 requests; it grows while memory allows and is halved when memory runs out."""
    max_new_tokens: Tokens = 16
    """For one short answer; evaluation uses the same."""


class LevelConfig(Section):
    """Parity Leveler: fine-tune the student on the gap."""

    method: Literal["lora", "full"] = "lora"
    """Adapter or all weights."""
    rank: int = Field(16, ge=1, le=1024)
    """Rank of the LoRA matrices."""
    alpha: int = Field(32, ge=1, le=4096)
    """LoRA scale: alpha / rank, with rslora alpha / sqrt(rank)."""
    dropout: Share = 0.0
    """On the adapter's input."""
    rslora: bool = False
    """Rank-stabilised scale."""
    dora: bool = False
    """Weight-decomposed LoRA."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; auto: bf16 on a GPU, fp32 on a CPU. Trained weights stay in fp32."""
    quantize: Literal["nf4"] | None = None
    """QLoRA: the frozen language model in four bits while the adapter learns; needs bitsandbytes."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them: far less memory, a third more time."""
    liger: bool = False
    """Liger's fused kernels, on a GPU; needs liger-kernel."""
    targets: tuple[Literal["language", "vision", "connector"], ...] = Field(
        ("language",), min_length=1, max_length=3, strict=False
    )
    """Parts of the student that are tuned."""
    learning_rate: float = Field(5.0e-4, gt=0.0, le=1.0)
    """Peak rate; linear warm-up, then cosine to zero."""
    batch_size: BatchSize = 32
    """Samples in one optimiser step."""
    epochs: float = Field(3.0, gt=0.0, le=1000.0)
    """Passes over the chosen samples."""
    max_steps: Count | None = None
    """Optimiser steps; overrides epochs."""
    warmup_steps: int = Field(10, ge=0, le=1_000_000)
    """Steps until the peak rate."""
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    """Weight decay of AdamW."""
    replay: float = Field(0.2, ge=0.0, le=10.0)
    """Parity items added against forgetting, as a share of the gap."""
    strength: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the weight change that is kept: below 1 the student forgets less, and often gains more."""
    subset: Literal["gap", "all", "random", "verified"] = "gap"
    """What to train on; all but gap are for ablations (random: as many of all as the gap has)."""
    labelled: str | None = None
    """Rows of your own with known answers, .csv or .jsonl (image, question, answers), added to the gap in training."""
    holdout: float = Field(0.1, ge=0.0, le=0.5)
    """Share of the gap kept for early stopping; never labelled data."""
    patience: int = Field(3, ge=0, le=1000)
    """Evaluations without improvement before training stops; 0 is never."""
    eval_steps: int = Field(20, ge=1, le=1_000_000)
    """Steps between two evaluations on the held-out share."""
    save_steps: int = Field(20, ge=1, le=1_000_000)
    """Steps between two checkpoints."""
    min_gap: int = Field(32, ge=1, le=1_000_000)
    """Nothing is trained on fewer gap items."""

    @model_validator(mode="after")
    def _adapter_options(self) -> Self:
        if self.method == "full" and (self.dora or self.rslora):
            raise ValueError("level has method full with rslora or dora: those need method: lora")
        if self.quantize and (self.method == "full" or self.dora):
            raise ValueError("level.quantize needs method lora without dora: four bits cannot be trained themselves")
        if self.dora and self.strength < 1:
            raise ValueError("level has dora with strength below 1: a DoRA update cannot be scaled, use strength: 1.0")
        return self


class EvaluateConfig(Section):
    """Held-out questions: teacher, base and aligned answer the same ones."""

    n: Count = 1000
    """Questions the generator makes (or the first n of the file, the benchmark or the teacher's)."""
    seed: Seed = 1_000_003
    """Seed of the generator; must differ from images.render.seed."""
    style: Style = "target"
    """Look of the generated charts."""
    questions: str | None = None
    """JSON lines {"id", "image", "question", "answers", "kind"} or a CSV file; null: generated or by the teacher."""
    benchmark: str | None = None
    """textvqa, stvqa, chartqa or okvqa: read its published files from `data`."""
    data: str | None = None
    """Folder of the benchmark's files, a parquet file, or a data set id OWNER/NAME on a hub."""
    split: str | None = None
    """Of the benchmark; null: the one that the paper uses."""
    batch_size: BatchSize = 256
    """Largest batch. The first has 32 requests; it grows while memory allows and is halved when memory runs out."""
    bootstrap: int = Field(2000, ge=100, le=1_000_000)
    """Resamples of the images behind the interval."""
    holdout: float = Field(0.1, ge=0.0, le=0.5)
    """Without questions and benchmark: share of the images about which the teacher writes the questions; 0: none."""
    votes: int = Field(5, ge=1, le=32)
    """How often the teacher answers such a question; what it does not say every time is left out."""

    @property
    def generated(self) -> bool:
        """Whether the recipe names no questions."""
        return self.questions is None and self.benchmark is None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.questions is not None and self.benchmark is not None:
            raise ValueError("evaluate has both questions and benchmark: keep one")
        if (self.benchmark is None) != (self.data is None) or (self.split and not self.benchmark):
            raise ValueError("evaluate.benchmark, data and split belong together: give benchmark and data, or neither")
        return self


class TeacherServerConfig(Section):
    """How a teacher on a server (`teacher: openai:BASE_URL#MODEL`) is asked; ignored for a local teacher."""

    concurrency: int = Field(16, ge=1, le=1024)
    """Concurrent requests."""
    timeout_s: float = Field(120.0, gt=0.0, le=3600.0)
    """For one attempt, from the first byte sent to the last byte read, seconds."""
    retries: int = Field(4, ge=0, le=20)
    """Further attempts after an error or a time-out; rate limits (429) do not count as attempts."""
    deadline_s: float = Field(600.0, gt=0.0, le=86_400.0)
    """For one request with all its attempts and the waits between them, seconds."""
    wait_s: float = Field(600.0, ge=0.0, le=86_400.0)
    """How long to wait for a server that is loading or does not respond, seconds."""
    probe_s: float = Field(5.0, gt=0.0, le=600.0)
    """Pause between two checks of a server that does not respond, seconds."""
    max_failed: Share = 0.2
    """Share of failed rows in one shard above which the run stops."""
    image_format: Literal["png", "jpeg"] = "png"
    """png: lossless; jpeg (quality 95): several times smaller for photographs."""
    max_image_bytes: int = Field(5_000_000, ge=1_000, le=100_000_000)
    """A larger file is sent as JPEG, and scaled down in steps until it fits."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the token limit in requests; some hosted servers need max_completion_tokens."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*_API_KEY$")] | None = None
    """Environment variable that holds the key; null: OPENAI_API_KEY, sent over https or to this machine only."""
    price_in: Annotated[float, Field(ge=0.0, le=1.0e6)] | None = None
    """Price of a million tokens of prompt and image, in your currency."""
    price_out: Annotated[float, Field(ge=0.0, le=1.0e6)] | None = None
    """Price of a million tokens of answer."""
    max_cost: Annotated[float, Field(gt=0.0, le=1.0e9)] | None = None
    """Stop before the run spends more on its teacher; `--max-cost` sets it."""

    @model_validator(mode="after")
    def _prices(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("teacher_server has one of price_in and price_out: give both, or none")
        if self.max_cost is not None and self.price_in is None:
            raise ValueError("teacher_server.max_cost needs prices: add teacher_server.price_in and price_out")
        return self


class EngineConfig(Section):
    """How annotate and identify handle failed shards, and the actors of `--engine ray`."""

    actors: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Actors of the Ray engine, one model each; null: one for each GPU (with gpus_per_actor), or for each machine."""
    gpus_per_actor: Annotated[float, Field(ge=0.0, le=64.0)] | None = None
    """GPUs of one actor; null: one where the cluster has some and `device` is not cpu."""
    cpus_per_actor: Annotated[float, Field(gt=0.0, le=1024.0)] | None = None
    """CPUs of one actor; null: one where it has a GPU, else all of the machine."""
    shard_tries: int = Field(3, ge=1, le=100)
    """How often a shard may fail before it is set aside."""
    error_budget: Share = 0.01
    """Share of the shards that may be set aside (at least one may) before the run stops; 0: none."""


class Recipe(Section):
    """How to align one student with one teacher on one task."""

    schema_version: Literal[1]
    """Of this document."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Lower case letters, digits, dot, dash, underscore."""
    title: str = ""
    """One-line description."""
    task: TaskChoice
    """A name (`mpa-edge list tasks`), the path of a task's YAML file, or its keys: what to ask, what an answer is."""
    teacher: str = Field(min_length=1)
    """nursery:teacher, a folder, a model id, or openai:BASE_URL#MODEL for a server."""
    student: str = Field(min_length=1)
    """nursery:student, a folder, or a model id."""
    seed: Seed = 0
    """Of sampling, shuffling and adapter initialisation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of the models; null: one for each core."""
    images: ImagesConfig = ImagesConfig()
    """The unlabelled images."""
    annotate: AnnotateConfig = AnnotateConfig()
    """Stage 1."""
    identify: IdentifyConfig = IdentifyConfig()
    """Stage 2."""
    level: LevelConfig = LevelConfig()
    """Stage 3."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Stage 5."""
    teacher_server: TeacherServerConfig = TeacherServerConfig()
    """Only for a teacher on a server."""
    engine: EngineConfig = EngineConfig()
    """How shards of annotate and identify are run."""

    @property
    def task_name(self) -> str:
        """Name of the task."""
        return self.task if isinstance(self.task, str) else self.task.name

    def with_room_for_answers(self) -> Recipe:
        """With as many new tokens as the answers of the recipe's own task need, where it does not say how many."""
        if isinstance(self.task, str):
            return self
        answer = self.task.answer.max_new_tokens
        identify, annotate = self.identify, self.annotate
        if "max_new_tokens" not in identify.model_fields_set and answer > identify.max_new_tokens:
            identify = identify.model_copy(update={"max_new_tokens": answer})
        if "max_new_tokens" not in annotate.model_fields_set and answer > TOKENS:
            annotate = annotate.model_copy(update={"max_new_tokens": annotate.max_new_tokens + answer - TOKENS})
        return self.model_copy(update={"identify": identify, "annotate": annotate})

    @property
    def silver(self) -> bool:
        """Whether the teacher writes the held-out questions: the generator's fit the built-in task only."""
        return self.evaluate.generated and self.task != "minicharts" and self.evaluate.holdout > 0

    @model_validator(mode="after")
    def _student_is_here(self) -> Self:
        if self.student.startswith(SERVER_PREFIX):
            raise ValueError("student is a server, and its weights must be trained: name a folder or a hub id")
        return self

    @model_validator(mode="after")
    def _disjoint_seeds(self) -> Self:
        render = self.images.render
        if render is not None and self.evaluate.generated and render.seed == self.evaluate.seed:
            raise ValueError(
                f"images.render.seed and evaluate.seed are both {render.seed}: the questions must be unseen, change one"
            )
        return self
