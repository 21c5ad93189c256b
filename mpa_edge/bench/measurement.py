"""What is measured: one model in one scheme on one device, and where its results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpa_edge.config.accelerator import AUTO
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.target import Target
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import sha256_json
from mpa_edge.types import Sample

FOLDER, SOAK_FOLDER = "bench", "soak"
ANSWERED, DEVICE = ".answers", "device"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    questions: int = 200
    """Asked once each, for the accuracy."""
    timed: int = 10
    """Of these, asked repeatedly for the timing, alternating with base."""
    repetitions: int = 5
    """Of each timed question."""

    def __post_init__(self) -> None:
        if self.timed > self.questions:
            raise MpaError(f"--timed {self.timed} is more than --questions {self.questions}: ask for fewer")


@dataclass(frozen=True)
class Reach:
    """How to reach the device, and what runs there."""

    via: str | None = None
    """local, ssh://USER@HOST, adb://SERIAL; None: this machine."""
    root: str | None = None
    """Working directory on the device; None: the transport's own."""
    python: str | None = None
    """Python there; None: python3, or this interpreter where the device is this machine."""
    server: str | None = None
    """llama-server there; None: the target's, and only where Python cannot answer."""


@dataclass(frozen=True)
class Bench:
    """One benchmark."""

    run: Path
    """The run folder."""
    recipe: Recipe
    """Recipe of the run: task, prompt, limits of images and answers."""
    target: Target
    """Board, budgets, threads, thermal rules."""
    scheme: str
    """Name of the scheme."""
    artifact: Path
    """Folder of the exported model."""
    base: Path | None
    """Folder of base exported in the same scheme; None: its timings are not measured."""
    reach: Reach = field(default_factory=Reach)
    """The device."""
    effort: Effort = field(default_factory=Effort)
    """How much is measured."""
    threads: int | None = None
    """CPU threads of the runtime on the device; None: the target's."""
    accelerator: str = AUTO
    """The one that must compute; auto: the first of the target's that the device has."""
    label: str | None = None
    """Folder of the results below the target's; None: the scheme's name."""
    refused: tuple[str, ...] = ()
    """Schemes that were tried for the export before this one, each with the reason against it."""

    @property
    def results(self) -> Path:
        """Where bench.json goes: an accelerator that was named has results of its own."""
        named = self.scheme if self.accelerator == AUTO else f"{self.scheme}-{self.accelerator}"
        return self.run / FOLDER / self.target.name / (self.label or named)

    @property
    def device_threads(self) -> int | None:
        """Of the runtime."""
        return self.threads or self.target.cpu.threads

    @property
    def accelerators(self) -> tuple[str, ...]:
        """In order of preference."""
        return self.target.accelerators if self.accelerator == AUTO else (self.accelerator,)

    def inputs(self, bundle_sha256: str) -> str:
        """Hash of everything that the results depend on."""
        return sha256_json(
            {
                "bundle": bundle_sha256,
                "effort": vars(self.effort),
                "threads": self.device_threads,
                "accelerators": self.accelerators,
                "target": self.target.model_dump(mode="json"),
                "reach": vars(self.reach),
            }
        )


def spread(samples: Sequence[Sample], n: int) -> tuple[str, ...]:
    """Ids of n questions, evenly over the list, and so over the kinds of a generated set.

    >>> spread([Sample(id=str(i), image="a", question="q", answers=("x",)) for i in range(10)], 3)
    ('0', '3', '6')
    """
    return tuple(samples[i * len(samples) // n].id for i in range(n))
