"""This module reads the original single-file layout (`v2-1_512-ema-pruned.safetensors`), which has LDM's names for the
UNet and the VAE and OpenCLIP's for the text tower. One table per network maps them to our names. The layout is apart
from the folders of `sources` because it carries no configs and no tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

from . import keys
from .config import SchedulerConfig, TextConfig, UNetConfig, VAEConfig
from .sources import Checkpoint, tokenizer_files
from .weights import CheckpointError, Stored, index, metadata
from .words import shown

# A single file carries no configs. It is read as SD 2.1, whose two models differ in image size and prediction type.
UNET, VAE, TEXT = UNetConfig(), VAEConfig(), TextConfig()
LATENT_SIZES = {"epsilon": 64, "v_prediction": 96}  # 2-1-base, trained at 512 pixels, and 2-1, at 768

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.model.",
}
# What every published file holds beside the networks is left out without a word: buffers of LDM's training schedule,
# which SchedulerConfig recomputes, and OpenCLIP's map to the space that texts share with images. Stable Diffusion 2
# uses the tower's output before this map.
TRAINING_STATE = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("logvar", "lvlb_weights", "model_ema.decay", "model_ema.num_updates"),
}
CLIP_HEAD = {"text_projection", "logit_scale"}
# What some files hold beyond that, see keys.sort_out. The log names it.
EXTRAS = (
    "scale_factor",  # LDM's scaling factor of the latents, which VAEConfig has
    "first_stage_model.loss.*",  # the discriminator and the perceptual loss that the VAE was trained with
    "cond_stage_model.model.visual.*",  # OpenCLIP's image tower
    "cond_stage_model.model.attn_mask",  # the causal mask of the text tower, which is made anew
    "model_ema.*",  # averaged weights: the published "ema" files hold the averages as the network's own weights
    "denoiser.sigmas",  # the schedule again, in files of another trainer
    *("v_pred", "ztsnr"),  # marks that the web interfaces read
)
# What files say of themselves in their header (github.com/Stability-AI/ModelSpec).
SAID_PREDICTION, SAID_ARCHITECTURE = "modelspec.prediction_type", "modelspec.architecture"
SAID = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# The architecture's first words, as the ModelSpec has them: stable-diffusion-v2-512, stable-diffusion-v2-768-v.
FAMILY = "stable-diffusion-v2"


def read(path: Path, variant: str | None, prediction_type: str | None, tokenizer: Path | None) -> Checkpoint:
    """What a single file holds: Stable Diffusion 2.1, of the stated `prediction_type`, with the stated tokenizer.

    It reads the header and no weights. Extras that no network reads are left out, and the log names them. Raises
    CheckpointError if `tokenizer` is not stated, if neither the caller nor the file says what the network predicts, if
    they contradict each other, or if the file is of another layout or family.
    """
    if variant is not None:
        raise CheckpointError(f"{path} is one file and has no variants; leave variant={variant!r} out")
    prediction_type = _prediction_type(path, metadata(path), prediction_type)
    if tokenizer is None:
        raise CheckpointError(
            f"{path} has no tokenizer; name one with tokenizer=, a folder with vocab.json and merges.txt or the hub id "
            "of a Stable Diffusion 2.x model"
        )
    held = {key: tensor for key, tensor in index([path]).items() if key not in TRAINING_STATE}
    stored, left_out = keys.sort_out(held, EXTRAS)
    lacking = [prefix for prefix in PREFIXES.values() if not any(key.startswith(prefix) for key in stored)]
    if lacking:
        raise CheckpointError(
            f"{path} is not a whole model in the original single-file layout: it has no keys under {lacking}. For one "
            "network's file out of a diffusers-layout folder, name the folder."
        )
    networks = published_names(stored, UNET, VAE, TEXT)
    keys.tell(path, left_out, _notes(left_out, prediction_type))
    return Checkpoint(
        replace(UNET, sample_size=LATENT_SIZES[prediction_type]),
        VAE,
        TEXT,
        SchedulerConfig(prediction_type=prediction_type),
        **networks,
        tokenizer=tokenizer,
        files={path.name: path} | tokenizer_files(tokenizer),
    )


def _prediction_type(path: Path, says: Mapping[str, str], stated: str | None) -> str:
    """What the network predicts, by the file's own header `says` or else by the caller. Raises CheckpointError where
    neither says it, where they contradict each other, and for a header of another family."""
    family, said = says.get(SAID_ARCHITECTURE, FAMILY), says.get(SAID_PREDICTION)
    if not family.lower().startswith(FAMILY):
        raise CheckpointError(
            f"{path} is of another family: its header says {SAID_ARCHITECTURE} = {shown(family)}; expected a Stable "
            "Diffusion 2.x model"
        )
    if said is None and stated is None:
        raise CheckpointError(
            f"{path} does not tell what its network predicts, and prediction_type is None; state "
            'prediction_type="epsilon" (2-1-base, v2-1_512...) or "v_prediction" (2-1, v2-1_768...)'
        )
    if said is not None and said not in SAID:
        raise CheckpointError(f"{path}: its header says {SAID_PREDICTION} = {shown(said)}, expected 'epsilon' or 'v'")
    if None not in (said, stated) and SAID[said] != stated:
        raise CheckpointError(
            f"{path}: its header says {SAID_PREDICTION} = {said!r}, got prediction_type={stated!r}; leave it out"
        )
    return stated or SAID[said]


def _notes(left_out: Mapping[str, int], prediction_type: str) -> list[str]:
    """What the log says, beside the names, of extras that tell how the network was trained."""
    notes = []
    if "v_pred" in left_out and prediction_type != "v_prediction":
        notes.append(f"v_pred marks a network that predicts v, and the file is loaded as one of {prediction_type}.")
    if "ztsnr" in left_out:
        notes.append("ztsnr marks a schedule with zero terminal SNR, which is not implemented: the usual one is taken.")
    return notes


def published_names(
    stored: Mapping[str, Stored], unet: UNetConfig, vae: VAEConfig, text: TextConfig
) -> dict[str, dict[str, Stored]]:
    """The file's tensors, sorted by `keys.sort_out`, by network and by published name. A key that no table knows keeps
    its own name, and `weights.check` reports it as unexpected. Raises CheckpointError for two keys of one name."""
    networks = {"unet": {}, "vae": {}, "text_encoder": {}}
    tables = {"unet": unet_table(unet), "vae": vae_table(vae), "text_encoder": text_table(text)}
    dropped = f"transformer.resblocks.{text.num_hidden_layers}."  # the tower's last block, which SD 2 leaves out
    for key, tensor in stored.items():
        if key in TRAINING_STATE:  # of a wrapped file, whose wrappers `keys.sort_out` has taken off
            continue
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), "unet")
        name = key.removeprefix(PREFIXES[part])
        if part == "text_encoder" and (name in CLIP_HEAD or name.startswith(dropped)):
            continue
        for own, piece in _split_fused(_renamed(name, tables[part]), tensor).items():
            keys.add(networks[part], own, piece)
    return networks


def unet_table(config: UNetConfig) -> dict[str, str]:
    """The table from LDM's prefixes to ours. LDM numbers a half's blocks, with its down- and upsamplers, in one
    sequence."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
        **_unet_resnet("middle_block.0", "mid_block.resnets.0"),
        **_unet_resnet("middle_block.2", "mid_block.resnets.1"),
    }
    levels = len(config.block_out_channels)
    numbers = count(1)
    for level, layers in enumerate(config.layers_per_block):
        for layer in range(layers):
            block = next(numbers)
            table |= _unet_resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            table[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            table[f"input_blocks.{next(numbers)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    numbers = count(0)
    for level, layers in enumerate(reversed(config.layers_per_block)):
        crossed = config.up_block_types[level] == "CrossAttnUpBlock2D"
        for layer in range(layers + 1):
            block = next(numbers)
            table |= _unet_resnet(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}")
            if crossed:
                table[f"output_blocks.{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:  # the upsampler is one more module of the level's last block
            table[f"output_blocks.{block}.{2 if crossed else 1}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return table


def _unet_resnet(ldm: str, ours: str) -> dict[str, str]:
    return {
        f"{ldm}.in_layers.0": f"{ours}.norm1",
        f"{ldm}.in_layers.2": f"{ours}.conv1",
        f"{ldm}.emb_layers.1": f"{ours}.time_emb_proj",
        f"{ldm}.out_layers.0": f"{ours}.norm2",
        f"{ldm}.out_layers.3": f"{ours}.conv2",
        f"{ldm}.skip_connection": f"{ours}.conv_shortcut",
    }


def vae_table(config: VAEConfig) -> dict[str, str]:
    """The table from LDM's prefixes to ours. LDM numbers all levels from the finest; we number them in their order."""
    table, levels = {}, len(config.block_out_channels)
    for half, blocks in (("encoder", "down"), ("decoder", "up")):
        attention = f"{half}.mid_block.attentions.0"
        table |= {
            f"{half}.norm_out": f"{half}.conv_norm_out",
            f"{half}.mid.block_1": f"{half}.mid_block.resnets.0",
            f"{half}.mid.block_2": f"{half}.mid_block.resnets.1",
            f"{half}.mid.attn_1.norm": f"{attention}.group_norm",
            f"{half}.mid.attn_1.q": f"{attention}.to_q",
            f"{half}.mid.attn_1.k": f"{attention}.to_k",
            f"{half}.mid.attn_1.v": f"{attention}.to_v",
            f"{half}.mid.attn_1.proj_out": f"{attention}.to_out.0",
        }
        for level in range(levels):
            ldm = f"{half}.{blocks}.{level if half == 'encoder' else levels - 1 - level}"
            ours = f"{half}.{blocks}_blocks.{level}"
            for layer in range(config.layers_per_block + (half == "decoder")):
                table[f"{ldm}.block.{layer}.nin_shortcut"] = f"{ours}.resnets.{layer}.conv_shortcut"
                table[f"{ldm}.block.{layer}"] = f"{ours}.resnets.{layer}"
            table[f"{ldm}.{blocks}sample.conv"] = f"{ours}.{blocks}samplers.0.conv"
    return table


def text_table(config: TextConfig) -> dict[str, str]:
    """The table from OpenCLIP's prefixes to ours. `in_proj_*` holds q, k and v in one tensor, see _split_fused."""
    table = {
        "token_embedding": "text_model.embeddings.token_embedding",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
    }
    for layer in range(config.num_hidden_layers):
        ldm, ours = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        table |= {
            f"{ldm}.ln_1": f"{ours}.layer_norm1",
            f"{ldm}.ln_2": f"{ours}.layer_norm2",
            f"{ldm}.mlp.c_fc": f"{ours}.mlp.fc1",
            f"{ldm}.mlp.c_proj": f"{ours}.mlp.fc2",
            f"{ldm}.attn.in_proj_weight": f"{ours}.self_attn.qkv.weight",
            f"{ldm}.attn.in_proj_bias": f"{ours}.self_attn.qkv.bias",
            f"{ldm}.attn.out_proj": f"{ours}.self_attn.out_proj",
        }
    return table


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name`, in which the longest prefix that the table knows is replaced by ours."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        ours = table.get(".".join(parts[:length]))
        if ours is not None:
            return ".".join([ours, *parts[length:]])
    return name


def _split_fused(name: str, tensor: Stored) -> dict[str, Stored]:
    """Split a fused q, k, v into three runs of rows. One that does not divide keeps its name, and is unexpected."""
    if ".qkv." not in name or not tensor.shape or tensor.shape[0] % 3:
        return {name: tensor}
    rows = tensor.shape[0] // 3
    third = replace(tensor, shape=(rows, *tensor.shape[1:]))
    return {name.replace("qkv", f"{which}_proj"): replace(third, first_row=n * rows) for n, which in enumerate("qkv")}
