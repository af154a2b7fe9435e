"""Matplotlib comes with the optional extra `plots`, so only this module imports it. It plots the ablations."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from ..plotting import save_plot
from .table import LEVEL, heading
from .variants import Lineup

PANELS, PANEL = 3, (4.2, 3.2)  # panels side by side, and the size of one in inches


def plot(lineup: Lineup, table: dict, path: Path) -> None:
    """Write a panel for each metric, with means and intervals over what is varied: one curve per dataset and series.

    Lines without a value are not in it.
    """
    from matplotlib.figure import Figure

    metrics = {(line["dataset"], line["line"]): line["metrics"] for line in table["lines"]}
    names = list(table["lines"][0]["metrics"])
    height = -(-len(names) // PANELS)
    figure = Figure(figsize=(PANEL[0] * PANELS, PANEL[1] * height), layout="constrained")
    axes = figure.subplots(height, PANELS, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.remove()
    varied = [line for line in lineup.lines if line.value is not None]
    ticks = sorted({line.value for line in varied})
    series = dict.fromkeys(line.series for line in varied)
    for axis, name in zip(axes, names, strict=False):
        for number, dataset in enumerate(dict.fromkeys(dataset for dataset, _ in metrics)):
            for style, one in zip(cycle(("-", "--", ":", "-.")), series, strict=False):
                lines = [line for line in varied if line.series == one]
                points = [(line.value, metrics[dataset, line.label][name]) for line in lines]
                points = sorted((value, summary) for value, summary in points if summary["mean"] is not None)
                if not points:
                    continue
                means = [summary["mean"] for _, summary in points]
                # The percentile interval of a skewed sample need not contain its mean.
                below = [max(0, summary["mean"] - summary["low"]) for _, summary in points]
                above = [max(0, summary["high"] - summary["mean"]) for _, summary in points]
                axis.errorbar(
                    [value for value, _ in points],
                    means,
                    yerr=[below, above],
                    linestyle=style,
                    color=f"C{number}",
                    marker="o",
                    capsize=3,
                    label=f"{dataset} {one}".strip(),
                )
        axis.set(title=heading(name, table["networks"]), xlabel=lineup.varied, xticks=ticks)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"{lineup.title}, with {LEVEL:.0%} intervals")
    save_plot(figure, path)
