"""Evidence for the small checkpoint that ships with `sd21`: its card's figures, its example scans and the demo."""
