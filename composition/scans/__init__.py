"""Scans and masks: reading and writing their files, what their values mean, and what is said where that fails."""
