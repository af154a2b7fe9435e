"""The autoencoder and the diffusion model are trained by the same loop, which this module holds.

The random numbers of a step depend only on the seed and the step. So a run that was killed can be started again by the
same command: it goes on from its last checkpoint and reaches the same bits as an undisturbed run on that machine.
"""

import copy
import csv
import errno
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import atomic, irregular, write_text
from ..words import one_line, shown
from .muon import optimizers

WARMUP = 200  # steps to the full learning rate
COOLDOWN = 0.3  # last share of the steps, over which the learning rate falls to zero
EMA_DECAY = 0.999
MAX_GRADIENT_NORM = 1.0
MOST = 10**9  # steps and the like; more is a slip


@dataclass(frozen=True)
class Plan:
    """How long and with what a stage trains.

    When a run is resumed, `steps` and `minutes` may change and the rest may not. `minutes` limits this call only, which
    then ends at a checkpoint. Raises ValueError, naming the field, for what nothing can be trained with.
    """

    steps: int
    batch: int
    lr: float  # the peak
    seed: int = 0
    every: int = 200  # steps from one validation and checkpoint to the next
    minutes: float = math.inf

    def __post_init__(self):
        for name in ("steps", "batch", "every"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is a whole number from 1 to {MOST}, got {shown(getattr(self, name))}")
        if not 0 < self.lr <= 10:
            raise ValueError(f"lr is a number above 0, up to 10, got {self.lr}")
        if not self.minutes >= 0:
            raise ValueError(f"minutes are a number from 0 up, got {self.minutes}")
        check_seed(self.seed)

    @property
    def fixed(self) -> dict:
        return {key: value for key, value in asdict(self).items() if key not in ("steps", "minutes")}


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that torch's generators do not take; `step_generator` multiplies it."""
    if not 0 <= seed < 2**40:
        raise ValueError(f"seed is a whole number from 0 to 2**40 - 1, got {shown(seed)}")


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator that all random numbers of a step come from; noise comes from it through `normal`."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and on the device of `like`.

    Its own generator lives on that device, and the step's generator seeds it. A CPU would take as long to draw a batch
    of noise as a GPU takes for the step.
    """
    seed = torch.randint(2**62, (), generator=generator).item()
    own = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=own, device=like.device)


def compile_on_gpu(*modules: nn.Module) -> None:
    """Compile modules in place where they lie on a GPU: it halves the time of a step, and a CPU gains nothing.

    Their copies, and so the average that is validated and exported, stay as they are.
    """
    for module in modules:
        if next(module.parameters()).is_cuda:
            module.compile()


def learning_rate(step: int, plan: Plan) -> float:
    """Linear warm-up, constant, linear to zero. While it is constant, a run can be given fewer or more steps."""
    return plan.lr * min(1.0, (step + 1) / WARMUP, (plan.steps - step) / (COOLDOWN * plan.steps))


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    plan: Plan,
    checkpoint: Path,
) -> nn.Module:
    """Train `model` in place; returns the moving average of its weights, which is validated and exported.

    It keeps `checkpoint` and, beside it, a CSV log, and goes on from the checkpoint if there is one. loss(model,
    generator) draws its own batch. Raises ValueError if the checkpoint was made with another plan, and
    FloatingPointError at a loss that is not finite.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    steppers = optimizers(model, plan.lr)
    parts = {"model": model, "average": average, **steppers}
    log = resume(checkpoint, parts, plan)  # one row of figures for each checkpoint
    start, earlier = (log[-1]["step"], log[-1]["minutes"]) if log else (0, 0.0)

    began = lap_began = time.monotonic()
    total = torch.zeros((), device=next(model.parameters()).device)
    model.train()
    for step in range(start, plan.steps):
        total += update(model, average, steppers.values(), loss, plan, step)
        done = step + 1
        if done % plan.every != 0 and done != plan.steps:
            continue

        mean = total.item() / (done - (log[-1]["step"] if log else 0))
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss came to {mean} on the way to step {done}; {checkpoint} is as it was")
        total.zero_()
        with torch.no_grad():
            figures = validate(average)
        now = time.monotonic()
        row = {"step": done, "minutes": earlier + (now - began) / 60, "lr": learning_rate(step, plan), "loss": mean}
        log.append(row | figures)
        print("  ".join(f"{key} {value:.5g}" for key, value in log[-1].items()), flush=True)
        save({"plan": plan.fixed, "log": log} | {key: part.state_dict() for key, part in parts.items()}, checkpoint)
        write_log(log, checkpoint.with_suffix(".csv"))
        lap, lap_began = now - lap_began, now
        if now - began + lap > 60 * plan.minutes:
            break
    return average


def update(model: nn.Module, average: nn.Module, steppers: Iterable, loss: Callable, plan: Plan, step: int) -> Tensor:
    """One step of the optimizers and of the average; returns the loss, ()."""
    value = loss(model, step_generator(plan.seed, step))
    model.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = learning_rate(step, plan)
        stepper.step()
    decay = min(EMA_DECAY, (step + 1) / (step + 10))  # a young average forgets its random start faster
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    return value.detach()


def resume(checkpoint: Path, parts: dict, plan: Plan) -> list[dict]:
    """Load the parts from the checkpoint, if there is one; returns its log."""
    if not checkpoint.exists():
        return []
    state = load(checkpoint, ("plan", "log", *parts), "this stage")
    if state["plan"] != plan.fixed:
        raise ValueError(
            f"{checkpoint} was trained with {state['plan']}, asked for {plan.fixed}; "
            "ask for the same again, or name another folder to start anew"
        )
    with sound(checkpoint, "this stage"):
        for key, part in parts.items():
            part.load_state_dict(state[key])
        assert all({"step", "minutes"} <= set(row) for row in state["log"]), "a row of its log lacks step or minutes"
    return state["log"]


def load(path: Path, names: Iterable[str], stage: str, device: torch.device | str = "cpu") -> dict:
    """What `save` wrote: an object with these names. ValueError, which names the stage that writes it, for a file that
    is not there, damaged or something else."""
    if what := irregular(path):
        raise ValueError(f"{what}: {path}; run {stage} first")
    with sound(path, stage):
        state = torch.load(path, map_location=device, weights_only=True)
        return {name: state[name] for name in names}


@contextmanager
def sound(path: Path, stage: str) -> Iterator[None]:
    """Within the block, whatever a file of this run's raises becomes a ValueError that names it, and the stage that
    writes it."""
    try:
        yield
    except FloatingPointError:
        raise
    except Exception as error:  # torch raises half a dozen types for damaged files
        why = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{path} is damaged ({why}); remove it and run {stage} again") from error


def save(state: dict, path: Path) -> None:
    """torch.save, whole or not at all: a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(
                errno.ENOSPC, f"the disk is full, or cannot be written to ({one_line(str(error))})"
            ) from error


def write_log(log: list[dict], path: Path) -> None:
    """The figures of all checkpoints so far as CSV, one row each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_text(path, text.getvalue())
