"""This command trains the small checkpoint, stage by stage:

    python -m sd21.training vae       --data ../shared/data --out RUN
    python -m sd21.training latents   --data ../shared/data --out RUN
    python -m sd21.training diffusion --data ../shared/data --out RUN
    python -m sd21.training export    --out RUN --to sd21/mini

The same commands run on a GPU and, slower, on a CPU. `vae` and `diffusion` go on where a killed or time-limited run
stopped. One command at a time works on a folder.
"""

import argparse
import os
import sys
from pathlib import Path

from ..command import Parser, folder, guarded

# cuBLAS is deterministic only with a fixed workspace. It reads this setting when torch first uses it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def parser() -> Parser:
    verbatim = argparse.RawDescriptionHelpFormatter
    root = Parser(prog="sd21.training", description=__doc__, formatter_class=verbatim)
    stages = root.add_subparsers(dest="stage", required=True)

    def stage(name: str, text: str) -> argparse.ArgumentParser:
        command = stages.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--out", type=folder, required=True, help="folder of the run: checkpoints, logs, latents")
        if name != "export":
            command.add_argument("--data", type=Path, required=True, help="folder that holds br35h/ and busi/")
            command.add_argument("--seed", type=int, default=0)
        return command

    def plan(command: argparse.ArgumentParser, steps: int, batch: int) -> None:
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--batch", type=int, default=batch)
        command.add_argument("--lr", type=float, default=1e-3, help="peak of the learning rate")
        command.add_argument("--every", type=int, default=500, help="steps between checkpoints")
        command.add_argument("--minutes", type=float, default=float("inf"), help="end at a checkpoint before")

    vae = stage("vae", "the autoencoder, on crops")
    plan(vae, steps=8000, batch=16)
    vae.add_argument("--crop", type=int, default=256, help="side of a crop in pixels, a multiple of 8")
    latents = stage("latents", "encode all scans, and measure the scaling factor")
    latents.add_argument("--variants", type=int, default=16, help="copies of a scan, all but the first augmented")
    plan(stage("diffusion", "UNet and text tower, on the latents"), steps=1600, batch=128)
    stage("export", "write the checkpoint in the diffusers layout").add_argument("--to", type=Path, required=True)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns the exit code of `sd21.command.guarded`."""
    again = "vae and diffusion go on from their last checkpoint by the same command, the other stages begin anew"
    return guarded(lambda: _run(parser().parse_args(arguments)), again)


def _run(options: argparse.Namespace) -> int:
    # Imported here, within `guarded`, as that takes seconds in which somebody may press Ctrl-C.
    import torch

    from ..folders import owned
    from . import data
    from .diffusion import train_diffusion
    from .export import export
    from .loop import Plan
    from .vae import train_vae, write_latents

    torch.use_deterministic_algorithms(True, warn_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.stage == "export":
        with owned(options.out):
            export(options.out, options.to)
        return 0
    data.find_scans(options.data)  # for its error, before there is a folder
    if options.stage == "latents":
        with owned(options.out):
            write_latents(options.data, options.out, options.variants, options.seed, device)
        return 0
    plan = Plan(*(getattr(options, name) for name in ("steps", "batch", "lr", "seed", "every", "minutes")))
    with owned(options.out):
        if options.stage == "vae":
            train_vae(options.data, options.out, plan, options.crop, device)
        else:
            train_diffusion(options.data, options.out, plan, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
