"""Copy-paste puts the object's pixels, scaled and moved, inside its mask on the background. No network takes part.

It stands in the tables to show what all other methods have to mend: the edge.
"""

from __future__ import annotations

from ..blending import preserve_pixels
from ..placement import placed_object
from .frame import Frame
from .result import Composition


def copy_paste(frame: Frame) -> Composition:
    """The naive baseline of the paper's section 5.2: outside the placed mask the background's pixels, to the bit."""
    with frame.stage("composition"):
        placed = placed_object(frame.seen, frame.placement)
        image = preserve_pixels(frame.seen.background, placed, frame.placement.object_mask, feather=0)
    return frame.composition(image)
