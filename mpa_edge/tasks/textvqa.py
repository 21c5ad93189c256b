"""TextVQA: questions about text in photographs, ten answers each.

>>> from mpa_edge.metrics import get_metric
>>> get_metric(TASK.metric).score("Dakota", ["dakota"] * 8 + ["clos culombu"] * 2)
1.0
"""

from collections.abc import Iterator

from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split
from mpa_edge.tasks import Task, annotation_prompt

TASK = Task(
    name="textvqa",
    title="TextVQA: reading text in photographs",
    metric="vqa-accuracy",
    annotation_prompts=(
        annotation_prompt(
            "You are shown a photograph with text in it. Ask one question that can only be answered by reading that "
            "text in its place in the scene, and answer it with words that can be read in the image."
        ),
    ),
)


def rows(split: Split, documents: Documents) -> Iterator[Row]:
    """`{"data": [{"question_id", "image_id", "question", "answers": [10 texts]}]}`; images are `IMAGE_ID.jpg`."""
    for name in split.files:
        for row in documents[name]["data"]:
            yield Row(row["question"], row.get("answers"), f"{row['image_id']}.jpg", row.get("question_id"))


BENCHMARK = Benchmark(
    name=TASK.name,
    splits=(
        Split("val", ("TextVQA_0.5.1_val.json",), ("validation", "val")),
        Split("train", ("TextVQA_0.5.1_train.json",), ("train",)),
        Split("test", ("TextVQA_0.5.1_test.json",), ("test",)),
    ),
    rows=rows,
    image_folders=("train_images", "train_val_images/train_images", "val_images", "test_images", "images", ""),
    source="textvqa.org/dataset, version 0.5.1",
)
