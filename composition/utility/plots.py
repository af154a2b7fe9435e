"""Matplotlib comes with the optional extra `utility`, so only this module imports it. It draws the bars and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plotting import save_plot

PANEL = (5.5, 3.6)  # the size of a panel in inches


def bars(made: dict, path: Path) -> None:
    """A panel for each block of the table: the mean Dice of each arm as a bar, and every seed as a point."""
    from matplotlib.figure import Figure

    blocks = made["blocks"]
    most = max(len(block["lines"]) for block in blocks)
    figure = Figure(figsize=(max(PANEL[0], 1.5 + 0.55 * most) * len(blocks), PANEL[1] + 1.2), layout="constrained")
    for axis, block in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        lines = block["lines"]
        axis.bar(range(len(lines)), [line["dice"] for line in lines], color="lightsteelblue")
        for number, line in enumerate(lines):
            values = line["dice_by_seed"]
            # Side by side, so that equal ones are seen.
            across = [number + 0.5 * ((seed + 0.5) / len(values) - 0.5) for seed in range(len(values))]
            axis.plot(across, values, "o", color="navy", markersize=3)
        axis.set_xticks(range(len(lines)), [line["arm"] for line in lines], rotation=45, ha="right")
        axis.set(ylabel="Dice", ylim=(0, 1), title=f"N = {block['size']}, {block['test']}")
        axis.axhline(lines[0]["dice"], color="gray", linewidth=0.7)
    save_plot(figure, path)


def curves(found: Sequence[dict], path: Path) -> None:
    """Loss in training and Dice on the test scans over the steps, the mean over the seeds of each arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] + 0.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        for number, arm in enumerate(dict.fromkeys(one["arm"] for one in found)):
            of_arm = [one["curve"] for one in found if one["arm"] == arm]
            steps = [point["step"] for point in of_arm[0]]
            means = [sum(curve[at][name] for curve in of_arm) / len(of_arm) for at in range(len(steps))]
            style = "-" if number < 10 else "--"  # there are ten colours
            axis.plot(steps, means, style, color=f"C{number % 10}", label=arm)
        axis.set(xlabel="step", ylabel={"loss": "loss in training", "dice": "Dice on the test scans"}[name])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_plot(figure, path)
