"""This module holds the names that a reader study and its scoring share."""

STUDY, KEY = "reader_study", "reader_study_key"  # folders; who reads gets the first one alone
SHEET = ("reader", "crop", "answer", "confidence")
KEY_COLUMNS = ("crop", "set", "file", "digest")
REAL, SYNTHETIC = "real", "synthetic"  # answers; REAL is a set of the key too
