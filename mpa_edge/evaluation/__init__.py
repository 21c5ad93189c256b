"""Ask models held-out questions, keep their answers across restarts, and score them."""
