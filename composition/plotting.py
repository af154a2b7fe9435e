"""Matplotlib comes with optional extras, so whoever draws with it checks for it here, before the long work, and saves
here."""

from __future__ import annotations

from pathlib import Path

from sd21.files import atomic


def check_matplotlib(what: str) -> None:
    """Raise ImportError, which says what to do, if matplotlib is missing. what: is drawn with it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{what} take matplotlib; install the extra: pip install "tumour-composition[plots]"'
        ) from error


def save_plot(figure, path: Path) -> None:
    """Write a matplotlib figure; equal ones give equal files."""
    with atomic(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})
