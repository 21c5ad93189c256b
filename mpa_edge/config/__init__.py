"""Recipes, targets and quantization schemes: their schemas, and reading and validating their files."""
