"""Alignment on a rented machine: the task file for SkyPilot or Hugging Face Jobs, and its launch."""
