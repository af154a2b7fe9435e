"""The small checkpoint's architecture and schedule stand here, in the form of the published JSON files. The training
and the export read the same dictionaries, so that the exported files describe the trained networks."""

from .tokenizer import CONTEXT_LENGTH

LEVELS = 4
UNET_WIDTHS = (64, 128, 192, 224)
VAE_WIDTHS = (32, 64, 128, 256)
TEXT_WIDTH = 128

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": UNET_WIDTHS,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": tuple(width // 32 for width in UNET_WIDTHS),  # the number of heads, as in SD 2.1
    "cross_attention_dim": TEXT_WIDTH,
    "use_linear_projection": True,
    "norm_num_groups": 8,  # with SD's 32, the 64 channels of the finest level would be normalised in twos
}
# "scaling_factor" is measured, and added, once the VAE is trained.
VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": VAE_WIDTHS,
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
    "norm_num_groups": 1,  # as good as 8, and on a CPU, where it was trained, a third faster
}
# The size of the vocabulary and its special ids come from the tokenizer.
TEXT = {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModel"],
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "max_position_embeddings": CONTEXT_LENGTH,
    "layer_norm_eps": 1e-5,
    "projection_dim": TEXT_WIDTH,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
