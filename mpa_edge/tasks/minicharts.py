"""The built-in task: small charts, signs and shapes that a generator draws. Its words are few: so is the vocabulary.

>>> row = {"question": "Which bar is highest?", "answers": ["B"]}
>>> from mpa_edge.metrics import get_metric
>>> from mpa_edge.tasks import read_row
>>> question, answers = read_row(TASK, row)
>>> get_metric(TASK.metric).score("b", answers)
1.0
"""

from mpa_edge.tasks import Task

TASK = Task(
    name="minicharts",
    title="Minicharts: the built-in charts, signs and shapes",
    metric="exact-match",
    annotation_prompts=(
        "Ask about a value.",
        "Ask about a comparison.",
        "Ask about a color.",
        "Ask about a count.",
        "Ask about a text.",
    ),
    short_answer_suffix="",
    max_answer_words=2,
)
