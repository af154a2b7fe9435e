"""This package trains the small checkpoint, `sd21.load("mini")`; `python -m sd21.training --help` lists the stages in
order. It is apart from the rest of `sd21` because using a model does not need it."""
