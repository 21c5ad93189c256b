"""ChartQA: questions about charts, one answer each.

>>> row = {"imgname": "1.png", "query": "How many food items are shown in the bar graph?", "label": "14"}
>>> from mpa_edge.metrics import get_metric
>>> from mpa_edge.tasks import read_row
>>> question, answers = read_row(TASK, row)
>>> get_metric(TASK.metric).score("14", answers)
1.0
"""

from mpa_edge.tasks import Task, annotation_prompts

KINDS = (
    "lookup: read one value, label or colour off the chart",
    "comparison: find the highest, the lowest, or which of two is larger",
    "trend: say how a series changes, or when it peaks or turns",
    "inference: calculate or conclude something from several values, such as a sum, a difference, a ratio or a count",
)

TASK = Task(
    name="chartqa",
    title="ChartQA: reading charts and reasoning about them",
    metric="relaxed-accuracy",
    annotation_prompts=annotation_prompts(
        "You are shown a chart. Ask one question about what it shows, and answer it from the chart alone. A number is "
        "written in digits, as the chart writes it.",
        KINDS,
    ),
    max_answer_words=5,
    question_key="query",
    answers_key="label",
)
