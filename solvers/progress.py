"""This module says how a loop reports its progress. It stands apart because every loop of the package does so, and in
the same way."""

from collections.abc import Callable, Iterable

# progress(iterable, what it counts) -> the same items. Here "step" is one of a run, and "sweep" one of a solve. tqdm is
# such a function, and shows the name before its bar.
Progress = Callable[[Iterable[int], str], Iterable[int]] | None


def watched(items: Iterable[int], counted: str, progress: Progress) -> Iterable[int]:
    """The items, through `progress` where there is one."""
    return items if progress is None else progress(items, counted)
