"""This package holds the small checkpoint's evidence: its card's figures, its example scans and the demo.

It stands apart from `sd21.training`, which makes the checkpoint and knows nothing of composition.
"""
