"""TextVQA: questions about text in photographs, ten answers each.

>>> from mpa_edge.metrics import get_metric
>>> get_metric("vqa-accuracy").score("Dakota", ["dakota"] * 8 + ["clos culombu"] * 2)
1.0
"""

from collections.abc import Iterator

from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split


def rows(split: Split, documents: Documents) -> Iterator[Row]:
    """`{"data": [{"question_id", "image_id", "question", "answers": [10 texts]}]}`; images are `IMAGE_ID.jpg`."""
    for name in split.files:
        for row in documents[name]["data"]:
            yield Row(row["question"], row.get("answers"), f"{row['image_id']}.jpg", row.get("question_id"))


BENCHMARK = Benchmark(
    name="textvqa",
    splits=(
        Split("val", ("TextVQA_0.5.1_val.json",), ("validation", "val")),
        Split("train", ("TextVQA_0.5.1_train.json",), ("train",)),
        Split("test", ("TextVQA_0.5.1_test.json",), ("test",)),
    ),
    rows=rows,
    image_folders=("train_images", "train_val_images/train_images", "val_images", "test_images", "images", ""),
    source="textvqa.org/dataset, version 0.5.1",
)
