"""This module holds the Frame, the one object that every method works with.

A method is a function of a Frame that returns a Composition. The Frame does everything that methods share, before and
after their own part, so that they differ in nothing but what they do to latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sd21.attention import has_hook
from solvers import CallRows, DataPrediction, Grid, InversionReport, Solver, StepTable
from solvers import sample as sampling_run

from .. import prompts
from ..blending import DETAIL_SIGMA, give_back, preserve_pixels
from ..calls import Call, model_prediction, named
from ..canvas import canvas_image, decoded, encoded, from_canvas, latent_shares, soft_latent_mask, to_latent_mask
from ..focus import Window, choose_window
from ..inversions import Trajectory, inversion_key, invert_latents
from ..metrics.label_truth import measure_label
from ..model import Model
from ..placement import Placement, Sample, check_masks, fit_object, place, placed_object, true_scale
from ..scans.errors import PlacementError
from ..settings import Settings
from .result import Composition

# Called with every (i, x[i], D[i]) of a composition; D[0] is None.
OnState = Callable[[int, torch.Tensor, torch.Tensor | None], None]


@dataclass(eq=False)
class Frame:
    """One sample on the canvas, and all that a method may ask for.

    grid: the time grid. solver: the function that makes the solver's table on a grid. inversions: a mapping that
    outlives the frame, or None. It is not used while an attention hook is set, which may change what the network does
    and has to see every call. on_state: called with every (i, x, D) of the composition. keep_trajectories: whether
    the result holds them. around: bool (H, W), a region that the window must contain too, so
    that all slices of a volume share one, or None. With it an object may be smaller than a latent cell, as at the ends
    of a volume's tumour; it has the cells then that it covers most.

    Made from these: table, the solver's on the whole grid; token, the exceptional prompt's; window, the part of the
    background that the network sees, and seen, the sample whose background is that part; placement, in the window's
    pixels; background and obj, images (1, 3, h, w) in [-1, 1], where obj is the placed object with its tissue; m_obj
    and m_user, masks (1, 1, h / 8, w / 8) of zeros and ones on the latent grid, and m_held, the object's with soft
    edges. rows, seconds, inversion, reused and trajectories are what the method has spent and found so far, as
    Composition has them; keys are those under which the trajectories are kept.

    Raises PlacementError for what cannot be placed or is too small for the latent grid, ValueError for a token that the
    model does not have, a start beyond the grid, and a table that does not fit it; the network has not run then.
    """

    model: Model
    sample: Sample
    settings: Settings
    grid: Grid
    solver: Solver
    inversions: MutableMapping[str, Trajectory] | None = None
    on_state: OnState | None = None
    keep_trajectories: bool = False
    progress: Callable | None = None
    around: np.ndarray | None = None

    table: StepTable = field(init=False)
    token: int = field(init=False)
    window: Window = field(init=False)
    seen: Sample = field(init=False)
    placement: Placement = field(init=False)
    background: torch.Tensor = field(init=False)
    obj: torch.Tensor = field(init=False)
    m_obj: torch.Tensor = field(init=False)
    m_user: torch.Tensor = field(init=False)
    m_held: torch.Tensor = field(init=False)
    rows: dict[str, int] = field(init=False, default_factory=lambda: {"inversion": 0, "composition": 0})
    seconds: dict[str, float] = field(init=False, default_factory=dict)
    inversion: dict[str, InversionReport] = field(init=False, default_factory=dict)
    reused: dict[str, bool] = field(init=False, default_factory=dict)
    trajectories: dict[str, Trajectory] = field(init=False, default_factory=dict)
    keys: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self):
        model, sample = self.model, self.sample
        self.token = prompts.exceptional_token(model, self.settings.exceptional_token)
        if not isinstance(self.grid, Grid) or self.grid.rises:
            raise TypeError(
                f"the grid's builder returned {self.grid!r}; expected a Grid whose index 0 is the clean end"
            )
        self.grid.check_start(self.settings.start)
        self.table = self.solver(self.grid)
        if not isinstance(self.table, StepTable):
            raise TypeError(f"the table's builder returned {self.table!r}; expected a StepTable")
        self.table.check_fits(self.grid)
        self._place()
        self.background = canvas_image(model, self.seen.background.values())
        self.obj = canvas_image(model, self.placement.image)
        cells = tuple(side // model.vae.config.factor for side in self.background.shape[2:])
        self.m_obj, self.m_user = (
            to_latent_mask(mask, cells)[None].to(model.device)
            for mask in (self.placement.object_mask, self.placement.user_mask)
        )
        self.m_held = soft_latent_mask(self.placement.object_mask, cells)[None].to(model.device)
        if not self.m_obj.any() and self.around is not None:  # the last slices of a volume's tumour
            shares = latent_shares(self.placement.object_mask, cells)
            self.m_obj[0, 0] = (shares == shares.max()).to(self.m_obj)
        if not self.m_obj.any():
            raise PlacementError(
                f"the object covers {self.placement.object_mask.sum()} pixels of {sample.background.name}, less than "
                f"half of any cell of the {cells[0]}x{cells[1]} latent grid; use a larger user mask, or a focus other "
                "than scan"
            )

    def _place(self) -> None:
        """Fit the object, choose the window around it, and place it there."""
        model, sample, settings = self.model, self.sample, self.settings
        check_masks(sample.background, sample.obj, sample.object_mask, sample.user_mask)
        true = true_scale(sample.background, sample.obj, settings.size)
        fit = fit_object(sample.object_mask, sample.user_mask, settings.fit, true)
        self.window = choose_window(
            fit.mask if self.around is None else fit.mask | self.around,
            model.image_size,
            model.vae.config.factor,
            focus=settings.focus,
            focus_context=settings.focus_context,
        )
        self.seen = self.window.of(sample)
        inputs = tuple(self.seen)[:4]
        self.placement = place(*inputs, fit=fit.part(*self.window.part), match=settings.match)

    def encode(self, *images: torch.Tensor) -> torch.Tensor:
        """Canvas images (1, 3, h, w) as latents (B, C, h / 8, w / 8), one for each."""
        with self.stage("encode"):
            pieces = torch.cat(images).split(self.settings.max_batch or len(images))
            return torch.cat([encoded(self.model, piece) for piece in pieces])

    def invert(self, until: int, settings: Settings | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The states x[0..until] of the background and of the placed object, (until + 1, 1, C, h / 8, w / 8) each.

        They are looked up in `inversions` first. settings: of the inversion, where they are not the frame's own. A
        method calls this once, because the result reports one inversion of each scan; a second call is a RuntimeError.
        """
        if self.trajectories:
            raise RuntimeError("this frame's scans are inverted already; invert as far as is needed, in one call")
        settings, grid = settings or self.settings, self.grid.until(until)
        images = {"background": self.background, "object": self.obj}
        keeps = self.inversions is not None and not has_hook(self.model.unet)
        known = self.inversions if keeps else {}
        # Where nothing outlives this frame the pixels are key enough, and the model's files need no hashing.
        keys = {
            name: inversion_key(self.model, image[0], self.token, settings, grid, self.solver)
            if keeps
            else image.cpu().numpy().tobytes()
            for name, image in images.items()
        }
        looked_up = {key: known.get(key) for key in dict.fromkeys(keys.values())}
        found = {key: trajectory for key, trajectory in looked_up.items() if trajectory is not None}
        missing: dict[str, str] = {}
        for name, key in keys.items():
            self.reused[name] = key in found or key in missing
            if not self.reused[name]:
                missing[key] = name
        # What is kept must not depend on its company: a batch's other rows change the rounding, so these go one by one.
        groups = [[name] for name in missing.values()] if keeps else [list(missing.values())]
        for group in groups:
            latents = self.encode(*(images[name] for name in group))
            with self.stage("inversion"):
                inverted = invert_latents(
                    self.model,
                    latents,
                    self.token,
                    settings,
                    grid,
                    self.solver,
                    images=group,
                    progress=self.progress_of("inversion"),
                )
            for name, trajectory in zip(group, inverted, strict=True):
                found[keys[name]] = known[keys[name]] = trajectory
                self.rows["inversion"] += trajectory.report.rows
        self.keys = keys if keeps else {}
        self.trajectories = {name: found[keys[name]] for name in images}
        self.inversion = {name: trajectory.report for name, trajectory in self.trajectories.items()}
        return tuple(trajectory.states[:, None].to(self.model.device) for trajectory in self.trajectories.values())

    def text_prediction(self) -> DataPrediction:
        """x0_fn under the sample's prompt, guided by settings.guidance_scale against the null prompt (Eq. 6)."""
        prompt = self.sample.prompt
        return self.prediction(
            named("composition", ("composite",), ("exceptional" if prompt is None else "text", "null")),
            prompts.text_context(self.model, prompt, self.token),
            null_context=prompts.null_context(self.model),
            scale=self.settings.guidance_scale,
            max_batch=self.settings.max_batch,
        )

    def exceptional_prediction(self, images: Sequence[str]) -> DataPrediction:
        """x0_fn of these images under the exceptional prompt, without guidance, while composing."""
        describe = named("composition", images, ("exceptional",))
        context = prompts.exceptional_context(self.model, self.token)
        return self.prediction(describe, context, max_batch=self.settings.max_batch)

    def prediction(
        self,
        describe: Callable[[CallRows], Call],
        context: torch.Tensor,
        *,
        null_context: torch.Tensor | None = None,
        scale: float = 1.0,
        max_batch: int | None = None,
    ) -> DataPrediction:
        """`calls.model_prediction` on the frame's grid, whose rows count as the composition's."""

        def counted(rows: CallRows) -> Call:
            self.rows["composition"] += len(rows.i)
            return describe(rows)

        return model_prediction(
            self.model, self.grid, counted, context, null_context=null_context, scale=scale, max_batch=max_batch
        )

    def denoise(
        self,
        x: torch.Tensor,
        x0_fn: Callable,
        start: int,
        *,
        history: Sequence[torch.Tensor] = (),
        edit: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x[0] of the composition's run from x = x[start]; `on_state` sees every state of it.

        history: D[start + 1], D[start + 2], ...; without it the run begins as the solver begins one.
        edit: edit(i, x) -> x, called on every state i = start, ..., 0 before the network sees it, as Eq. 9 is.
        """
        run = self.grid if history else self.grid.until(start)
        table = self.table if history else self.solver(run)
        progress = self.progress_of("composition")
        states = sampling_run(x, run, table, x0_fn, start=start, history=history, edit=edit, progress=progress)
        for i, x, x0 in states:
            if self.on_state is not None:  # copies, so that nobody changes the run in place
                self.on_state(i, x.clone(), None if x0 is None else x0.clone())
        return x

    def finish(self, latent: torch.Tensor, *, detail: bool = False, of_object: bool = True) -> Composition:
        """Decode a latent (1, C, h / 8, w / 8) and bring it to the background's size, channels and bit depth.

        detail: whether this method gives back what the autoencoder loses where settings.detail does not say it.
        of_object: whether the lost detail inside the mask is the object's; else none is given back inside the user
        mask, as by a method that draws something else there.
        """
        seen, settings = self.seen, self.settings
        values = self._decoded(latent)
        gives_back = detail if settings.detail is None else settings.detail
        if gives_back:
            values = values + self._lost(of_object)
        image = seen.background.render(values, grayscale=self.sample.grayscale)
        keeps_pixels = settings.preserve == "pixels"
        if keeps_pixels:
            feather = math.ceil(settings.feather / self.window.zoom)
            image = preserve_pixels(seen.background, image, self.placement.user_mask, feather)
        whole = self.window.covers(self.sample.background)
        return self.composition(image, decoded=whole and not (keeps_pixels or gives_back))

    def _decoded(self, latent: torch.Tensor) -> np.ndarray:
        """A latent (1, C, h / 8, w / 8) as values (H, W, 3) of the window's own size."""
        with self.stage("decode"):
            return from_canvas(decoded(self.model, latent)[0], self.window.size)

    def _lost(self, of_object: bool) -> np.ndarray:
        """What the autoencoder loses, values (H, W, 3) of the window, by `blending.give_back`.

        It is taken in the background's own pixels, so that it holds what the canvas loses as well.
        """
        background = self.seen.background.values() - self._autoencoded("background")
        obj = self.placement.image - self._autoencoded("object") if of_object else None
        mask = self.placement.object_mask if of_object else self.placement.user_mask
        return give_back(background, obj, mask, DETAIL_SIGMA / self.window.zoom)

    def _autoencoded(self, name: str) -> np.ndarray:
        """The background or the placed object as the autoencoder gives it back, values (H, W, 3) of the window."""
        if name not in self.trajectories:
            return self._decoded(self.encode(self.background if name == "background" else self.obj))
        trajectory = self.trajectories[name]
        if trajectory.decoded is None:
            with self.stage("decode"):
                image = decoded(self.model, trajectory.states[:1].to(self.model.device))[0].cpu()
            trajectory = self.trajectories[name] = replace(trajectory, decoded=image)
            if name in self.keys:
                self.inversions[self.keys[name]] = trajectory
        return from_canvas(trajectory.decoded, self.window.size)

    def composition(self, image: np.ndarray, *, decoded: bool = False) -> Composition:
        """The result whose pixels in the window are `image`; all else is the frame's.

        decoded: as Composition has it.
        """
        sample, placement = self.sample, self.placement
        mask = np.zeros(sample.background.size, dtype=bool)
        mask[self.window.part] = placement.object_mask
        target = mask if self.around is None else mask | self.around
        image, placed = (
            self.window.put_back(sample.background, pixels, target)
            for pixels in (image, placed_object(self.seen, placement))
        )
        cells = self.m_obj[0, 0].cpu().numpy()
        return Composition(
            sample=sample,
            image=image,
            decoded=decoded,
            mask=mask,
            placed=placed,
            scale=placement.scale,
            true_size=placement.true_size,
            label=measure_label(sample, image, placed, mask, self.window.part, cells, placement.clipped),
            match=placement.match,
            window=self.window,
            canvas=tuple(self.background.shape[2:]),
            solver=self.table.name,
            exceptional_token=self.token,
            inversion=self.inversion,
            reused=self.reused,
            rows=self.rows,
            seconds=self.seconds,
            trajectories=self._own_trajectories() if self.keep_trajectories else None,
        )

    def _own_trajectories(self) -> dict[str, Trajectory]:
        """Copies, so that nobody changes a kept trajectory in place."""
        return {name: replace(each, states=each.states.clone()) for name, each in self.trajectories.items()}

    def progress_of(self, stage: str) -> Callable | None:
        """What wraps the solvers' loops in this stage, and says of it what they count: "inversion, sweep"."""
        if self.progress is None:
            return None
        return lambda items, counted: self.progress(items, f"{stage}, {counted}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to this stage's, and name it, and the network's dtype, in what overflows in
        it."""
        begin = time.perf_counter()
        try:
            yield
        except FloatingPointError as error:
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise FloatingPointError(f"{name}, the network in {dtype}: {error}") from error
        if torch.device(self.model.device).type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


Method = Callable[[Frame], Composition]
