"""This module holds TF-ICON in full, the paper's starting point (Lu, Liu, Kong, ICCV 2023, arXiv:2307.12493).

It stands in the tables to show what the paper changed. Background and object are inverted to T by the naive inversion
under the exceptional prompt; Eq. 7 composes their noise, with fresh noise in the XOR region. Then four streams are
denoised, at every step in one batch: the background and the object, under the exceptional prompt; the pseudo
cross-attention, which is the background's state whose self-attention sees the object's tokens alone; and the composite,
under the text prompt with guidance. In the first part of the run, tau_a, the self-attention of the first three is
injected into the composite's (tficon_attention.py); in a longer part, tau_b, the composite is rectified: outside M_user
it becomes the background stream's state, as in Eq. 9. A stream is denoised for as long as another one needs it.

What differs from the authors' public code (github.com/Shilin-LU/TF-ICON), and why:

Shared with the other methods here:
- Placement, canvas and masks. Their object lies in the middle of a black 512-pixel square and is addressed by an offset
  rounded anew on every attention grid; here the object's scan is moved to its place, so that object and composite share
  their token indices. Their "user mask" is the box of the scaled object image; here it is M_user.
- The object's noise comes from the object's own inversion, as Eq. 7 and their cross-domain mode have it; their
  same-domain mode inverts the pasted image and takes both background and object from that.
- The guidance scale is settings.guidance_scale; theirs is 2.5 within a domain and 5.0 across. Below ten steps their
  last one is first-order; here settings.lower_order_final says it.
- A scan's latent is the mean of the VAE's posterior; their get_first_stage_encoding draws a sample of it.
- The seed is 0 and the noise drawn on the CPU; theirs is 3407, on the device.

Where their code departs from what it is meant to do:
- Their pseudo cross-attention takes its queries from the object's rows of the batch, not from the background's. Its
  keys come from rows whose own attention it has replaced in every layer before, and from an object state one step too
  old (in the first evaluation one too new); its background state is moved by the solver twice a step.
- At the first evaluation they inject the maps of the second: one store is overwritten before it is read.
- They rectify a state after the network has seen it, and not the first one below T, for which they rectify data
  predictions instead; here every state of the window is rectified before the network sees it.
- Their window of the background's attention is 0.4 whatever tau_a is; here it is tau_a for all three. They inject into
  the first two evaluations whatever tau_a is; here 0 is none.
- Their rectified box loses a row or a column where it touches the canvas's lower or right end.
- They denoise background and pseudo cross-attention to the end, though nothing reads them, and run all streams but the
  composite under two equal prompts: 10 rows a step per image where 5 are needed.

Kept: logits injected before the softmax rather than maps after it; the pseudo cross-attention's transpose in the
object's rows; injection into the text row and not the null row; all self-attention layers; one evaluation less than
tau_a * steps, and one state less than tau_b * steps (`window`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sd21.attention import attention_hook
from solvers import CallRows, guided

from .. import prompts
from ..blending import blend
from ..calls import Call
from . import noise
from .frame import Frame
from .published import invert_to_the_end
from .result import Composition
from .tficon_attention import Injection

# The defaults of the authors' public code.
TAU_A, TAU_B = 0.4, 0.8
ORDER = 2  # of the solver; `window` counts as their code does
BACKGROUND, OBJECT, COMPOSITE = range(3)
NAMES = ("background", "object", "composite")


def tf_icon(frame: Frame, *, tau_a: float = TAU_A, tau_b: float = TAU_B, seed: int = 0) -> Composition:
    """TF-ICON as this module's docstring describes it.

    tau_a, tau_b: the share of the run, counted from T, in which attention is injected and states are rectified, in
        [0, 1]; 0 for not at all. seed: of Eq. 7's noise. Of the settings, start, preserve_background_until,
        preserve_object_until, history and inversion belong to ours and are not used here. The five rows of a step stay
        in one call whatever max_batch is.
    While it injects, its own attention hook stands in the place of any other, which then sees nothing of these steps.
    `on_state` sees the three streams, (3, C, h, w), and 0 as the data prediction of one that has ended.
    Raises ValueError for a threshold out of range.
    """
    for name, tau in (("tau_a", tau_a), ("tau_b", tau_b)):
        if not 0 <= tau <= 1:
            raise ValueError(f"{name} is a share of the run in [0, 1], got {tau}")
    steps = frame.grid.steps
    x_bg, x_obj = (states[-1] for states in invert_to_the_end(frame))
    with frame.stage("composition"):
        streams = Streams(frame, injected=window(tau_a, steps), rectified=window(tau_b, steps))
        z = noise.draw(noise.generator(seed), x_bg)
        x = torch.cat([x_bg, x_obj, compose_noise(x_obj, x_bg, z, frame.m_obj, frame.m_user)])
        x = frame.denoise(x, streams, steps, edit=streams.rectify)
    return frame.finish(x[COMPOSITE:])


def compose_noise(
    x_obj: torch.Tensor, x_bg: torch.Tensor, z: torch.Tensor, m_obj: torch.Tensor, m_user: torch.Tensor
) -> torch.Tensor:
    """Eq. 7: the object's noise inside M_obj, the background's outside M_user, fresh noise z where one mask is one and
    the other is not. States (B, C, h, w), masks (B, 1, h, w) of zeros and ones, M_obj inside M_user."""
    return x_obj * m_obj + x_bg * (1 - m_user) + z * (m_obj - m_user).abs()


def window(tau: float, steps: int) -> range:
    """The indices i = steps, steps - 1, ... of the share tau of a run, as many as TF-ICON's code takes: it counts steps
    k = steps - i from 0 and goes on while k < int(tau * steps + 1 - order)."""
    return range(steps, steps - max(0, int(tau * steps + 1 - ORDER)), -1)


class Streams:
    """x0_fn of all streams at once: x (3, C, h, w) holds BACKGROUND, OBJECT and COMPOSITE.

    injected: the window in which attention is injected; rectified: that of the states that need the background's. A
    stream that nothing needs any more is not run: its data prediction is 0.
    """

    def __init__(self, frame: Frame, *, injected: range, rectified: range):
        self.frame, self.injected, self.rectified = frame, injected, rectified
        model, sample = frame.model, frame.sample
        self.scale = frame.settings.guidance_scale
        self.injection = Injection(frame.m_obj[0], frame.m_user[0])
        self.text = {"text": prompts.text_context(model, sample.prompt, frame.token)}
        if self.scale != 1:
            self.text["null"] = prompts.null_context(model)
        # All rows of a batch have contexts of one length, so the exceptional prompt has its 77 rows here.
        self.exceptional = prompts.text_context(model, None, frame.token)

    def rectify(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The `edit` of the solver: Eq. 9 with the background stream's own state."""
        if i not in self.rectified:
            return x
        composite = blend(x[COMPOSITE:], x[BACKGROUND : BACKGROUND + 1], self.frame.m_user)
        return torch.cat([x[:COMPOSITE], composite])

    def __call__(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """The data predictions (3, C, h, w) of the streams that are needed at i."""
        x0 = torch.zeros_like(x)
        if i in self.injected:
            with attention_hook(self.frame.model.unet, self.injection):
                # The third row is the pseudo cross-attention: the background's state, which looks at the object.
                x0[BACKGROUND], x0[OBJECT], _, x0[COMPOSITE] = self._predict(x, i, (BACKGROUND, OBJECT, BACKGROUND))
        elif i - 1 in self.rectified:
            x0[BACKGROUND], x0[COMPOSITE] = self._predict(x, i, (BACKGROUND,))
        else:
            (x0[COMPOSITE],) = self._predict(x, i, ())
        return x0

    def _predict(self, x: torch.Tensor, i: int, exceptional: Sequence[int]) -> list[torch.Tensor]:
        """Data predictions (C, h, w) of the streams under the exceptional prompt and, last, of the guided composite."""
        streams = [*exceptional, *[COMPOSITE] * len(self.text)]
        contexts = ["exceptional"] * len(exceptional) + list(self.text)
        context = torch.cat([self.exceptional] * len(exceptional) + list(self.text.values()))
        images = tuple(NAMES[stream] for stream in streams)

        def describe(rows: CallRows) -> Call:  # every row has a context of its own
            return Call("composition", tuple(rows.i.tolist()), images, tuple(contexts))

        rows = list(self.frame.prediction(describe, context)(x[streams], i))
        if self.scale == 1:
            return rows
        *rows, text, null = rows
        return [*rows, guided(text, null, self.scale)]  # Eq. 6 on x0, which is affine in eps and in v
