"""This program runs compositions at full size, 512 px, with random weights, and measures what a GPU makes of them.

    python tests/benchmarks/full_size_run.py --folder WEIGHTS --out DIR                       # all parts
    python tests/benchmarks/full_size_run.py --folder WEIGHTS --out DIR --parts compose vae
    python tests/benchmarks/full_size_run.py --folder WEIGHTS --out DIR --parts ranks trips load
    python tests/benchmarks/full_size_run.py --tiny --out DIR                                 # tries the program

It writes random weights of the published shapes (float16, the diffusers layout, 2.6 GB) to WEIGHTS, unless they are
there. The pictures are noise, and mean nothing; the arithmetic is that of the published weights. Only how many sweeps
an inversion takes depends on the weights. --tiny takes the small checkpoint in their place, at its own 256 px.

compose  a composition by every method, twice: seconds by stage, rows, and the device's peak memory. "other" is what no
         stage counts: placing, matching, giving back detail, measuring the label
vae      encoding and decoding an image, by dtype, and how far each is from float32 without TF32
ranks    `composition batch` under torchrun, with several ranks on one device. Rows an hour are those between the end
         of the R-th row, when R ranks have started up, and that of the last
trips    the round trips of `solvers.INVERSIONS` through the small checkpoint, of the four scans that ship with it, by
         the network's dtype, and whether two runs give equal bits. The errors are those of the worst scan
load     seconds from the disk to the device, and those of plainly reading the same bytes. Before a cold one the page
         cache is dropped, through /proc/sys/vm/drop_caches where that can be written, else file by file
         (posix_fadvise). It comes last, because the other parts would then read torch itself from the disk again

A measurement that fails says so in its row, and the others go on. DIR/full_size_run.md gets a table for each part; a
further run adds to it.
"""

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from small_models import SCHEDULER_JSON, write_small_tokenizer  # noqa: E402

import sd21  # noqa: E402
from composition import (  # noqa: E402
    METHODS,
    box_mask,
    compose,
    exceptional_context,
    latents_of,
    read_mask,
    read_scan,
    write_image,
)
from composition.mini.demo import EXAMPLES  # noqa: E402
from sd21 import single_file, sources  # noqa: E402
from sd21.files import read_json_lines  # noqa: E402
from sd21.text import TextEncoder  # noqa: E402
from sd21.unet import UNet  # noqa: E402
from sd21.vae import VAE  # noqa: E402
from sd21.words import one_line  # noqa: E402
from solvers import INVERSIONS, NoiseSchedule, data_prediction, denoise, dpm_solver_pp_2m, invert, time_uniform  # noqa: E402

NETWORKS = {"unet": (UNet, single_file.UNET), "vae": (VAE, single_file.VAE)}
NETWORKS["text_encoder"] = (TextEncoder, single_file.TEXT)
STAGES = ("encode", "inversion", "composition", "decode")
SCANS = ("brain_background", "brain_object", "breast_background", "breast_object")
START, STEPS = 6, 20  # T' and T of the compositions
# Tolerance and sweeps: those of a composition, and what shows how far an inversion gets in this dtype.
EFFORTS = {"a composition's": (5e-2, 2), "to the floor": (2e-6, None)}
MEBIBYTE = 2**20


class Report:
    """Markdown that is printed, and written to a file, line by line, so that a run that is stopped loses nothing."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.file = (out / "full_size_run.md").open("a", encoding="utf-8")

    def say(self, text: str):
        print(text, flush=True)
        print(text, file=self.file, flush=True)

    def table(self, *columns: str):
        self.say(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")

    def row(self, *cells: object):
        self.say(f"| {' | '.join(map(str, cells))} |")

    @contextmanager
    def surviving(self, *cells: object) -> Iterator[None]:
        """A row that says what went wrong in the block, if anything did."""
        try:
            yield
        except Exception as error:  # whatever is wrong with one measurement, the others go on
            self.row(*cells, f"FAILED: {why(error)}")


class Bench:
    """What the parts share: the options, the folder of the weights, and the model, which is loaded once."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, torch.device(options.device)
        self.gpu = self.device.type == "cuda"
        self.folder = sources.MINI if options.tiny else options.folder
        self.dtype = torch.bfloat16 if self.gpu else torch.float32

    @cached_property
    def model(self) -> sd21.StableDiffusion:
        return sd21.load(self.folder, device=self.device, dtype=self.dtype)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.safetensors"))

    def synchronise(self):
        if self.gpu:
            torch.cuda.synchronize()

    def clock(self, task: Callable) -> tuple[float, object]:
        """Seconds, and what the task returns."""
        self.synchronise()
        begin = time.perf_counter()
        result = task()
        self.synchronise()
        return time.perf_counter() - begin, result

    def median(self, task: Callable) -> float:
        """Median seconds, after two calls to warm up."""
        task()
        task()
        return statistics.median(self.clock(task)[0] for _ in range(self.options.rounds))

    def reset_peak(self):
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """GiB at most since `reset_peak`, weights and all."""
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if self.gpu else "-"


def why(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300).replace("|", "/")


def write_weights(folder: Path, device: torch.device):
    """Random weights of the published shapes. They are drawn so that activations neither vanish nor overflow: norms
    begin as the identity, and the sum of a 3x3 convolution over 320 channels has about the size of its inputs."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(key: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) > 1:
            values = torch.empty(shape, device=device).normal_(0, 0.02, generator=generator)
        else:
            values = torch.full(shape, float(key.endswith("weight")))
        return values.to("cpu", torch.float16)

    for part, (network, config) in NETWORKS.items():
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in network(config).state_dict().items()}
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(asdict(config)))
        save_file(
            {key: drawn(key, shape) for key, shape in shapes.items()},
            folder / part / f"{sources.WEIGHTS[part]}.safetensors",
        )
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER_JSON))
    if not (folder / "tokenizer").exists():
        write_small_tokenizer(folder / "tokenizer")
    (folder / "written").touch()  # last, so that a folder that a killed run has left is written again


def drop_cache(files: list[Path]) -> str:
    """Drop the files from the page cache; returns by what means."""
    os.sync()  # pages that are not on the disk yet stay
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "/proc/sys/vm/drop_caches"
    except OSError as error:
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return f"posix_fadvise, for drop_caches cannot be written ({why(error)})"


def read_plainly(files: list[Path]):
    buffer = bytearray(16 * MEBIBYTE)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def load_part(bench: Bench, report: Report):
    files = bench.files()
    size = sum(path.stat().st_size for path in files)
    sd21.load("mini", device=bench.device)  # the imports, and the device's context, are not what is timed

    def load():
        sd21.load(bench.folder, device=bench.device, dtype=bench.dtype)

    def load_by_safetensors():
        return [load_file(path, device=str(bench.device)) for path in files]

    tasks = {"plain read": lambda: read_plainly(files), "sd21.load": load, "load_file": load_by_safetensors}
    report.say(
        f"\n{size / 1e9:.2f} GB of files, in {bench.dtype} on the device, the VAE in float32. load_file: safetensors'."
    )
    report.table("what", "page cache", "seconds, by run", "GB/s, best")
    for cold in (True, False):
        for name, task in tasks.items():
            with report.surviving(name, "cold" if cold else "warm"):
                seconds = []
                for _ in range(2):
                    means = f"cold, by {drop_cache(files)}" if cold else "warm"
                    seconds.append(bench.clock(task)[0])
                told = ", ".join(f"{each:.2f}" for each in seconds)
                report.row(name, means, told, f"{size / min(seconds) / 1e9:.2f}")


def resized(path: Path, side: int, how: Image.Resampling) -> Image.Image:
    with Image.open(path) as image:
        return image.resize((side, side), how)


def example(name: str, side: int) -> tuple:
    """A shipped example at this size: background, object, its mask, the target's box and the prompt."""
    (row,) = (row for row in read_json_lines(EXAMPLES) if row["id"] == name)
    paths = {role: EXAMPLES.parent / row[role] for role in ("background", "object", "object_mask")}
    with Image.open(paths["background"]) as image:
        zoom = side / image.width
    background, obj = (
        read_scan(resized(paths[role], side, Image.Resampling.BICUBIC)) for role in ("background", "object")
    )
    object_mask = read_mask(resized(paths["object_mask"], side, Image.Resampling.NEAREST))
    box = tuple(round(zoom * number) for number in row["user_box"])
    return background, obj, object_mask, box, row["prompt"]


def compose_part(bench: Bench, report: Report):
    side = bench.model.image_size
    background, obj, object_mask, box, prompt = example("brain", side)
    sample = (background, obj, object_mask, box_mask(box, background.size), prompt)
    bench.reset_peak()
    report.say(f"\nA pair at {side} px, {bench.dtype}, defaults. The weights alone take {bench.peak()} GiB.")
    columns = ("method", "call", "seconds", *STAGES, "other", "rows: inversion, composition", "peak GiB", "errors")
    report.table(*columns)
    for method in METHODS:
        for call in ("first", "second"):
            with report.surviving(method, call):
                bench.reset_peak()
                seconds, made = bench.clock(lambda method=method: compose(bench.model, *sample, method=method))
                stages = [made.seconds.get(stage, 0.0) for stage in STAGES]
                rows = ", ".join(str(made.rows[stage]) for stage in ("inversion", "composition"))
                errors = [one.error for one in made.inversion.values() if one.error is not None]
                told = [f"{each:.2f}" for each in (seconds, *stages, seconds - sum(made.seconds.values()))]
                report.row(method, call, *told, rows, bench.peak(), ", ".join(f"{each:.1e}" for each in errors) or "-")


@contextmanager
def tf32(convolutions: bool, products: bool) -> Iterator[None]:
    """Within the block float32 convolutions and matrix products on a GPU round their factors to TF32, or do not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@torch.no_grad()
def vae_part(bench: Bench, report: Report):
    side = bench.model.image_size
    image = torch.from_numpy(example("brain", side)[0].values()).permute(2, 0, 1)[None].to(bench.device)
    vae, config = bench.model.vae, bench.model.vae.config
    latent = torch.randn(1, config.latent_channels, side // config.factor, side // config.factor)
    latent = latent.to(bench.device)
    cases = {
        "float32, no TF32": (torch.float32, False, False),
        "float32, TF32 in convolutions alone (torch's default)": (torch.float32, True, False),
        "float32, TF32": (torch.float32, True, True),
        "bfloat16": (torch.bfloat16, True, True),
    }
    expected = None
    report.say(f"\nOne image of {side} px; the latent to decode is noise. Differences are relative, to the first row.")
    report.table("arithmetic", "encode ms", "decode ms", "encode difference", "decode difference", "peak GiB")
    for name, (dtype, convolutions, products) in cases.items():
        with report.surviving(name), tf32(convolutions, products):
            network = vae if dtype == torch.float32 else copy.deepcopy(vae).to(dtype)
            tasks = (lambda network=network: network.encode(image), lambda network=network: network.decode(latent))
            bench.reset_peak()
            found = [task().double() for task in tasks]
            peak = bench.peak()
            expected = expected or found
            differences = [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
            times = [1e3 * bench.median(task) for task in tasks]
            report.row(name, *(f"{each:.1f}" for each in times), *(f"{each:.1e}" for each in differences), peak)


def write_manifest(folder: Path, rows: int, side: int) -> Path:
    """Rows none of whose inversions is another row's: each has a background and an object of its own brightness."""
    lines = []
    for number in range(rows):
        name = ("brain", "breast")[number % 2]
        background, obj, object_mask, box, prompt = example(name, side)
        files = {role: f"{number}_{role}.png" for role in ("background", "object", "object_mask")}
        for role, scan in (("background", background), ("object", obj)):
            dimmed = np.rint(scan.pixels * (1 - 0.01 * (number + 1)))
            write_image(folder / files[role], dimmed.astype(scan.pixels.dtype))
        write_image(folder / files["object_mask"], object_mask)
        lines.append(json.dumps({**files, "id": f"row{number}", "user_box": list(box), "prompt": prompt}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def run_until(command: list[str], seconds: float, log: Path) -> int | None:
    """The exit code of a command, whose output goes to a file; None where it took longer than that, and was ended."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # torchrun ends its ranks then
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def ranks_part(bench: Bench, report: Report):
    options, side = bench.options, image_size_of(bench)
    report.say(f"\nRows of {side} px each, in a folder of their own for each run; the default method and dtype.")
    report.table("ranks", "rows", "done", "seconds", "to the first row", "to the last", "rows an hour", "what failed")
    for ranks in options.ranks:
        with report.surviving(ranks), tempfile.TemporaryDirectory() as name:
            work, rows = Path(name), ranks * options.rows_per_rank
            manifest = write_manifest(work, rows, side)
            command = [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
                *("-m", "--", "composition", "batch", str(manifest), "--out", str(work / "made")),
                *("--model", str(bench.folder), "--device", bench.device.type, "--quiet"),
                # Random weights draw no tumours, and a refused row leaves no record to tell its time by.
                *("--min-contrast", "none", "--max-clipped", "none", "--min-cells", "none"),
            ]
            begin = time.time()
            code = run_until(command, options.timeout, work / "log")
            seconds = time.time() - begin
            ends = sorted(path.stat().st_mtime - begin for path in (work / "made/records").glob("*.json"))
            rate = 3600 * (len(ends) - ranks) / (ends[-1] - ends[ranks - 1]) if len(ends) > ranks else float("nan")
            report.row(
                ranks,
                rows,
                len(ends),
                f"{seconds:.1f}",
                *(f"{end:.1f}" for end in (ends[0], ends[-1])) if ends else ("-", "-"),
                f"{rate:.0f}",
                what_failed(work, code, options.timeout),
            )


def what_failed(work: Path, code: int | None, timeout: float) -> str:
    if code == 0:
        return "-"
    errors = work / "made/errors.jsonl"
    if code is None:
        return f"ended after {timeout:.0f} s"
    told = errors.read_text() if errors.exists() else (work / "log").read_text()[-1500:]
    return f"exit {code}: {one_line(told, 1500)}".replace("|", "/")


def image_size_of(bench: Bench) -> int:
    """Pixels, from the folder's own config, so that this process need not hold a model beside those of the ranks."""
    return 8 * json.loads((bench.folder / "unet/config.json").read_text())["sample_size"]


def trips_part(bench: Bench, report: Report):
    options = bench.options
    cases = {
        "bfloat16": (torch.bfloat16, True),
        "float16": (torch.float16, True),
        "float32, TF32 in convolutions (torch's default)": (torch.float32, True),
        "float32, no TF32": (torch.float32, False),
    }
    report.say(
        f"\n{len(SCANS)} scans in one batch, {STEPS} steps. a composition's: tolerance 5e-2, 2 sweeps. to the floor: "
        f"2e-6, {options.max_sweeps} sweeps. The reports' error, and that of a denoising after it."
    )
    columns = ("network", "start", "effort", "method", "reported error", "measured error", "converged", "rows", "ms")
    report.table(*columns, "equal bits")
    for name, (dtype, rounded) in cases.items():
        with report.surviving(name), tf32(rounded, False):
            model = sd21.load("mini", device=bench.device, dtype=dtype)
            x0 = torch.cat([latents_of(model, read_scan(EXAMPLES.parent / f"{scan}.png")) for scan in SCANS])
            grid = time_uniform(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod), STEPS)
            x0_fn = data_prediction(model.unet, grid, model.prediction_type, exceptional_context(model))
            for start in (START, STEPS):
                for effort, (tol, most) in EFFORTS.items():
                    for method in INVERSIONS:
                        sweeps = options.max_sweeps if most is None else most
                        how = {"start": start, "method": method, "tol": tol, "max_sweeps": sweeps}
                        with report.surviving(name, start, effort, method):
                            report.row(name, start, effort, method, *round_trip(bench, x0, grid, x0_fn, how))


@torch.no_grad()
def round_trip(bench: Bench, x0: torch.Tensor, grid, x0_fn, how: dict) -> tuple[str, ...]:
    def task():
        return invert(x0, grid, dpm_solver_pp_2m, x0_fn, on_failure="return", **how)

    (first, once), (second, again) = bench.clock(task), bench.clock(task)
    run = grid.until(how["start"])
    back = denoise(once.states[-1], run, dpm_solver_pp_2m(run), x0_fn)
    measured = ((back - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)).max().item()
    return (
        f"{once.errors.max().item():.1e}",
        f"{measured:.1e}",
        f"{int(once.converged.sum())} of {len(x0)}",
        str(once.rows.max().item()),
        f"{1e3 * min(first, second):.0f}",
        "yes" if torch.equal(once.states, again.states) else "NO",
    )


PARTS = {"compose": compose_part, "vae": vae_part, "ranks": ranks_part, "trips": trips_part, "load": load_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the random weights are, or are to be written")
    parser.add_argument("--out", type=Path, required=True, help="folder for full_size_run.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--rounds", type=int, default=10, help="timed passes of the VAE (default: 10)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--rows-per-rank", type=int, default=4, help="rows of a batch, for each rank (default: 4)")
    parser.add_argument("--timeout", type=float, default=180, help="seconds that a batch may take (default: 180)")
    parser.add_argument("--max-sweeps", type=int, default=10, help="of the trips to the floor (default: 10)")
    parser.add_argument("--tiny", action="store_true", help="the small checkpoint, to try the program")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not options.tiny and options.folder is None:
        parser.error("name a --folder for the weights, or take --tiny")

    bench, report = Bench(options), Report(options.out)
    name = torch.cuda.get_device_name() if bench.gpu else f"CPU, {torch.get_num_threads()} threads"
    report.say(f"\n# {bench.folder}\n\n{name}; {os.cpu_count()} cores; torch {torch.__version__}")
    if not options.tiny and not (options.folder / "written").exists():
        with report.surviving("the random weights"):  # the trips take none
            seconds, _ = bench.clock(lambda: write_weights(options.folder, bench.device))
            report.say(f"\nThe random weights were written in {seconds:.0f} s.")
    for part in options.parts:
        report.say(f"\n## {part}")
        begin = time.perf_counter()
        with report.surviving(part):
            PARTS[part](bench, report)
        report.say(f"\n{part} took {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
