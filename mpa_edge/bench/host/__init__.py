"""The benchmark as the host drives it."""
