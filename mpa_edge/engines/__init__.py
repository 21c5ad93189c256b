"""Run the shards of a stage in this process (`local`) or in the actors of a Ray cluster (`ray_engine`)."""
