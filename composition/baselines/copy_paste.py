"""Copy-paste: the object's pixels, scaled and moved, inside its mask on the background. No network."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence

from .. import blending
from ..canvas import Composition, Job, Sample, composition_of, on_canvases, placed_object
from ..settings import Settings


def copy_paste(
    model,
    samples: Sequence[Sample],
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
) -> list[Composition]:
    """The naive baseline of the paper's section 5.2: outside the placed mask the background's pixels, to the bit.

    Of `model` the canvas alone is asked, so that what the other methods refuse is refused here too; of `settings`
    nothing. inversions and progress: not used.
    """

    def run(jobs: list[Job], token: int) -> list[Composition]:
        results = []
        for job in jobs:
            begin = time.perf_counter()
            placed = placed_object(job.sample, job.placement)
            image = blending.preserve_pixels(job.sample.background, placed, job.placement.object_mask, feather=0)
            nfe, seconds = {"inversion": 0, "composition": 0}, {"composition": time.perf_counter() - begin}
            results.append(composition_of(job, image, placed, token, {}, nfe, seconds))
        return results

    return on_canvases(model, samples, settings, run)
