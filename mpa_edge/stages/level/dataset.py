"""The training set: an image, the prompt that every model is asked with, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpa_edge.errors import MpaError
from mpa_edge.images.cache import ImageCache
from mpa_edge.images.folder import open_image
from mpa_edge.stages.run import Run
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop, ParityRecord
from mpa_edge.vlm.transformers import checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

IGNORE = -100  # label of a token that does not count in the loss, as in torch.nn.CrossEntropyLoss


def as_rows(rows: Sequence[ParityRecord], processor: Any, run: Run) -> list[dict[str, Any]]:
    """Records -> rows of image, prompt and completion; the prompt is exactly that of identify and evaluate."""
    made = []
    for row in rows:
        prompt = answer_prompt(run.task, row.question)
        made.append(
            {
                "id": row.id,
                "images": [row.image],
                "prompt": checkpoint.chat_prompt(processor, prompt),
                "completion": checkpoint.chat_completion(processor, prompt, row.answer),
            }
        )
    return made


class AnswerCollator:
    """Rows -> a padded batch whose labels cover the answer and its end token only."""

    def __init__(self, processor: Any, images_folder: Path, max_pixels: int) -> None:
        self.processor, self._folder, self._max_pixels = processor, images_folder, max_pixels
        self._image = ImageCache(self._open)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The processor's tensors and `labels` (rows, tokens), IGNORE outside the completion; padded on the right."""
        batch = self.processor(
            text=[row["prompt"] + row["completion"] for row in rows],
            images=[[self._image(row["images"][0])] for row in rows],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], IGNORE)
        # the last tokens of a row are its completion, which was appended to a prompt that ends a turn
        for i, (row, end) in enumerate(zip(rows, batch["attention_mask"].sum(1).tolist(), strict=True)):
            n_tokens = len(self.processor.tokenizer(row["completion"], add_special_tokens=False)["input_ids"])
            labels[i, end - n_tokens : end] = batch["input_ids"][i, end - n_tokens : end]
        return dict(batch) | {"labels": labels}

    def _open(self, name: str) -> Image:
        image = open_image(self._folder / name, self._max_pixels)
        if isinstance(image, Drop):
            raise MpaError(f"{self._folder / name} is no longer readable ({image.reason}): restore the file and rerun")
        return image
