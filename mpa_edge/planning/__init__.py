"""What a recipe will take before it runs: disk, memory, hours and money, from the sizes of its models."""
