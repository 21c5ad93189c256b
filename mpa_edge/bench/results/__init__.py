"""What a benchmark measured: records, timing, energy, validity, budgets, and the choice among settings."""
