"""Teach a small vision-language model what a large one knows, and prove on a device that the gain is there."""

__version__ = "0.1.0"
