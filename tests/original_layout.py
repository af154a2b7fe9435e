"""Tests that read the original single file need one. This module gives them our networks' tensors as that file holds
them."""

import torch

from sd21 import single_file
from sd21.text import TextEncoder
from sd21.unet import UNet
from sd21.vae import VAE

FULL = (single_file.UNET, single_file.VAE, single_file.TEXT)
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.model.")


def modules(configs):
    return UNet(configs[0]), VAE(configs[1]), TextEncoder(configs[2])


def original_layout(configs, networks):
    """The tensors of our networks under the names of the original layout, fused and folded as it has them."""
    tables = (single_file.unet_table, single_file.vae_table, single_file.text_table)
    tensors = {}
    for prefix, table, config, network in zip(PREFIXES, tables, configs, networks, strict=True):
        ours_to_ldm = {ours: ldm for ldm, ours in table(config).items()}
        state = network.state_dict()
        for key, value in state.items():
            if "q_proj" in key:
                value = torch.cat([state[key.replace("q_proj", f"{which}_proj")] for which in "qkv"])
                key = key.replace("q_proj", "qkv")
            if any(f"{which}_proj." in key for which in "kv"):
                continue
            if prefix == "first_stage_model." and ".attentions.0.to_" in key and value.ndim == 2:
                value = value[:, :, None, None]
            parts = key.split(".")
            cuts = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in ours_to_ldm]
            if cuts:
                key = ".".join([ours_to_ldm[".".join(parts[: cuts[0]])], *parts[cuts[0] :]])
            tensors[prefix + key] = value.contiguous()
    last = "cond_stage_model.model.transformer.resblocks."
    tensors |= {
        key.replace(f"{last}22.", f"{last}23."): torch.full_like(value, 5)
        for key, value in tensors.items()
        if key.startswith(f"{last}22.")
    }
    width = configs[2].hidden_size
    with torch.device(next(iter(tensors.values())).device):
        tensors["cond_stage_model.model.text_projection"] = torch.ones(width, width)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
        tensors["betas"] = torch.linspace(0.00085, 0.012, 1000)
        tensors["alphas_cumprod"] = torch.ones(1000)
        tensors["model_ema.num_updates"] = torch.tensor(7)
    return tensors
