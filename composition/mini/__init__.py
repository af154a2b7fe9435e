"""This package holds the small checkpoint's evidence: its card's figures, its example scans and the demo."""
