"""TextVQA: questions about text in photographs, ten answers each.

>>> row = {"question": "what is the brand of this camera?", "answers": ["dakota"] * 8 + ["clos culombu"] * 2}
>>> from mpa_edge.metrics import get_metric
>>> from mpa_edge.tasks import read_row
>>> question, answers = read_row(TASK, row)
>>> get_metric(TASK.metric).score("Dakota", answers)
1.0
"""

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
