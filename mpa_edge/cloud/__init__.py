"""The same alignment on a rented machine: what travels there, which machine, the task file, and what was launched."""
