"""This module holds the names that a reader study and its scoring share."""

STUDY, KEY = "reader_study", "reader_study_key"  # folders; who reads gets the first one alone
SHEET = ("reader", "crop", "answer", "confidence")
KEY_COLUMNS = ("crop", "set", "file", "digest")
REAL, SYNTHETIC = "real", "synthetic"  # answers; REAL is a set of the key too
# The first line of a blank sheet: SHEET, with what may be filled in.
HEADINGS = ("reader", "crop", f"answer ({REAL} or {SYNTHETIC})", "confidence (1 to 5)")
