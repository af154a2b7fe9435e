"""This module brings what users and libraries give into the one line of an error message."""

from __future__ import annotations


def one_line(text: str, limit: int = 300) -> str:
    """A text in one printable line, cut after so many characters: some hold line breaks, or bytes of a damaged file."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def shown(value: object, limit: int = 80) -> str:
    """A value as Python writes it, in one line, cut after so many characters; its type where that cannot be had."""
    try:
        return one_line(repr(value), limit)
    except (ValueError, RecursionError):  # an int of thousands of digits, and a list of thousands of levels
        return f"a huge {type(value).__name__}"
