"""This module finds which things belong together because they have something in common, themselves or through others:
a patient's files, or crops of the same scans."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence


def components(sets: Sequence[Collection[Hashable]]) -> list[int]:
    """The number, from 0, of the component of each set of tokens: sets with a token in common are of one component, and
    so are those that others join."""
    above: dict[Hashable, Hashable] = {}

    def root(token: Hashable) -> Hashable:
        while above.setdefault(token, token) != token:
            token = above[token]
        return token

    for tokens in sets:
        first, *others = tokens
        for other in others:
            above[root(other)] = root(first)
    number: dict[Hashable, int] = {}
    return [number.setdefault(root(next(iter(tokens))), len(number)) for tokens in sets]
