"""Small data sets in the formats that people download, with the traps of the real ones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

TEN = ["stop"] * 7 + ["halt"] * 2 + ["stop sign"]


def write_image(path: Path, shade: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    """A plain image; the shade makes it differ from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, 90, 160)).save(path)
    return path


def encoded(shade: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (shade % 256, 90, 160)).save(buffer, kind)
    return buffer.getvalue()


def document(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def textvqa(root: Path, rows: Sequence[dict[str, Any]] | None = None, split: str = "val", images: int = 3) -> Path:
    """TextVQA_0.5.1_val.json and train_images/; two questions about the first image, one without its image."""
    rows = rows or [
        textvqa_row(34602, "003a8ae2ef43b901", "what does the sign say?"),
        textvqa_row(34603, "003a8ae2ef43b901", "what year is it?", ["1998"] * 9 + ["unanswerable"]),
        textvqa_row(34604, "0c64495eb94d2c5f", "qué dice el letrero?", ["café", "Café"] * 5),
        textvqa_row(34605, "ffffffffffffffff", "who is the author?", ["unanswerable"] * 10),
    ]
    document(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "dataset_version": "0.5.1", "data": rows})
    for i, name in enumerate(list(dict.fromkeys(row["image_id"] for row in rows))[:images]):
        if not name.startswith("ffff"):
            write_image(root / "train_images" / f"{name}.jpg", i)
    return root


def textvqa_row(number: int, image: str, question: str, answers: Iterable[str] = TEN) -> dict[str, Any]:
    return {
        "question": question,
        "image_id": image,
        "image_classes": ["Poster"],
        "flickr_original_url": "",
        "image_width": 24,
        "image_height": 16,
        "answers": list(answers),
        "question_tokens": question.split(),
        "question_id": number,
        "set_name": "val",
    }


def chartqa(root: Path, split: str = "test") -> Path:
    """test/test_human.json, test/test_augmented.json and test/png/: labels are texts, one row is there twice."""
    human = [
        {"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"},
        {"imgname": "41699051005347.png", "query": "What is the difference between Lamb and Corn?", "label": "0.57"},
        {"imgname": "166.png", "query": "Is the sum more then 50?", "label": "No"},
    ]
    twice = {
        "imgname": "two_col_60048.png",
        "query": "How many views did 'Despactio' have worldwide?",
        "label": "36.75",
    }
    augmented = [
        twice,
        dict(twice),
        {"imgname": "multi_col_803.png", "query": "Which year was the peak?", "label": "2008"},
    ]
    document(root / split / f"{split}_human.json", human)
    document(root / split / f"{split}_augmented.json", augmented)
    for i, row in enumerate([*human, *augmented]):
        write_image(root / split / "png" / row["imgname"], i)
    return root


def okvqa(root: Path, coco: str = "val2014") -> Path:
    """Questions, annotations and COCO's images; the last question has no annotation, the third no image."""
    asked = [
        (297147, 2971475, "What sport can you use this for?"),
        (339761, 3397615, "Name the type of plant?"),
        (357586, 3575865, "What toy is this?"),
        (339761, 3397616, "Where does it grow?"),
    ]
    questions = [{"image_id": image, "question": text, "question_id": number} for image, number, text in asked]
    document(
        root / f"OpenEnded_mscoco_{coco}_questions.json",
        {
            "info": {"version": "1.1"},
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "license": {},
            "data_subtype": coco,
            "questions": questions,
        },
    )
    document(
        root / f"mscoco_{coco}_annotations.json",
        {
            "info": {},
            "license": {},
            "data_subtype": coco,
            "data_type": "mscoco",
            "question_types": {"four": "Sports and Recreation", "nine": "Plants and Animals"},
            "annotations": [
                okvqa_answers(*asked[0][:2], "four"),
                okvqa_answers(*asked[1][:2], "nine"),
                okvqa_answers(*asked[2][:2], "other"),
            ],
        },
    )
    for i, image in enumerate((297147, 339761)):
        write_image(root / coco / f"COCO_{coco}_{image:012d}.jpg", i)
    return root


def okvqa_answers(image: int, number: int, kind: str) -> dict[str, Any]:
    answers = [
        {"answer_id": at, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"} for at in range(1, 11)
    ]
    return {
        "image_id": image,
        "question_id": number,
        "answer_type": "other",
        "question_type": kind,
        "answers": answers,
        "confidence": 3,
    }


def stvqa(root: Path, name: str = "train_task_1.json", n: int = 40, answers: bool = True, below: str = "") -> Path:
    """train_task_1.json and the images by their origin."""
    rows = [stvqa_row(i, answers) for i in range(n)]
    document(root / name, {"dataset_name": "stvqa", "dataset_version": "1.0", "data": rows})
    for i, row in enumerate(rows):
        write_image(root / below / row["file_path"], i)
    return root


def stvqa_row(i: int, answers: bool = True) -> dict[str, Any]:
    origin = ("coco-text", "VisualGenome/1", "IIIT_text")[i % 3]
    row = {
        "question": f"What is written at {i}?",
        "file_path": f"{origin}/img_{i:06d}.jpg",
        "dataset": origin.split("/")[0],
        "image_width": 24,
        "image_height": 16,
        "question_id": 9000 + i,
        "set_name": "train",
    }
    return row | ({"answers": [f"Ünï {i}", str(i)]} if answers else {})


def parquet(path: Path, rows: list[dict[str, Any]], schema: dict[str, Any], group: int = 4) -> Path:
    """A parquet file as `datasets` writes it: images as structs of bytes and path, small groups of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items())))
    pq.write_table(table, path, row_group_size=group)
    return path


def image_struct() -> Any:
    import pyarrow as pa

    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def chartqa_hub(root: Path, n: int = 10) -> Path:
    """HuggingFaceM4/ChartQA: image, query, label (a list), human_or_machine (0 or 1); two questions an image."""
    import pyarrow as pa

    rows = [
        {
            "image": {"bytes": encoded(i // 2), "path": None},
            "query": f"How many at {i}?",
            "label": [str(i)],
            "human_or_machine": int(i >= n // 2),
        }
        for i in range(n)
    ]
    schema = {
        "image": image_struct(),
        "query": pa.string(),
        "label": pa.list_(pa.string()),
        "human_or_machine": pa.int64(),
    }
    parquet(root / "data" / "test-00000-of-00001.parquet", rows, schema)
    return root


def textvqa_hub(root: Path, files: int = 2, n: int = 6) -> Path:
    """lmms-lab/textvqa: several files of one split, ids of questions and images, ten answers."""
    import pyarrow as pa

    schema = {
        "image_id": pa.string(),
        "question_id": pa.int32(),
        "question": pa.string(),
        "image": image_struct(),
        "answers": pa.list_(pa.string()),
        "set_name": pa.string(),
    }
    for at in range(files):
        rows = [
            {
                "image_id": f"{i:016x}",
                "question_id": 34602 + at * n + i,
                "question": f"what is at {at}-{i}?",
                "image": {"bytes": encoded(at * n + i, "JPEG"), "path": f"{i}.jpg"},
                "answers": TEN,
                "set_name": "val",
            }
            for i in range(n)
        ]
        parquet(root / "data" / f"validation-{at:05d}-of-{files:05d}.parquet", rows, schema)
    return root


def own_csv(path: Path) -> Path:
    """A table as a spreadsheet saves it: byte order mark, CRLF, quotes, a bar between answers."""
    for i in range(3):
        write_image(path.parent / f"{i}.png", i)
    text = (
        "image,question,answers,kind,remark\r\n"
        '0.png,"What, then, does it say?",stop|halt,text,\r\n'
        '1.png,How many?,5,count,"two\r\nlines"\r\n'
        '2.png,Which one?,"[""a|b"", ""c""]",,\r\n'
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return path
