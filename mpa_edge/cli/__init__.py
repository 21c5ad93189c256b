"""One command a file: `mpa_edge/cli/NAME.py` exposes `command`; the first line of its docstring is its summary.

A module is imported only when its command runs, so it may import what it needs; files that start with `_` are helpers.
"""
