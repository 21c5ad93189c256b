"""Trains the built-in pair from scratch. Not part of the wheel: only the generator and the weights are shipped."""
