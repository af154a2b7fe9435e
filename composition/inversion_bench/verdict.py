"""This module says which inversion reaches a tolerance at the fewest rows, and whether the default is beaten. The
sentences follow from the figures alone.

A method reaches a tolerance where it converges on as many scans as any method of the bench does, and on one at least.
It beats the default where it converges on a scan at all, is at least as good in three things, and better in one: how
many scans converge, the median of the rows, and the most rows that a scan took. A method that does not measure its own
error cannot know what it has reached, and does not take part. All this is through the unmodified sampler, from x[start]
alone; what reaches the tolerance through a sampler of its own, with all that it keeps, is named apart.
"""

from __future__ import annotations

from collections.abc import Sequence

THINGS = ("converged", "rows_median", "rows_worst")


def contenders(lines: Sequence[dict]) -> list[dict]:
    """The lines of the methods that take part. lines: of one block and tolerance, as table.tabulate makes them."""
    return [line for line in lines if line["measured"] and line["scans"]]


def beaten_by(lines: Sequence[dict], default: str) -> list[str] | None:
    """The methods that beat the default; None where the default does not take part."""
    ours = next((line for line in contenders(lines) if line["method"] == default), None)
    if ours is None:
        return None
    return [line["method"] for line in contenders(lines) if line is not ours and _dominates(line, ours)]


def sentences(lines: Sequence[dict], default: str) -> str:
    """What the lines of one block and tolerance say: who has the fewest rows, and how the default stands."""
    some = contenders(lines)
    most = max((line["converged"] for line in some), default=0)
    total = max((line["asked"] for line in lines), default=0)
    if most == 0:
        return f"No method reaches it on any scan.{_of_others(lines)}"
    reach = [line for line in some if line["converged"] == most]
    text = f"{_named(reach)} {'reaches' if len(reach) == 1 else 'reach'} it on {most} of {total} scans"
    for name, words in (("rows_median", "in the median"), ("rows_worst", "at worst")):
        least = min(line[name] for line in reach)
        text += f"; the fewest rows {words}, {least:g}, has {_named([one for one in reach if one[name] == least])}"
    return f"{text}. {_of_default(lines, default)}{_of_others(lines)}"


def _of_default(lines: Sequence[dict], default: str) -> str:
    by = beaten_by(lines, default)
    if by is None:
        return f"The default, {default}, is not on the bench here."
    if by:
        return f"The default, {default}, is beaten by {', '.join(by)}."
    ours = next(line for line in lines if line["method"] == default)
    in_part = [
        f"{line['method']} ({_counted(line)})"
        for line in contenders(lines)
        if line is not ours and line["converged"] and any(_better(line, ours, name) for name in THINGS)
    ]
    more = f"; better in one thing and worse in another than it ({_counted(ours)}): {', '.join(in_part)}"
    return f"The default, {default}, is not beaten{more if in_part else ''}."


def _of_others(lines: Sequence[dict]) -> str:
    """The methods that come back through samplers of their own."""
    some = [line for line in lines if line["own_converged"]]
    told = [
        f"{line['method']} on {line['own_converged']} of {line['asked']} scans ({line['kept']:g} latents kept, "
        f"{line['rows_median']:g} rows)"
        for line in some
    ]
    return f" Through its own sampler, with all that it keeps: {'; '.join(told)}." if told else ""


def summary(blocks: Sequence[dict], default: str) -> list[str]:
    """A line for each tolerance: in how many blocks the default is beaten, and by whom in which."""
    found = []
    for tolerance in dict.fromkeys(tolerance for block in blocks for tolerance in block["tolerances"]):
        told = [(block["title"], beaten_by(block["tolerances"].get(tolerance, ()), default)) for block in blocks]
        told = [(title, by) for title, by in told if by is not None]
        none = sum(not any(one["converged"] for one in contenders(b["tolerances"].get(tolerance, ()))) for b in blocks)
        nobody = f" In {none} no method reaches it on any scan." if none else ""
        lost = [f"{title}: {', '.join(by)}" for title, by in told if by]
        if not told:
            found.append(f"At {tolerance:g} the default, {default}, is not on the bench.")
        elif not lost:
            found.append(f"At {tolerance:g} the default, {default}, is beaten in none of {len(told)} tables.{nobody}")
        else:
            where = f"{len(lost)} of {len(told)} tables ({'; '.join(lost)})"
            found.append(f"At {tolerance:g} the default, {default}, is beaten in {where}.{nobody}")
    return found


def _better(one: dict, other: dict, name: str) -> bool:
    return one[name] > other[name] if name == "converged" else one[name] < other[name]


def _dominates(one: dict, other: dict) -> bool:
    better = any(_better(one, other, name) for name in THINGS)
    return one["converged"] > 0 and better and not any(_better(other, one, name) for name in THINGS)


def _counted(line: dict) -> str:
    return f"{line['converged']} of {line['asked']} scans, {line['rows_median']:g} and {line['rows_worst']:g} rows"


def _named(lines: Sequence[dict]) -> str:
    names = [line["method"] for line in lines]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
