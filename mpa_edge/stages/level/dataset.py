"""What the student is shown when it learns: a picture, the prompt that everybody is asked with, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpa_edge.errors import MpaError
from mpa_edge.images.cache import PictureCache
from mpa_edge.images.folder import open_image
from mpa_edge.stages.level.answer_logits import IGNORE
from mpa_edge.stages.level.distill import SOFT, SoftLabel, stacked
from mpa_edge.stages.run import Run
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop, ParityRecord
from mpa_edge.vlm.transformers import checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class AnswerCollator:
    """Rows -> a padded batch whose labels cover the answer and its end token only."""

    def __init__(
        self, processor: Any, images_folder: Path, max_pixels: int, soft: Mapping[str, SoftLabel] | None = None
    ) -> None:
        self.processor, self.soft = processor, soft or {}
        self._open = PictureCache(lambda name: _open(images_folder / name, max_pixels))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Keys of the processor plus `labels` (rows, tokens), IGNORE outside the completion; padded on the right.

        With soft labels also what the loss needs of them, under SOFT.
        """
        texts = [row["prompt"] + row["completion"] for row in rows]
        batch = self.processor(
            text=texts,
            images=[[self._open(row["images"][0])] for row in rows],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        batch["labels"] = self._labels(batch, [row["completion"] for row in rows])
        soft = stacked(rows, batch["labels"], self.soft) if self.soft else {}
        return dict(batch) | ({SOFT: soft} if soft else {})

    def _labels(self, batch: Mapping[str, Tensor], completions: Sequence[str]) -> Tensor:
        """The last tokens of each row are its completion: it was appended to a prompt that ends a turn."""
        labels = torch.full_like(batch["input_ids"], IGNORE)
        ends = batch["attention_mask"].sum(1).tolist()
        for row, (completion, end) in enumerate(zip(completions, ends, strict=True)):
            n = len(self.processor.tokenizer(completion, add_special_tokens=False)["input_ids"])
            labels[row, end - n : end] = batch["input_ids"][row, end - n : end]
        return labels


def _open(path: Path, max_pixels: int) -> Image:
    image = open_image(path, max_pixels)
    if isinstance(image, Drop):
        raise MpaError(f"{path} was readable before and is not now ({image.reason}): put it back and run again")
    return image


def as_rows(rows: Sequence[ParityRecord], processor: Any, run: Run) -> list[dict[str, Any]]:
    """Records -> (image, prompt, completion) with the very prompt that identify and evaluate use."""
    made = []
    for row in rows:
        prompt = answer_prompt(run.task, row.question)
        completion = checkpoint.chat_completion(processor, prompt, row.answer)
        made.append(
            {
                "id": row.id,
                "images": [row.image],
                "prompt": checkpoint.chat_prompt(processor, prompt),
                "completion": completion,
            }
        )
    return made
