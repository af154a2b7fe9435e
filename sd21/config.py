"""This module holds the model configurations: what each published `config.json` of a Stable Diffusion 2.1 checkpoint
may say, field by field. It is apart from the networks because it decides, before any network is built, whether a file
describes one that is implemented. How such a file is read, and what FIXED and IRRELEVANT mean, is in `published`.

The dataclass defaults are Stable Diffusion 2.1's, so `UNetConfig()` is the published network. A file must still state
the fields in REQUIRED: if it leaves one out, the published format means the value of Stable Diffusion 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from .published import ConfigError, Published, bounded, per_level
from .words import shown

__all__ = ["PREDICTION_TYPES", "ConfigError", "SchedulerConfig", "TextConfig", "UNetConfig", "VAEConfig"]

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class UNetConfig(Published):
    """`unet/config.json` (UNet2DConditionModel)."""

    sample_size: int = bounded(64, 1, 256)  # side of the training latents: 64 (2-1-base) or 96 (2-1)
    block_out_channels: tuple[int, ...] = per_level((320, 640, 1280, 1280), 1, 8192)  # finest first
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    # The NUMBER of heads; the published name is a misnomer.
    attention_head_dim: int | tuple[int, ...] = per_level((5, 10, 20, 20), 1, 1024)
    cross_attention_dim: int = bounded(1024, 1, 8192)  # width of the context
    use_linear_projection: bool = True
    in_channels: int = bounded(4, 1, 64)
    out_channels: int = bounded(4, 1, 64)
    layers_per_block: int | tuple[int, ...] = per_level(2, 1, 6)
    transformer_layers_per_block: int | tuple[int, ...] = per_level(1, 1, 10)
    norm_num_groups: int = bounded(32, 1, 1024)
    norm_eps: float = bounded(1e-5, 1e-12, 0.1)

    CLASS_NAME = "UNet2DConditionModel"
    REQUIRED = frozenset(
        {
            *("sample_size", "block_out_channels", "down_block_types", "up_block_types"),
            *("attention_head_dim", "cross_attention_dim", "use_linear_projection"),
        }
    )
    FIXED = {  # noqa: RUF012 (a class constant beside the fields it completes)
        "act_fn": "silu",
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
        "only_cross_attention": False,
        "mid_block_only_cross_attention": None,
        "dual_cross_attention": False,
        "cross_attention_norm": None,
        "num_attention_heads": None,  # published files say attention_head_dim, see above
        "reverse_transformer_layers_per_block": None,
        "resnet_time_scale_shift": "default",
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }
    IRRELEVANT = frozenset(
        {
            "upcast_attention",  # attention logits are float32 (or better) in every model: attention.default_kernel
            "dropout",  # training only
            # Options of embeddings that FIXED rules out.
            "class_embeddings_concat",
            "addition_embed_type_num_heads",
        }
    )

    def __post_init__(self):
        self._require_levels()
        self._require_bounds()
        self._require_groups()
        levels = len(self.block_out_channels)
        for name, plain, crossed in (
            ("down_block_types", "DownBlock2D", "CrossAttnDownBlock2D"),
            ("up_block_types", "UpBlock2D", "CrossAttnUpBlock2D"),
        ):
            types = getattr(self, name)
            good = isinstance(types, tuple) and len(types) == levels and all(t in (plain, crossed) for t in types)
            self._require(good, f"{name} must be {levels} of {plain!r} or {crossed!r}, got {shown(types)}")
        for width, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            self._require(width % heads == 0, f"{width} channels do not divide into {heads} heads (attention_head_dim)")
        self._require(self.block_out_channels[0] % 2 == 0, "block_out_channels[0] must be even (sines and cosines)")
        self._require(
            self.use_linear_projection is True,
            "use_linear_projection must be true; convolutional projections are Stable Diffusion 1's",
        )


@dataclass(frozen=True)
class VAEConfig(Published):
    """`vae/config.json` (AutoencoderKL)."""

    block_out_channels: tuple[int, ...] = per_level((128, 256, 512, 512), 1, 8192)  # finest first
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    layers_per_block: int = bounded(2, 1, 6)
    latent_channels: int = bounded(4, 1, 64)
    in_channels: int = bounded(3, 1, 64)
    out_channels: int = bounded(3, 1, 64)
    norm_num_groups: int = bounded(32, 1, 1024)
    scaling_factor: float = bounded(0.18215, 1e-4, 1e4)  # gives latents about unit variance; older files leave it out

    CLASS_NAME = "AutoencoderKL"
    REQUIRED = frozenset({"block_out_channels", "down_block_types", "up_block_types", "layers_per_block"})
    FIXED = {  # noqa: RUF012
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }
    IRRELEVANT = frozenset(
        {
            "sample_size",  # the VAE is convolutional; the model's image size comes from the UNet
            "force_upcast",  # for SDXL's VAE, which overflows float16; libraries write it by default since then
        }
    )

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side: 8 at full size."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __post_init__(self):
        self._require_levels()
        self._require_bounds()
        self._require_groups()
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            types = getattr(self, name)
            good = types == (kind,) * len(self.block_out_channels)
            self._require(good, f"{name} must be {len(self.block_out_channels)} times {kind!r}, got {shown(types)}")


@dataclass(frozen=True)
class TextConfig(Published):
    """`text_encoder/config.json` (CLIPTextModel)."""

    vocab_size: int = bounded(49408, 1, 1_000_000)
    hidden_size: int = bounded(1024, 1, 8192)
    intermediate_size: int = bounded(4096, 1, 65536)
    # OpenCLIP ViT-H has 24; the published file leaves the last one out.
    num_hidden_layers: int = bounded(23, 1, 64)
    num_attention_heads: int = bounded(16, 1, 1024)
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    max_position_embeddings: int = bounded(77, 1, 4096)
    layer_norm_eps: float = bounded(1e-5, 1e-12, 0.1)

    REQUIRED = frozenset(
        {
            *("vocab_size", "hidden_size", "intermediate_size"),
            *("num_hidden_layers", "num_attention_heads", "hidden_act"),
        }
    )
    FIXED = {  # noqa: RUF012
        "model_type": "clip_text_model",
        "is_encoder_decoder": False,
    }
    IRRELEVANT = frozenset(
        {
            # Training only.
            *("attention_dropout", "dropout", "initializer_factor", "initializer_range"),
            # The tokenizer has its own ids. These fields serve pooling, which Stable Diffusion does not use.
            *("bos_token_id", "eos_token_id", "pad_token_id", "projection_dim"),
            # The dtype is the caller's choice.
            *("torch_dtype", "dtype"),
            # The class that the library uses. The keys of the weights show whether a tower has a projection.
            "architectures",
            # Switches of the transformers library's own interface.
            *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "use_cache"),
            *("chunk_size_feed_forward", "id2label", "label2id", "problem_type"),
        }
    )

    def __post_init__(self):
        self._require_bounds()
        good = self.hidden_act in ("gelu", "quick_gelu")
        self._require(good, f"hidden_act must be 'gelu' (SD 2.1) or 'quick_gelu', got {shown(self.hidden_act)}")
        good = self.hidden_size % self.num_attention_heads == 0
        self._require(good, f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")


@dataclass(frozen=True)
class SchedulerConfig(Published):
    """`scheduler/scheduler_config.json`: the noise schedule the model was trained on, and what it predicts.

    The file names a sampler too; this project's samplers are in `solvers`, so the sampler's options are not read.
    """

    prediction_type: Literal["epsilon", "v_prediction"]  # PREDICTION_TYPES
    beta_start: float = bounded(0.00085, 1e-8, 0.5)
    beta_end: float = bounded(0.012, 1e-8, 0.5)
    num_train_timesteps: int = bounded(1000, 2, 10_000)

    REQUIRED = frozenset({"prediction_type", "beta_start", "beta_end", "beta_schedule"})
    FIXED = {  # noqa: RUF012
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
    }
    IRRELEVANT = frozenset(
        {
            # The sampler, and how it spaces, starts and ends its steps.
            *("algorithm_type", "solver_order", "solver_type", "solver_p", "predict_x0", "disable_corrector"),
            *("lower_order_final", "euler_at_final", "final_sigmas_type", "use_lu_lambdas", "lambda_min_clipped"),
            *("timestep_spacing", "timestep_type", "steps_offset", "set_alpha_to_one", "skip_prk_steps"),
            *("interpolation_type", "variance_type", "sigma_min", "sigma_max"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift"),
            *("use_dynamic_shifting", "time_shift_type", "shift_terminal"),
            # Clipping of data predictions, meant for pixel-space models.
            *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        }
    )

    def __post_init__(self):
        self._require_bounds()
        ordered = f"expected beta_start <= beta_end, got {self.beta_start} and {self.beta_end}"
        self._require(self.beta_start <= self.beta_end, ordered)
        good = self.prediction_type in PREDICTION_TYPES
        self._require(good, f"prediction_type must be 'epsilon' or 'v_prediction', got {shown(self.prediction_type)}")
        least = self.alphas_cumprod()[-1].item()
        self._require(
            least > 0, "the betas leave nothing of the image at the last training time; expected smaller ones"
        )

    def alphas_cumprod(self) -> torch.Tensor:
        """alpha[t]^2 of the training times t = 0, 1, ...: float64 (num_train_timesteps,). "scaled_linear" (Rombach et
        al. 2022, the LDM code): sqrt(beta) is linear in t."""
        start, end = self.beta_start**0.5, self.beta_end**0.5
        betas = torch.linspace(start, end, self.num_train_timesteps, dtype=torch.float64) ** 2
        return torch.cumprod(1 - betas, dim=0)
