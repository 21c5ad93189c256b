"""What a benchmark found, for people: one HTML file, Markdown, JSON, a table on the terminal; and what changed."""

from mpa_edge.bench.report.compare import Change, Comparison, compare, compare_all
from mpa_edge.bench.report.document import report_document
from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.markdown import render_markdown
from mpa_edge.bench.report.read import BenchData, find_benches, read_bench
from mpa_edge.bench.report.table import render_comparison, render_table, verdict_line
from mpa_edge.bench.results.samples import pick

__all__ = [
    "BenchData",
    "Change",
    "Comparison",
    "compare",
    "compare_all",
    "find_benches",
    "pick",
    "read_bench",
    "render_comparison",
    "render_html",
    "render_markdown",
    "render_table",
    "report_document",
    "verdict_line",
]
