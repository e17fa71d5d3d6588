"""Scoring: lm-eval tasks, held-out loss, and the rows that both give."""
