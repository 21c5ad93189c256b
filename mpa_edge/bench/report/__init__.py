"""The report of benchmarks: one HTML file, JSON, a table on the terminal; and two runs compared."""
