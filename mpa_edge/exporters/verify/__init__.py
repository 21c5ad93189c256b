"""The gate: an export is compared with the checkpoint it was made from before it gets its name."""
