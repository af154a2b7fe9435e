"""This program measures the peak memory of loading a full-size Stable Diffusion 2.1, as a multiple of its weights'
size.

    python tests/benchmarks/load_memory.py [--folder DIR]

It writes random weights of the published shapes, in the diffusers layout, to DIR (by default the system's temporary
folder; they take 5.2 GB while it runs). It loads them in a fresh process per case and prints

    (peak resident memory - that of the process after its imports) / (bytes of the loaded weights)

The bound is 1.15. A loader that keeps its file mapped, or holds a state dict beside the module, scores 2.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = (("float32", "float32"), ("float16", "float16"), ("float16", "float32"))  # of the files, of the loaded model
BOUND = 1.15


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write(folder: Path, dtype: str):
    from dataclasses import asdict

    import torch
    from safetensors.torch import save_file

    from sd21 import single_file, sources
    from sd21.text import TextEncoder
    from sd21.unet import UNet
    from sd21.vae import VAE

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from small_models import SCHEDULER_JSON, write_small_tokenizer

    torch.manual_seed(0)
    published = {"unet": (UNet, single_file.UNET), "vae": (VAE, single_file.VAE)}
    published["text_encoder"] = (TextEncoder, single_file.TEXT)
    for part, (network, config) in published.items():
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in network(config).state_dict().items()}
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(asdict(config)))
        weights = {key: torch.randn(shape, dtype=getattr(torch, dtype)) for key, shape in shapes.items()}
        save_file(weights, folder / part / f"{sources.WEIGHTS[part]}.safetensors")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER_JSON))
    if not (folder / "tokenizer").exists():
        write_small_tokenizer(folder / "tokenizer")


def measure(folder: Path, dtype: str):
    import torch

    import sd21

    before, start = peak_bytes(), time.perf_counter()
    model = sd21.load(folder, device="cpu", dtype=getattr(torch, dtype))
    seconds, extra = time.perf_counter() - start, peak_bytes() - before
    parts = (model.unet, model.vae, model.text_encoder)
    size = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())
    print(json.dumps({"extra": extra, "size": size, "seconds": seconds, "torch": torch.__version__}))


def child(task: str, folder: Path, dtype: str) -> str:
    # The parent stays small on purpose: Linux counts the peak of the process that forks into that of the forked one.
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), "--dtype", dtype]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(folder: Path | None):
    missed = False
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = None
        for stored, loaded in CASES:
            if stored != written:
                child("write", Path(temporary), stored)
                written = stored
            found = json.loads(child("measure", Path(temporary), loaded))
            ratio = found["extra"] / found["size"]
            missed |= ratio >= BOUND
            print(
                f"{stored} file to {loaded} (VAE float32): peak {found['extra'] / 1e9:.3f} GB for "
                f"{found['size'] / 1e9:.3f} GB of weights = {ratio:.3f}x (bound {BOUND}); {found['seconds']:.1f} s; "
                f"torch {found['torch']}",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the weights")
    parser.add_argument("--task", choices=("write", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        {"write": write, "measure": measure}[arguments.task](arguments.folder, arguments.dtype)
    else:
        sys.exit(main(arguments.folder))
