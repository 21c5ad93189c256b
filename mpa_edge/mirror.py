"""A run folder behind a URL: the URL is the truth, a local working copy is what the stages see."""

from __future__ import annotations

from mpa_edge.stores import Store, Stored, download, is_url, listing, upload

__all__ = ["Store", "Stored", "download", "is_url", "listing", "upload"]
