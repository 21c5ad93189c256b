"""The run folder, the only memory between stages: atomic files, one lock, manifests, parquet parts."""
