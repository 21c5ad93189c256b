"""Estimates of disk, memory, hours and cost, from the sizes of the models and public prices."""
