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


def normal(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> Tensor:
    """Standard normal noise on the device. Its own generator lives there, and the step's generator seeds it: a
    CPU would take as long to draw a batch of noise as a GPU takes for the step.
    """
    seed = torch.randint(2**62, (), generator=generator).item()
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


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
    draw: Callable[[torch.Generator], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    plan: Plan,
    checkpoint: Path,
) -> nn.Module:
    """Train `model` in place; returns the moving average of its weights, which is validated and exported.

    It keeps `checkpoint` and, beside it, a CSV log, and goes on from the checkpoint if there is one. draw(generator)
    gives the batch of a step: tensors on the model's device, of the same shapes in every step. loss(model, *batch)
    draws nothing, and must not make a GPU wait for the host. Raises ValueError if the checkpoint was made with another
    plan, and FloatingPointError at a loss that is not finite.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    steppers = optimizers(model, plan.lr)
    parts = {"model": model, "average": average, **steppers}
    log = resume(checkpoint, parts, plan)  # one row of figures for each checkpoint
    start, earlier = (log[-1]["step"], log[-1]["minutes"]) if log else (0, 0.0)

    update = Update(model, average, list(steppers.values()), loss)
    began = lap_began = time.monotonic()
    total = torch.zeros((), device=next(model.parameters()).device)
    model.train()
    for step in range(start, plan.steps):
        total += update(draw(step_generator(plan.seed, step)), plan, step)
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


class Update:
    """One step of the optimizers and of the average.

    On a GPU the step is recorded as a CUDA graph when it has run a few times, and replayed from then on: a host takes
    longer to launch its thousands of kernels one by one than the GPU takes to run them. What changes from step to step
    therefore lies in tensors that keep their places: the batch, the learning rate and the share of the new weights in
    the average.
    """

    PLAIN_STEPS = 3  # in which torch compiles, libraries load, and the optimizers make their states

    def __init__(self, model: nn.Module, average: nn.Module, steppers: list[torch.optim.Optimizer], loss: Callable):
        self.model, self.average, self.steppers, self.loss = model, average, steppers, loss
        self.device = next(model.parameters()).device
        self.done, self.graph = 0, None
        if self.device.type == "cuda":
            self.rate, self.share = torch.zeros(2, device=self.device)
            self.stream = torch.cuda.Stream()

    def __call__(self, batch: tuple[Tensor, ...], plan: Plan, step: int) -> Tensor:
        """Returns the loss, ()."""
        rate = learning_rate(step, plan)
        share = 1 - min(EMA_DECAY, (step + 1) / (step + 10))  # a young average forgets its random start faster
        if self.device.type != "cuda":
            return self._step(batch, rate, share)
        self.rate.fill_(rate)
        self.share.fill_(share)
        self.done += 1
        if self.done <= self.PLAIN_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                value = self._step(batch, self.rate, self.share)
            torch.cuda.current_stream().wait_stream(self.stream)
            return value
        if self.graph is None:
            self.batch = tuple(tensor.clone() for tensor in batch)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):  # records, and computes nothing
                self.value = self._step(self.batch, self.rate, self.share)
        for kept, given in zip(self.batch, batch, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.value.clone()

    def _step(self, batch: tuple[Tensor, ...], rate: float | Tensor, share: float | Tensor) -> Tensor:
        self.model.zero_grad()
        value = self.loss(self.model, *batch)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        for stepper in self.steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.step()
        old, new = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(old, new, share if isinstance(share, float) else [share] * len(old))
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
