"""Tiny models of packages other than transformers and timm, and of plain torch."""

from benchmarks.coverage.others import (
    diffusers_transformers,
    diffusers_unets,
    generative,
    graphs,
    lucidrains,
    medical,
    plain_corners,
    plain_gradients,
    plain_nets,
    plain_sequences,
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
    **plain_sequences.MODELS,
    **plain_gradients.MODELS,
    **plain_corners.MODELS,
    **vit_pytorch.MODELS,
    **x_transformers.MODELS,
    **lucidrains.MODELS,
    **sequences.MODELS,
    **diffusers_unets.MODELS,
    **diffusers_transformers.MODELS,
    **generative.MODELS,
    **medical.MODELS,
    **graphs.MODELS,
    **science.MODELS,
    **vision.MODELS,
}
