"""A soak beside the benchmark of its scheme: on the page and on the terminal, and where it is damaged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.read import read_bench
from mpa_edge.bench.report.table import render_soak
from mpa_edge.errors import MpaError
from tests.bench import made_up
from tests.bench.results.test_soak import sample, soak, watched


def test_the_report_of_a_scheme_draws_its_soak(tmp_path: Path) -> None:
    folder = made_up.write(tmp_path / "bench")
    assert "<h3>Soak</h3>" not in render_html([read_bench(folder)])
    made = soak([sample(i, tokens=20 if i < 200 else 10) for i in range(400)], [watched(i) for i in range(400)])
    (folder / "soak").mkdir()
    (folder / "soak" / "soak.json").write_text(made.model_dump_json())
    page = render_html([read_bench(folder)])
    lines = re.findall(r'<polyline points="([^"]+)"', page)
    assert [len(line.split()) for line in lines] == [len(made.points)] * 4
    numbers = [float(number) for line in lines for number in re.split("[ ,]", line)]
    assert 0 <= min(numbers) <= max(numbers) <= 1000
    assert "speed falls, the device throttles" in page
    text = render_soak(made)
    assert "800 answers in 6.67 min" in text
    assert "throttled: 20.0 tokens/s in the first fifth, 10.0 in the last" in text
    (folder / "soak" / "soak.json").write_text("{")
    with pytest.raises(MpaError, match="soak.json is damaged"):
        read_bench(folder)
