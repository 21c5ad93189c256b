"""OK-VQA: questions that need knowledge from outside the image, ten answers each.

The published answers are stemmed ("surf" for "surfing"), so a right word can score 0.

>>> from mpa_edge.metrics import get_metric
>>> get_metric("vqa-accuracy").score("race", ["race"] * 10), get_metric("vqa-accuracy").score("racing", ["race"] * 10)
(1.0, 0.0)
"""

from collections.abc import Iterator

from mpa_edge.errors import MpaError
from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split


def rows(split: Split, documents: Documents) -> Iterator[Row]:
    """Questions joined with their annotations by question_id; the kind is the knowledge category.

    Images are those of COCO 2014, `COCO_val2014_000000297147.jpg` for image_id 297147.
    """
    questions, annotations = (documents[name] for name in split.files)
    titles = annotations.get("question_types", {})
    answered = {row["question_id"]: row for row in annotations["annotations"]}
    if not any(row["question_id"] in answered for row in questions["questions"]):
        names = " and ".join(split.files)
        raise MpaError(f"{names} share no question_id: the annotations belong to other questions, use those of one set")
    for row in questions["questions"]:
        known = answered.get(row["question_id"], {})
        kind = known.get("question_type")
        image = f"COCO_{split.name}2014_{int(row['image_id']):012d}.jpg"
        yield Row(row["question"], known.get("answers"), image, row["question_id"], titles.get(kind, kind))


def _split(name: str, coco: str) -> Split:
    files = (f"OpenEnded_mscoco_{coco}_questions.json", f"mscoco_{coco}_annotations.json")
    return Split(name, files, (coco, name))


BENCHMARK = Benchmark(
    name="okvqa",
    splits=(_split("val", "val2014"), _split("train", "train2014")),
    rows=rows,
    image_folders=("val2014", "train2014", "images/val2014", "images/train2014", "images", ""),
    source="okvqa.allenai.org, version 1.1, and the images of COCO 2014",
)
