"""Matplotlib comes with the optional extra `plots`, so only this module imports it. It draws error against rows, and
the error of the states along the trajectory; real scans and generated ones have panels of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from ..plotting import save_plot
from .table import BLOCK

PANELS, PANEL = 4, (4.4, 3.8)  # panels side by side, and the size of one in inches
MARKERS = "osD^v<>Ph*Xpd"
FLOOR = 1e-16  # below what float64 can tell; a logarithm has no 0
FAINT = 0.25


def pareto(cells: Sequence[dict], default: str, path: Path) -> None:
    """Error against rows: every scan faintly, the medians of each tolerance joined, a ring around the default's, and
    the front of the medians of methods that measure their error: none has both fewer rows and a smaller error."""

    def draw(axis, some: Sequence[dict], looks: dict[str, dict]) -> None:
        for method, look in looks.items():
            of_method = [cell for cell in some if cell["method"] == method]
            axis.plot(
                *_columns(list(map(_point, of_method))),
                linestyle="none",
                alpha=FAINT,
                markersize=4,
                markeredgewidth=0,
                **look,
            )
            medians = _medians(of_method)
            axis.plot(*_columns(medians), linewidth=0.8, markersize=8, markeredgecolor="black", label=method, **look)
            if method == default:
                ring = {"marker": "o", "markersize": 16, "fillstyle": "none", "color": "black", "linestyle": "none"}
                axis.plot(*_columns(medians), label=f"{default}, the default", **ring)
        axis.plot(*_columns(_front(some)), color="black", linewidth=0.8, linestyle="--", zorder=1, label="Pareto front")
        for tolerance in dict.fromkeys(cell["tolerance"] for cell in some):
            axis.axhline(tolerance, color="gray", linewidth=0.7, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(yscale="log", xlabel="rows through the network", ylabel="round-trip error")

    _panels(cells, path, draw, "Error through the unmodified sampler; every scan faintly, medians joined by tolerance")


def states(cells: Sequence[dict], default: str, path: Path) -> None:
    """The relative error of x[i] over i, at the smallest tolerance of the bench: medians, and every scan faintly."""
    least = min((cell["tolerance"] for cell in cells), default=0)
    known = [cell for cell in cells if cell["states"] and cell["tolerance"] == least]

    def draw(axis, some: Sequence[dict], looks: dict[str, dict]) -> None:
        for method, look in looks.items():
            lines = [np.maximum(np.asarray(cell["states"], float), FLOOR) for cell in some if cell["method"] == method]
            if not lines:
                continue
            i, colour = np.arange(1, len(lines[0]) + 1), look["color"]
            for line in lines:
                axis.plot(i, line, color=colour, alpha=FAINT, linewidth=0.6)
            width = 2.5 if method == default else 1.2
            axis.plot(i, np.median(lines, axis=0), linewidth=width, markersize=4, label=method, **look)
        axis.locator_params(axis="x", integer=True)
        axis.set(yscale="log", xlabel="i (0 is clean)", ylabel="relative error of x[i]")

    _panels(known, path, draw, f"Error of the states along the trajectory, at a tolerance of {least:g}")


def _panels(cells: Sequence[dict], path: Path, draw: Callable, title: str) -> None:
    """A panel for each block of the table, and one legend. A method looks the same in all of them."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(tuple(cell[name] for name in BLOCK) for cell in cells))
    methods = dict.fromkeys(cell["method"] for cell in cells)
    colours = [f"C{number}" for number in range(10)]
    looks = {
        method: {"color": colour, "marker": marker}
        for method, colour, marker in zip(methods, cycle(colours), cycle(MARKERS), strict=False)
    }
    wide, high = min(PANELS, max(1, len(keys))), max(1, -(-len(keys) // PANELS))
    figure = Figure(figsize=(max(8, PANEL[0] * wide), PANEL[1] * high + 1.2), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).flatten()
    labels: dict[str, object] = {}
    for axis, key in zip(axes, keys, strict=False):
        draw(axis, [cell for cell in cells if tuple(cell[name] for name in BLOCK) == key], looks)
        axis.minorticks_off()  # their labels overlap, and they take most of the time
        group, prompt, scale, start = key
        axis.set_title(f"{group}, {prompt}, scale {scale:g}, start {start}", fontsize=10)
        handles, names = axis.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=6)
    else:
        axes[0].text(0.5, 0.5, "nothing was measured", ha="center")
    figure.suptitle(title)
    save_plot(figure, path)


def _point(cell: dict) -> tuple[float, float]:
    return cell["rows"], max(float(cell["error"]), FLOOR)


def _medians(cells: Sequence[dict]) -> list[tuple[float, float]]:
    """The median point of each tolerance."""
    tolerances = dict.fromkeys(cell["tolerance"] for cell in cells)
    return [tuple(np.median([_point(cell) for cell in cells if cell["tolerance"] == at], axis=0)) for at in tolerances]


def _front(cells: Sequence[dict]) -> list[tuple[float, float]]:
    """The corners of the staircase below and left of which no median point lies."""
    methods = dict.fromkeys(cell["method"] for cell in cells if cell["measured"])
    points = sorted(
        point for method in methods for point in _medians([one for one in cells if one["method"] == method])
    )
    corners: list[tuple[float, float]] = []
    for rows, error in points:
        if not corners or error < corners[-1][1]:
            corners += [(rows, corners[-1][1]), (rows, error)] if corners else [(rows, error)]
    return corners


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
