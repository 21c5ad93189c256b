"""Stage 3, the Parity Leveler: fine-tune the student on the gap."""
