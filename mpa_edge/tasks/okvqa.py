"""OK-VQA: questions that need knowledge from outside the image, ten answers each.

The published answers are stemmed ("surf" for "surfing"), so a right word can score 0.

>>> from mpa_edge.metrics import get_metric
>>> get_metric(TASK.metric).score("race", ["race"] * 10), get_metric(TASK.metric).score("racing", ["race"] * 10)
(1.0, 0.0)
"""

from collections.abc import Iterator

from mpa_edge.errors import MpaError
from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split
from mpa_edge.tasks import Task, annotation_prompts

KINDS = (
    "use: what an object in the image is for, how it works, or what it is made of",
    "nature: what is known about an animal, a plant or the weather in the image",
    "people: a sport, a job, a habit or a celebration that the image shows",
    "place and time: where in the world, in what season or in what period this is",
    "origin: who makes, invented, owns or is known for something in the image",
)

TASK = Task(
    name="okvqa",
    title="OK-VQA: questions that need outside knowledge",
    metric="vqa-accuracy",
    annotation_prompts=annotation_prompts(
        "You are shown a photograph. Ask one question about something in it that cannot be answered from the image "
        "alone, but with common knowledge about the world, and answer it. Do not ask what is plain to see.",
        KINDS,
    ),
    max_answer_words=5,
)


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
    name=TASK.name,
    splits=(_split("val", "val2014"), _split("train", "train2014")),
    rows=rows,
    image_folders=("val2014", "train2014", "images/val2014", "images/train2014", "images", ""),
    source="okvqa.allenai.org, version 1.1, and the images of COCO 2014",
)
