from __future__ import annotations

import hashlib
import os

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.nursery.models import CHAT_TEMPLATE
from mpa_edge.vlm.transformers import template_limits
from mpa_edge.vlm.transformers.checkpoint import TEMPLATES

LOOP = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
DOUBLES = "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize("template", [LOOP, DOUBLES, "{{ 'x' * 99999999999 }}", "{{ 'x' * 999999 }}"])
def test_a_template_without_bounds_is_refused_in_one_line(template: str) -> None:
    with pytest.raises(MpaError, match="the chat template of 'it' takes more than .*: put the template") as error:
        template_limits.require_bounded(CHAT_TEMPLATE + template, "'it'")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("template", [*TEMPLATES.values(), "{{ raise_exception('no system prompt') }}", "{% if"])
def test_other_templates_pass_with_the_errors_that_they_raise_later(template: str) -> None:
    template_limits.require_bounded(template, "'it'")
    assert hashlib.sha256(template.encode()).hexdigest() in os.environ[template_limits.TRIED]


def test_the_built_in_models_need_no_trial() -> None:
    assert hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest() in template_limits.KNOWN
