"""ST-VQA: questions about text in scenes, one or more accepted answers each.

>>> from mpa_edge.metrics import get_metric
>>> get_metric("anls").score("joes diner", ["Joe's Diner"])
0.9090909090909091
"""

import hashlib
from collections.abc import Iterator

from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split

HELD_OUT_PERCENT = 15


def held_out(image: str) -> bool:
    """Whether a training image belongs to the 15 % that this project holds out, by the hash of its path.

    >>> sum(held_out(f"coco-text/{i}.jpg") for i in range(1000))
    166
    """
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") % 100 < HELD_OUT_PERCENT


def rows(split: Split, documents: Documents) -> Iterator[Row]:
    """`{"data": [{"question_id", "file_path", "question", "answers", "dataset"}]}`; the kind is the source data set."""
    for name in split.files:
        for row in documents[name]["data"]:
            image = row["file_path"]
            if split.name != HELD_OUT or held_out(image):
                yield Row(row["question"], row.get("answers"), image, row.get("question_id"), row.get("dataset"))


HELD_OUT = "held-out"
BENCHMARK = Benchmark(
    name="stvqa",
    splits=(
        Split("paper", ("train_task_1_onePerImage_val.json",), note="the published split of the paper's authors"),
        Split(
            HELD_OUT,
            ("train_task_1.json",),
            note="15 % of the training images, chosen by the hash of their path: not the paper's split",
        ),
        Split("train", ("train_task_1.json",), ("train",)),
        Split("test", ("test_task_1.json",), ("test",)),
    ),
    rows=rows,
    image_folders=("", "train", "train/data", "train_images", "test_task1", "test", "test/data", "images", "ST-VQA"),
    source="rrc.cvc.uab.es/?ch=11, task 1",
    defaults=2,
)
