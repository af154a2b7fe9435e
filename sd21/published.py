"""This module reads the `config.json` files of published checkpoints into dataclasses, and checks every field. It is
apart from `config`, which says what the fields are, because it holds for any file of that kind.

A field of such a file is one of three things. Any other field is an error: if it were skipped unread, the checkpoint
could load cleanly and then draw wrong images.

- a field of the dataclass: it shapes the network. A number carries its bounds, far outside what the family has. With
  all of them at their bounds, building the networks without memory still takes a few seconds at the most;
- FIXED: it could change the network, and only the value listed here is implemented;
- IRRELEVANT: it cannot change what the network computes; the reason stands beside each group.
"""

from collections.abc import Mapping
from dataclasses import field, fields
from typing import ClassVar

from .words import shown

# Bookkeeping that libraries write into every file.
_BOOKKEEPING = frozenset({"_diffusers_version", "_name_or_path", "_commit_hash", "transformers_version"})

MAX_LEVELS = 6  # resolutions of a network; the published ones have 4


class ConfigError(ValueError):
    """A configuration that is incomplete, contradicts itself, or asks for something that is not implemented."""


def bounded(default: float, low: float, high: float):
    """A field for an integer, or, if the bounds are floats, for any number, within [low, high]."""
    return field(default=default, metadata={"bounds": (low, high), "per_level": False})


def per_level(default: int | tuple[int, ...], low: int, high: int):
    """A field for integers within [low, high], one per level of the network. One alone holds for every level."""
    return field(default=default, metadata={"bounds": (low, high), "per_level": True})


class Published:
    """What the configurations share: reading a published dictionary, and checks that name the field."""

    CLASS_NAME: ClassVar[str | None] = None  # what the file's "_class_name" must be; None: any
    REQUIRED: ClassVar[frozenset[str]] = frozenset()
    FIXED: ClassVar[dict] = {}
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, published: dict, stated: Mapping | None = None):
        """The configuration that a parsed `config.json` describes. `stated`: what holds for fields that the file leaves
        out. Raises ConfigError on anything not understood."""
        if not isinstance(published, dict):
            raise ConfigError(f"{cls.__name__}: expected a JSON object {{...}}, got {shown(published)}")
        published = {**(stated or {}), **published}
        own = {f.name for f in fields(cls)}
        values, unknown = {}, []
        for name, value in published.items():
            if name == "_class_name":
                if cls.CLASS_NAME is not None and value != cls.CLASS_NAME:
                    raise ConfigError(f"{cls.__name__}: the file describes {shown(value)}, expected {cls.CLASS_NAME!r}")
            elif name in own:
                values[name] = tuple(value) if isinstance(value, list) else value
            elif name in cls.FIXED:
                # An empty list (of trained_betas) states no more than null does.
                if value != cls.FIXED[name] and not (value == [] and cls.FIXED[name] is None):
                    raise ConfigError(
                        f"{cls.__name__}: {name} = {shown(value)} is not implemented, only {cls.FIXED[name]!r} is; "
                        "this is not a checkpoint of the Stable Diffusion 2.1 family"
                    )
            elif name not in cls.IRRELEVANT and name not in _BOOKKEEPING:
                unknown.append(name)
        if unknown:
            raise ConfigError(
                f"{cls.__name__}: unknown fields {shown(sorted(unknown))}; if they cannot change what the network "
                f"computes, add them to {cls.__name__}.IRRELEVANT in sd21/config.py"
            )
        missing = sorted(cls.REQUIRED - published.keys())
        if missing:
            raise ConfigError(f"{cls.__name__}: the file does not say {missing}")
        return cls(**values)

    def _require(self, condition: bool, message: str):
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {message}")

    def _require_bounds(self):
        """Require every number to lie within its field's bounds. Replace one number that holds for every level by one
        per level; published files use both forms."""
        for one in (f for f in fields(self) if "bounds" in f.metadata):
            value, (low, high) = getattr(self, one.name), one.metadata["bounds"]
            kinds, needed = ((int,), "an integer") if type(low) is int else ((int, float), "a number")
            needed += f" from {low} to {high}"
            values = (value,)
            if one.metadata["per_level"]:
                levels = len(self.block_out_channels)
                values = value if isinstance(value, tuple) else (value,) * levels
                self._require(len(values) == levels, f"{one.name} needs 1 or {levels} entries, got {len(values)}")
                object.__setattr__(self, one.name, values)
                needed += f", or {levels} of them (one per level)"
            good = all(type(v) in kinds and low <= v <= high for v in values)  # not so for nan, nor for true and false
            self._require(good, f"{one.name} must be {needed}, got {shown(value)}")

    def _require_levels(self):
        """Require a list of widths, one per level."""
        widths = self.block_out_channels
        good = isinstance(widths, tuple) and 1 <= len(widths) <= MAX_LEVELS
        self._require(good, f"block_out_channels must list 1 to {MAX_LEVELS} widths, got {shown(widths)}")

    def _require_groups(self):
        """Require every width to be a multiple of norm_num_groups."""
        widths, groups = self.block_out_channels, self.norm_num_groups
        good = all(width % groups == 0 for width in widths)
        self._require(good, f"every one of block_out_channels {widths} must be a multiple of norm_num_groups {groups}")
