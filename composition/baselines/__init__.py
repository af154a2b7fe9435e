"""What the method is compared with: functions of the signature of `compose_batch`, in the order of the paper's Tab. 1.

METHODS maps a name to `method(model, samples, settings, *, inversions=None, progress=None) -> list[Composition]`. Every
method takes the same placement, canvas, solver, steps and guidance scale from `settings`; what is a method's own
(strength, thresholds, seed) is a keyword argument of it, whose default is a named constant with its source. For a
single sample there is `compose(..., method=METHODS[name])`.

A method that draws noise takes a `seed` and draws on the CPU, the same for every sample, as TF-ICON seeds anew for
each: so neither the device nor a sample's company changes its result.
"""

from ..compose import compose_batch
from .blended import blended_latent_diffusion
from .copy_paste import copy_paste
from .published import published
from .sdedit import sdedit
from .tficon import tf_icon

METHODS = {
    "copy-paste": copy_paste,
    "blended": blended_latent_diffusion,
    "sdedit": sdedit,
    "tf-icon": tf_icon,
    "published": published,
    "ours": compose_batch,
}

__all__ = ["METHODS", "blended_latent_diffusion", "copy_paste", "published", "sdedit", "tf_icon"]
