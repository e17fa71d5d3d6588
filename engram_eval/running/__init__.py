"""Stages of a study as they run: keys, locks, processes, jobs, and the folder that they fill."""
