"""Training of the small checkpoint, `sd21.load("mini")`: `python -m sd21.training --help` lists the stages in order."""
