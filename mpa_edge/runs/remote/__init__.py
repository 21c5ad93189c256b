"""Runs behind a URL: a store, its lock, and a local working copy that mirrors it."""
