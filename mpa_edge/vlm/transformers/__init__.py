"""A transformers checkpoint as a VLM."""
