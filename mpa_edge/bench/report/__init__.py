"""The report of benchmarks: one HTML file, Markdown, JSON, a table on the terminal; and two runs compared."""
