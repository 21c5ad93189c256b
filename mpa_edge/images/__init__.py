"""Reads images: from a folder, from parquet files, with a memory budget. Nothing in a file is trusted."""
