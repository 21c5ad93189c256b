"""ChartQA: questions about charts, one answer each.

>>> from mpa_edge.metrics import get_metric
>>> get_metric("relaxed-accuracy").score("14", ["14"]), get_metric("relaxed-accuracy").score("15", ["14"])
(1.0, 0.0)
"""

from collections.abc import Iterator

from mpa_edge.questions.benchmark import Benchmark, Documents, Row, Split


def rows(split: Split, documents: Documents) -> Iterator[Row]:
    """`[{"imgname", "query", "label"}]`, one file of human-written questions and one of generated ("augmented") ones.

    No row has an id and some are there twice: the id is the file's kind and the place in it.
    """
    for name in split.files:
        kind = "human" if "human" in name else "augmented"
        for at, row in enumerate(documents[name]):
            yield Row(row["query"], row["label"], f"png/{row['imgname']}", f"{kind}-{at}", kind)


BENCHMARK = Benchmark(
    name="chartqa",
    splits=tuple(
        Split(name, (f"{name}/{name}_human.json", f"{name}/{name}_augmented.json"), hub)
        for name, hub in (("test", ("test",)), ("val", ("val", "validation")), ("train", ("train",)))
    ),
    rows=rows,
    image_folders=("",),
    source="github.com/vis-nlp/ChartQA, folder ChartQA Dataset",
    kind_columns=("human_or_machine", "type"),
    kinds={
        **dict.fromkeys((0, "human", "human_test"), "human"),
        **dict.fromkeys((1, "augmented", "augmented_test", "machine"), "augmented"),
    },
    mean_of_kinds=True,
)
