"""ST-VQA: questions about text in scenes, one or more accepted answers each.

>>> row = {"file_path": "coco/1.jpg", "question": "What is the name of the shop?", "answers": ["Joe's Diner"]}
>>> from mpa_edge.metrics import get_metric
>>> from mpa_edge.tasks import read_row
>>> question, answers = read_row(TASK, row)
>>> get_metric(TASK.metric).score("joes diner", answers)
0.9090909090909091
"""

from mpa_edge.tasks import Task, annotation_prompt

TASK = Task(
    name="stvqa",
    title="ST-VQA: reading scene text",
    metric="anls",
    annotation_prompts=(
        annotation_prompt(
            "You are shown a picture of an everyday scene in which something is written. Ask one question whose answer "
            "is a piece of that writing, and give the answer spelled as it stands in the image. Someone who cannot "
            "read the writing must not be able to guess it."
        ),
    ),
)
