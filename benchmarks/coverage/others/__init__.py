"""Tiny models of packages other than transformers and timm, and of plain torch."""

from benchmarks.coverage.others import (
    generative,
    graphs,
    image_diffusion,
    lucidrains,
    medical,
    plain_corners,
    plain_nets,
    science,
    sequences,
    vision,
    vit_pytorch,
    x_transformers,
)
from benchmarks.coverage.others.recipes import Models

__all__: list[str] = ["MODELS"]

MODELS: Models = {
    **plain_nets.MODELS,
    **plain_corners.MODELS,
    **vit_pytorch.MODELS,
    **x_transformers.MODELS,
    **lucidrains.MODELS,
    **sequences.MODELS,
    **image_diffusion.MODELS,
    **generative.MODELS,
    **medical.MODELS,
    **graphs.MODELS,
    **science.MODELS,
    **vision.MODELS,
}
