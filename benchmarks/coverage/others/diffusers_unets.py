"""Models of diffusers that are U-Nets or autoencoders."""

from typing import Any

import torch

from benchmarks.coverage.others.recipes import Models, floats, image, named, of, prefixed, steps

__all__: list[str] = ["MODELS"]

LATENT, TEXT = floats(4, 16, 16), floats(6, 16)
SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}


CROSSED: dict[str, Any] = {"cross_attention_dim": 16, "attention_head_dim": 8} | SMALL
DOWN = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
UP = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
NOISED = named(sample=LATENT, timestep=steps, encoder_hidden_states=TEXT)

MODELS: Models = prefixed(
    "diffusers",
    {
        "UNet2D": of(
            "diffusers.UNet2DModel",
            named(sample=image(16), timestep=steps),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **SMALL,
        ),
        "UNet2D classes": of(
            "diffusers.UNet2DModel",
            named(sample=image(16), timestep=steps, class_labels=lambda: torch.randint(0, 3, (4,))),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            num_class_embeds=3,
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **SMALL,
        ),
        "UNet2DCondition": of("diffusers.UNet2DConditionModel", NOISED, **CROSSED, **DOWN, **UP),
        "UNet2DCondition linear": of(
            "diffusers.UNet2DConditionModel",
            NOISED,
            use_linear_projection=True,
            **CROSSED,
            **DOWN,
            **UP,
        ),
        "UNet3DCondition": of(
            "diffusers.UNet3DConditionModel",
            named(sample=floats(4, 3, 16, 16), timestep=steps, encoder_hidden_states=TEXT),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            **CROSSED,
        ),
        "UNet1D": of(
            "diffusers.UNet1DModel",
            named(sample=floats(14, 32), timestep=steps),
            in_channels=14,
            out_channels=14,
            block_out_channels=(8, 16),
            time_embedding_type="positional",
            use_timestep_embedding=True,
            flip_sin_to_cos=False,
            freq_shift=1.0,
            extra_in_channels=0,
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            mid_block_type="MidResTemporalBlock1D",
            up_block_types=("UpResnetBlock1D",),
            act_fn="swish",
            out_block_type="OutConv1DBlock",
            layers_per_block=1,
        ),
        "ControlNet": of(
            "diffusers.ControlNetModel",
            named(
                sample=LATENT,
                timestep=steps,
                encoder_hidden_states=TEXT,
                controlnet_cond=image(128),
            ),
            conditioning_embedding_out_channels=(8, 8, 16, 16),
            **{k: v for k, v in CROSSED.items() if k != "sample_size"},
            **DOWN,
        ),
        "AutoencoderKL": of(
            "diffusers.AutoencoderKL",
            named(sample=image(16)),
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **SMALL,
        ),
        "AutoencoderKL sampled": of(
            "diffusers.AutoencoderKL",
            named(sample=image(16), sample_posterior=True),
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **SMALL,
        ),
        "AutoencoderTiny": of(
            "diffusers.AutoencoderTiny",
            named(sample=image(16)),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "AutoencoderDC": of(
            "diffusers.AutoencoderDC",
            named(sample=image(32)),
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 16),
            decoder_block_out_channels=(8, 16),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        "VQModel": of(
            "diffusers.VQModel",
            named(sample=image(16)),
            latent_channels=3,
            num_vq_embeddings=16,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **SMALL,
        ),
        "AutoencoderKLTemporalDecoder": of(
            "diffusers.AutoencoderKLTemporalDecoder",
            named(sample=image(16), num_frames=1),
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=1,
            sample_size=16,
        ),
    },
)
