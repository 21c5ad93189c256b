"""The built-in task: small charts, signs and shapes that a generator draws. The prompts use only the vocabulary of the
built-in models.
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
