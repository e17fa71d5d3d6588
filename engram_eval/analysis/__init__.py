"""From recorded scores to differences, intervals and contrasts over seeds. Imports no torch."""
