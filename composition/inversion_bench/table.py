"""This module makes the table of the bench, as Markdown and as CSV. It measures nothing.

Real scans and generated ones, prompts, scales and starts have tables of their own. Every figure is shown with its worst
case, since a median says nothing of the scan that never converges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..datasets import LeftOut
from ..tables import csv_text, markdown_head, markdown_line
from . import editing, verdict, whiteness
from .problems import GENERATED, REAL

BLOCK = ("group", "prompt", "scale", "start")
IDENTITY = ("group", "source", "number", "scan", "tumour", "prompt", "scale", "start", "method", "tolerance")
COLUMNS = (
    *IDENTITY,
    *("error", "converged", "own", "one_state", "rows", "sweeps", "seconds", "naive_seconds", "peak_bytes", "kept"),
    *("states_worst", *(f"noise_{name}" for name in whiteness.MEASURES), *editing.MEASURES),
)
NONE = "–"


def csv_of(cells: Sequence[dict]) -> str:
    """A line for each cell, with COLUMNS; what was not measured is empty."""

    def row_of(cell: dict) -> dict:
        noise = {f"noise_{name}": value for name, value in (cell["noise"] or {}).items()}
        worst = max(map(float, cell["states"] or ()), default=None)
        return {**cell, **cell["machine"], **noise, "states_worst": worst}

    return csv_text(COLUMNS, map(row_of, cells))


def tabulate(cells: Sequence[dict], errors: Sequence[dict], default: str) -> list[dict]:
    """A block for each group, prompt, scale and start: {"title", "group", "shape", "tolerances": {tolerance: lines}}.

    shape: of the latent of its first scan. A line is what `_line_of` makes of a method. errors: the cells that failed,
    which count as not converged.
    """
    blocks = []
    for key in dict.fromkeys(tuple(cell[name] for name in BLOCK) for cell in (*cells, *errors)):
        some, failed = (
            [cell for cell in each if tuple(cell[name] for name in BLOCK) == key] for each in (cells, errors)
        )
        group, prompt, scale, start = key
        kind = f"{group} scans" if group in (REAL, GENERATED) else group
        title = f"{kind}, {prompt} prompt, scale {scale:g}, start {start}"
        tolerances = {}
        for tolerance in dict.fromkeys(cell["tolerance"] for cell in (*some, *failed)):
            here, bad = ([cell for cell in each if cell["tolerance"] == tolerance] for each in (some, failed))
            methods = dict.fromkeys(cell["method"] for cell in (*here, *bad))
            tolerances[tolerance] = [_line_of(method, here, bad) for method in methods]
        shape = tuple(some[0]["shape"]) if some else None
        blocks.append({"title": title, "group": group, "shape": shape, "tolerances": tolerances})
    return blocks


def _line_of(method: str, cells: Sequence[dict], failed: Sequence[dict]) -> dict:
    """What the cells of a block and tolerance say of a method; medians and worst cases over the scans."""
    some = [cell for cell in cells if cell["method"] == method]
    bad = sum(cell["method"] == method for cell in failed)
    line = {"method": method, "scans": len(some), "asked": len(some) + bad, "failed": bad}
    line["converged"] = sum(cell["converged"] for cell in some)
    line["own_converged"] = sum(cell["own"] is not None and float(cell["own"]) <= cell["tolerance"] for cell in some)
    line["measured"] = all(cell["measured"] for cell in some)
    line["kept"] = _median(cell["kept"] for cell in some)
    ratios = [_ratio(cell["machine"]["seconds"], cell["machine"]["naive_seconds"]) for cell in some]
    for name, values, worst in (
        ("error", [cell["error"] for cell in some], max),
        ("rows", [cell["rows"] for cell in some], max),
        ("sweeps", [cell["sweeps"] for cell in some], max),
        ("time", ratios, max),
        ("own", [cell["own"] for cell in some], max),
        ("one_state", [cell["one_state"] for cell in some], max),
        ("states", [max(map(float, cell["states"])) if cell["states"] else None for cell in some], max),
        ("peak", [cell["machine"]["peak_bytes"] for cell in some], max),
        ("swap_psnr", [cell["swap_psnr"] for cell in some], min),
        ("swap_change", [cell["swap_change"] for cell in some], max),
    ):
        values = [float(value) for value in values if value is not None]
        line[f"{name}_median"], line[f"{name}_worst"] = _median(values), worst(values, default=None)
    line["states_known"] = sum(bool(cell["states"]) for cell in some)
    noise = [cell["noise"] for cell in some if cell["noise"]]
    line["noise"] = {name: _median(one[name] for one in noise) for name in whiteness.MEASURES} if noise else None
    return line


def _ratio(seconds: float, unit: float) -> float | None:
    return seconds / unit if unit > 0 else None


def _median(values) -> float | None:
    values = [float(value) for value in values if value is not None]
    return float(np.median(values)) if values else None


def markdown(blocks: list[dict], default: str, left_out: LeftOut, commands: list[dict]) -> str:
    """The table in GitHub's Markdown, with what a reader has to know of it."""
    text = ["# The inversions on one bench", "", *(f"- {line}" for line in verdict.summary(blocks, default)), ""]
    for block in blocks:
        text += [f"## {block['title'].capitalize()}", ""]
        text += _main(block)
        text += [""]
        text += [f"- At {at:g}: {verdict.sentences(lines, default)}" for at, lines in block["tolerances"].items()]
        text += [""]
        if edits := _edits(block):
            text += [*edits, ""]
    text += [f"- {note}" for note in _notes(blocks)]
    text += [f"- Left out: {line}" for line in str(left_out).splitlines()]
    text += ["", "The commands, and the seconds that they took:", ""]
    return "\n".join([*text, *(f"    {one['command']}    # {one['seconds']:.0f} s" for one in commands)]) + "\n"


def _main(block: dict) -> list[str]:
    """Errors and costs, a line for each tolerance and method."""
    heads = ["tolerance", "method", "converged", "error", "rows", "sweeps", "time / naive's"]
    heads += ["peak MiB", "latents kept", "error, own sampler", "own, one state", "states' error (known)"]
    text = markdown_head(heads)
    for tolerance, line in _lines(block):
        known = f"{line['converged']} of {line['asked']}" + ("" if line["measured"] else " *")
        cells = [f"{tolerance:g}", line["method"], known, _pair(line, "error", _small), _pair(line, "rows", _whole)]
        cells += [_pair(line, "sweeps", _whole), _pair(line, "time", "{:.2g}".format)]
        cells += [_pair(line, "peak", lambda value: f"{value / 2**20:.0f}"), _told(line["kept"], _whole)]
        cells += [_pair(line, name, _small) for name in ("own", "one_state")]
        states = _pair(line, "states", _small)
        cells.append(states if states == NONE else f"{states} ({line['states_known']})")
        text.append(markdown_line(cells))
    return text


def _edits(block: dict) -> list[str]:
    """What x[start] is worth for an edit, where it was measured."""
    lines = _lines(block)
    noise, swap = (any(line[name] is not None for _, line in lines) for name in ("noise", "swap_psnr_median"))
    if not (noise or swap):
        return []
    heads = ["tolerance", "method", *(whiteness.MEASURES if noise else ())]
    text = markdown_head([*heads, *(("swap: PSNR, dB", "swap: change") if swap else ())])
    for tolerance, line in lines:
        cells = [f"{tolerance:g}", line["method"]]
        if noise:
            cells += [_told((line["noise"] or {}).get(name), "{:.3f}".format) for name in whiteness.MEASURES]
        if swap:
            cells += [_pair(line, "swap_psnr", "{:.1f}".format), _pair(line, "swap_change", _small)]
        text.append(markdown_line(cells))
    if noise:
        floor = [_told(value, "{:.3f}".format) for value in whiteness.white_noise(block["shape"]).values()]
        text.append(markdown_line([NONE, "white noise", *floor, *([NONE] * (2 if swap else 0))]))
    return text


def _notes(blocks: list[dict]) -> list[str]:
    notes = [
        "Two figures are the median and the worst over the scans. Error: |denoise(x[start]) - x0| / |x0|, measured by "
        "the bench through the unmodified sampler from x[start] alone, for every method. Rows: all rows through the "
        "network, a guided evaluation counts two, the measured round trips of a method count, and the bench's own "
        "measurements do not. Time: seconds over those of the naive inversion of the same scan in the same process.",
        "Own sampler: the error through the sampler that the method inverts, with all that it keeps; one state: with "
        "x[start] alone. Latents kept: what the way back needs, in latents. Peak: memory beyond what was in use before "
        "(allocated on CUDA, resident on a CPU). States' error: the largest relative error of x[1..start], and in "
        "brackets how many scans it is known for: generated ones, and real ones whose reference trajectory converged.",
        "x[T] of white noise has norm and flatness 1, and correlations of neighbours and of channels near 0 "
        "(whiteness.py). Swap: the run down from x[start] under another prompt with guidance; PSNR of the decoded "
        "pixels and relative change of the latent cells outside the tumour's mask, over all where there is none. It is "
        "measured where the other prompt is another.",
    ]
    lines = [line for block in blocks for _, line in _lines(block)]
    if any(not line["measured"] for line in lines):
        notes.append("* The method does not measure its own error; the bench did, and does not charge it for that.")
    if failed := sum(line["failed"] for line in lines):
        notes.append(f"{failed} cells failed and count as not converged; errors.jsonl says why.")
    if any(block["group"] == REAL for block in blocks):
        notes.append("A real scan need not have a preimage, above all under guidance.")
    return notes


def _lines(block: dict) -> list[tuple[float, dict]]:
    return [(tolerance, line) for tolerance, lines in block["tolerances"].items() for line in lines]


def _pair(line: dict, name: str, form: Callable[[float], str]) -> str:
    median, worst = line[f"{name}_median"], line[f"{name}_worst"]
    return NONE if median is None else f"{form(median)}, {form(worst)}"


def _told(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None else form(value)


def _small(value: float) -> str:
    return f"{value:.1e}"


def _whole(value: float) -> str:
    return f"{value:g}"
