"""Imported by the process from which isolated steps are forked, and by no other: it ends with the one that started it.

A step in turn ends with this process. Its own end would be too late: each step holds open what it waits for.
"""

from mpa_edge.runs.isolation import die_with_parent

die_with_parent()
