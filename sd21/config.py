"""This module holds the model configurations, and reads them from the `config.json` files that published Stable
Diffusion 2.1 checkpoints carry. It is apart from the networks because it decides, before any network is built, whether
a file describes one that is implemented.

A field of such a file is one of three things. Any other field is an error: if it were skipped unread, the checkpoint
could load cleanly and then draw wrong images.

- a field of the dataclass: it shapes the network;
- FIXED: it could change the network, and only the value listed here is implemented;
- IRRELEVANT: it cannot change what the network computes; the reason stands beside each group.

The dataclass defaults are Stable Diffusion 2.1's, so `UNetConfig()` is the published network. A file must still state
the fields in REQUIRED: if it leaves one out, the published format means the value of Stable Diffusion 1.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch

# Bookkeeping that libraries write into every file.
_BOOKKEEPING = frozenset({"_diffusers_version", "_name_or_path", "_commit_hash", "transformers_version"})


PREDICTION_TYPES = ("epsilon", "v_prediction")


class ConfigError(ValueError):
    """A configuration that is incomplete, contradicts itself, or asks for something that is not implemented."""


class _Published:
    """What the configurations share: reading a published dictionary, and checks that name the field."""

    CLASS_NAME: ClassVar[str | None] = None  # what the file's "_class_name" must be; None: any
    REQUIRED: ClassVar[frozenset[str]] = frozenset()
    FIXED: ClassVar[dict] = {}
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, published: dict):
        """The configuration that a parsed `config.json` describes. Raises ConfigError on anything not understood."""
        own = {f.name for f in fields(cls)}
        values, unknown = {}, []
        for name, value in published.items():
            if name == "_class_name":
                if cls.CLASS_NAME is not None and value != cls.CLASS_NAME:
                    raise ConfigError(f"{cls.__name__}: the file describes a {value}, expected a {cls.CLASS_NAME}")
            elif name in own:
                values[name] = tuple(value) if isinstance(value, list) else value
            elif name in cls.FIXED:
                if value != cls.FIXED[name]:
                    raise ConfigError(
                        f"{cls.__name__}: {name} = {value!r} is not implemented, only {cls.FIXED[name]!r} is; "
                        "this is not a checkpoint of the Stable Diffusion 2.1 family"
                    )
            elif name not in cls.IRRELEVANT and name not in _BOOKKEEPING:
                unknown.append(name)
        if unknown:
            raise ConfigError(
                f"{cls.__name__}: unknown fields {sorted(unknown)}; if they cannot change what the network computes, "
                f"add them to {cls.__name__}.IRRELEVANT in sd21/config.py"
            )
        missing = sorted(cls.REQUIRED - published.keys())
        if missing:
            raise ConfigError(f"{cls.__name__}: the file does not say {missing}")
        return cls(**values)

    def _require(self, condition: bool, message: str):
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {message}")

    def _require_positive(self, *names: str, kind: type = int):
        for name in names:
            value = getattr(self, name)
            good = type(value) in {kind, int} and value > 0
            self._require(good, f"{name} must be a positive {kind.__name__}, got {value!r}")

    def _per_level(self, name: str, levels: int):
        """Replace one number that holds for every level by one per level. Published files use both forms."""
        value = getattr(self, name)
        value = value if isinstance(value, tuple) else (value,) * levels
        good = len(value) == levels and all(type(v) is int and v > 0 for v in value)
        self._require(good, f"{name} must be a positive int, or {levels} of them (one per level), got {value!r}")
        object.__setattr__(self, name, value)

    def _require_channels(self):
        """Require one positive int per level, each a multiple of norm_num_groups."""
        widths = self.block_out_channels
        good = isinstance(widths, tuple) and len(widths) > 0 and all(type(w) is int and w > 0 for w in widths)
        self._require(good, f"block_out_channels must be positive ints, one per level, got {widths!r}")
        self._require(
            all(width % self.norm_num_groups == 0 for width in widths),
            f"every entry of block_out_channels {widths} must be a multiple of norm_num_groups {self.norm_num_groups}",
        )


@dataclass(frozen=True)
class UNetConfig(_Published):
    """`unet/config.json` (UNet2DConditionModel)."""

    sample_size: int = 64  # side of the latents the model was trained on: 64 (2-1-base) or 96 (2-1)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # per level, finest first
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    attention_head_dim: int | tuple[int, ...] = (5, 10, 20, 20)  # the NUMBER of heads; the published name is a misnomer
    cross_attention_dim: int = 1024  # width of the context
    use_linear_projection: bool = True
    in_channels: int = 4
    out_channels: int = 4
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

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
        self._require_positive("sample_size", "in_channels", "out_channels", "cross_attention_dim", "norm_num_groups")
        self._require_positive("norm_eps", kind=float)
        self._require_channels()
        levels = len(self.block_out_channels)
        for name in ("attention_head_dim", "layers_per_block", "transformer_layers_per_block"):
            self._per_level(name, levels)
        for name, plain, crossed in (
            ("down_block_types", "DownBlock2D", "CrossAttnDownBlock2D"),
            ("up_block_types", "UpBlock2D", "CrossAttnUpBlock2D"),
        ):
            types = getattr(self, name)
            good = isinstance(types, tuple) and len(types) == levels and set(types) <= {plain, crossed}
            self._require(good, f"{name} must be {levels} of {plain!r} or {crossed!r}, got {types!r}")
        for width, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            self._require(width % heads == 0, f"{width} channels do not divide into {heads} heads (attention_head_dim)")
        self._require(self.block_out_channels[0] % 2 == 0, "block_out_channels[0] must be even (sines and cosines)")
        self._require(
            self.use_linear_projection is True,
            "use_linear_projection must be true; convolutional projections are Stable Diffusion 1's",
        )


@dataclass(frozen=True)
class VAEConfig(_Published):
    """`vae/config.json` (AutoencoderKL)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # per level, finest first
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    layers_per_block: int = 2
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # latents are scaled to about unit variance; older files leave it out

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
        self._require_positive("layers_per_block", "latent_channels", "in_channels", "out_channels", "norm_num_groups")
        self._require_positive("scaling_factor", kind=float)
        self._require_channels()
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            types = getattr(self, name)
            good = types == (kind,) * len(self.block_out_channels)
            self._require(good, f"{name} must be {len(self.block_out_channels)} times {kind!r}, got {types!r}")


@dataclass(frozen=True)
class TextConfig(_Published):
    """`text_encoder/config.json` (CLIPTextModel)."""

    vocab_size: int = 49408
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23  # OpenCLIP ViT-H has 24; the published file leaves the last one out
    num_attention_heads: int = 16
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5

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
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        self._require_positive(*sizes, "max_position_embeddings")
        self._require_positive("layer_norm_eps", kind=float)
        good = self.hidden_act in ("gelu", "quick_gelu")
        self._require(good, f"hidden_act must be 'gelu' (SD 2.1) or 'quick_gelu', got {self.hidden_act!r}")
        good = self.hidden_size % self.num_attention_heads == 0
        self._require(good, f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")


@dataclass(frozen=True)
class SchedulerConfig(_Published):
    """`scheduler/scheduler_config.json`: the noise schedule the model was trained on, and what it predicts.

    The file names a sampler too; this project's samplers are in `solvers`, so the sampler's options are not read.
    """

    prediction_type: Literal["epsilon", "v_prediction"]  # PREDICTION_TYPES
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000

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
        self._require_positive("num_train_timesteps")
        self._require_positive("beta_start", "beta_end", kind=float)
        self._require(self.beta_start <= self.beta_end < 1, "expected beta_start <= beta_end < 1")
        good = self.prediction_type in PREDICTION_TYPES
        self._require(good, f"prediction_type must be 'epsilon' or 'v_prediction', got {self.prediction_type!r}")

    def alphas_cumprod(self) -> torch.Tensor:
        """alpha[t]^2 of the training times t = 0, 1, ...: float64 (num_train_timesteps,). "scaled_linear" (Rombach et
        al. 2022, the LDM code): sqrt(beta) is linear in t."""
        start, end = self.beta_start**0.5, self.beta_end**0.5
        betas = torch.linspace(start, end, self.num_train_timesteps, dtype=torch.float64) ** 2
        return torch.cumprod(1 - betas, dim=0)
