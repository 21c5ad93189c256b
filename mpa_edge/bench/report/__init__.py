"""What a benchmark found, for people: one HTML file, Markdown, JSON, a table on the terminal; and what changed."""
