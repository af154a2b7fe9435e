"""This module runs a small benchmark on the model double. The benchmark's tests share it, and so do its kills.

    python benchmark_files.py FOLDER

is for torchrun: it runs the benchmark on the data drawn to FOLDER, and writes it to FOLDER/ranks.
"""

import csv
import json
import sys
from pathlib import Path

import torch
from drawn_datasets import draw_br35h, draw_busi
from fake_model import FakeModel

from composition.benchmark import BenchmarkRequest, run_benchmark
from composition.metrics import Networks
from composition.settings import Settings
from sd21.files import sha256, write_json

# The paper's own: no step beyond it makes a baseline's line double, or ours another than Settings.paper().
SETTINGS = Settings.paper()
WITHOUT = Networks(None, None, {"lpips": "no LPIPS weights", "clip": "no CLIP weights"})
SAMPLES = 2  # of each dataset


def draw(folder: Path) -> dict[str, tuple[Path, int]]:
    """Both datasets under `folder`, as BenchmarkRequest.parts."""
    draw_br35h(folder / "br35h", SAMPLES)
    draw_busi(folder / "busi", SAMPLES)
    return drawn(folder)


def drawn(folder: Path) -> dict[str, tuple[Path, int]]:
    return {name: (folder / name, SAMPLES) for name in ("br35h", "busi")}


def run(
    parts: dict,
    out: Path,
    *methods: str,
    model=None,
    settings=SETTINGS,
    networks=WITHOUT,
    ablations=(),
    shown=(0, 1),
    **options,
):
    """Run the benchmark; returns its failures. options: more of BenchmarkRequest's fields.

    The double has no attention to hook, so it cannot run tf-icon.
    """
    torch.set_num_threads(1)  # the tensors are tiny
    request = BenchmarkRequest(parts, 0, methods, tuple(ablations), shown, **options)
    return run_benchmark(request, out, lambda: model or FakeModel(), settings, networks, quiet=True)


def read_csv(out: Path) -> list[dict[str, str]]:
    with (out / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(out: Path, name="table") -> dict:
    return json.loads((out / f"{name}.json").read_text())


def pass_off(out: Path, variant: str, sample: str, content: bytes) -> None:
    """Replace a composite, and make its record say that this is what its row made."""
    image, entry = (out / "runs" / variant / name for name in (f"images/{sample}.png", f"records/{sample}.json"))
    image.write_bytes(content)
    found = json.loads(entry.read_text())
    found["sha256"]["image"] = sha256(image)
    write_json(entry, found)


if __name__ == "__main__":
    run(drawn(Path(sys.argv[1])), Path(sys.argv[1]) / "ranks", "copy-paste", "sdedit", "ours")
