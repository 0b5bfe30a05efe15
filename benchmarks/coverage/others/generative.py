"""Models that make images: denoising-diffusion-pytorch, vector-quantize-pytorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import (
    Inputs,
    Models,
    floats,
    image,
    made,
    prefixed,
    several,
    steps,
)

__all__: list[str] = ["MODELS"]


def _unet(**more: Any) -> nn.Module:
    return made(
        "denoising_diffusion_pytorch.Unet", dim=16, dim_mults=(1, 2), flash_attn=False, **more
    )


DENOISING: Models = {
    "Unet": (_unet, several(image(16), steps)),
    "Unet self conditioned": (
        lambda: _unet(self_condition=True),
        several(image(16), steps, image(16)),
    ),
    "GaussianDiffusion": (
        lambda: made(
            "denoising_diffusion_pytorch.GaussianDiffusion", _unet(), image_size=16, timesteps=20
        ),
        lambda: torch.rand(4, 3, 16, 16),
    ),
    "Unet1D": (
        lambda: made("denoising_diffusion_pytorch.Unet1D", dim=16, dim_mults=(1, 2), channels=4),
        several(floats(4, 16), steps),
    ),
    "GaussianDiffusion1D": (
        lambda: made(
            "denoising_diffusion_pytorch.GaussianDiffusion1D",
            made("denoising_diffusion_pytorch.Unet1D", dim=16, dim_mults=(1, 2), channels=4),
            seq_length=16,
            timesteps=20,
        ),
        lambda: torch.rand(4, 4, 16),
    ),
    "KarrasUnet": (
        lambda: made(
            "denoising_diffusion_pytorch.KarrasUnet",
            image_size=16,
            dim=16,
            dim_max=32,
            channels=3,
            num_downsamples=1,
            attn_res=(8,),
            num_blocks_per_stage=1,
            attn_dim_head=8,
        ),
        several(image(16), lambda: torch.rand(4)),
    ),
}

VECTORS = floats(10, 16)


class Coded(nn.Module):
    """Layers around a quantizer; all that it returns is returned."""

    def __init__(self, cls: str, **given: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 16), nn.Linear(16, 4)
        self.codes = made(f"vector_quantize_pytorch.{cls}", **given)

    def forward(self, x: Tensor) -> Any:
        coded, *more = self.codes(torch.tanh(self.encoder(x)))
        return self.decoder(coded), *more


def _codes(cls: str = "VectorQuantize", **given: Any) -> tuple[Callable[[], nn.Module], Inputs]:
    return lambda: Coded(cls, **given), VECTORS


QUANTIZE: Models = {
    "VectorQuantize": _codes(dim=16, codebook_size=12),
    "VectorQuantize cosine": _codes(dim=16, codebook_size=12, use_cosine_sim=True),
    "VectorQuantize learnable": _codes(
        dim=16, codebook_size=12, learnable_codebook=True, ema_update=False
    ),
    "VectorQuantize heads": _codes(
        dim=16, codebook_size=12, heads=2, separate_codebook_per_head=True, codebook_dim=8
    ),
    "ResidualVQ": _codes("ResidualVQ", dim=16, codebook_size=12, num_quantizers=3),
    "FSQ": _codes("FSQ", levels=[5, 5, 4], dim=16),
    "LFQ": _codes("LFQ", codebook_size=16, dim=16),
    "SimVQ": _codes("SimVQ", dim=16, codebook_size=12),
}

MODELS: Models = {
    **prefixed("denoising-diffusion-pytorch", DENOISING),
    **prefixed("vector-quantize-pytorch", QUANTIZE),
}
