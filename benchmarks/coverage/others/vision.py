"""Models that see: torchvision, segmentation-models-pytorch, kornia, open_clip."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import (
    Models,
    Recipe,
    floats,
    image,
    made,
    of,
    prefixed,
    several,
)

__all__: list[str] = ["MODELS"]


def _seen(name: str, side: int = 64, **more: Any) -> tuple[Callable[[], nn.Module], Any]:
    """A model of torchvision without pretrained weights."""
    arguments = {"weights": None, "num_classes": 5} | more
    return lambda: made(f"torchvision.models.{name}", **arguments), image(side)


def _blocks(*widths: int) -> list[Any]:
    return [
        made("torchvision.models.convnext.CNBlockConfig", a, b, 1)
        for a, b in zip(widths, (*widths[1:], None), strict=True)
    ]


def _swin(**more: Any) -> Recipe:
    given = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    given |= {"window_size": [4, 4], "num_classes": 5, "stochastic_depth_prob": 0.2}
    return lambda: made("torchvision.models.SwinTransformer", **(given | more)), image()


def _second_swin() -> nn.Module:
    swin = importlib.import_module("torchvision.models.swin_transformer")
    parts = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return _swin(**parts)[0]()


def _resnet(**more: Any) -> nn.Module:
    block = importlib.import_module("torchvision.models.resnet").Bottleneck
    return made("torchvision.models.ResNet", block, [1, 1, 1, 1], num_classes=5, **more)


NAMES = """
    resnet18 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1 mnasnet0_5
    efficientnet_b0 regnet_y_400mf
"""
TORCHVISION: Models = {name: _seen(name) for name in NAMES.split()} | {
    "ResNeXt": (lambda: _resnet(groups=8, width_per_group=2), image()),
    "ResNet dilated": (
        lambda: _resnet(replace_stride_with_dilation=[False, True, True], zero_init_residual=True),
        image(),
    ),
    "DenseNet": of("torchvision.models.DenseNet", image(), 8, (2, 2, 2), 16, memory_efficient=True),
    "ConvNeXt": (
        lambda: made(
            "torchvision.models.ConvNeXt", _blocks(16, 24), stochastic_depth_prob=0.2, num_classes=5
        ),
        image(64),
    ),
    "Swin": _swin(),
    "Swin v2": (_second_swin, image()),
    "ViT": of("torchvision.models.VisionTransformer", image(), 32, 8, 2, 2, 32, 64, num_classes=5),
    "MaxViT": of(
        "torchvision.models.MaxVit",
        image(64),
        (64, 64),
        8,
        4,
        [8, 16],
        [1, 1],
        8,
        0.2,
        num_classes=5,
    ),
    "GoogLeNet": _seen("googlenet", 96, init_weights=False),
    "deeplabv3": _seen(
        "segmentation.deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True
    ),
    "lraspp": _seen("segmentation.lraspp_mobilenet_v3_large", weights_backbone=None),
    "r3d_18": (
        lambda: made("torchvision.models.video.r3d_18", weights=None, num_classes=5),
        floats(3, 4, 32, 32),
    ),
    "s3d": (
        lambda: made("torchvision.models.video.s3d", weights=None, num_classes=5),
        floats(3, 16, 64, 64),
    ),
}


def _smp(name: str, **more: Any) -> tuple[Callable[[], nn.Module], Any]:
    arguments = {"encoder_name": "mobilenet_v2", "encoder_weights": None, "classes": 2} | more
    return lambda: made(f"segmentation_models_pytorch.{name}", **arguments), image(64)


SEGMENTATION: Models = {
    "Unet": _smp("Unet", encoder_name="resnet18"),
    "Unet scse": _smp("Unet", decoder_attention_type="scse"),
    "Unet aux": _smp("Unet", aux_params={"classes": 3, "dropout": 0.2}),
    "UnetPlusPlus": _smp("UnetPlusPlus"),
    "MAnet": _smp("MAnet"),
    "Linknet": _smp("Linknet"),
    "FPN": _smp("FPN", encoder_name="efficientnet-b0"),
    "PSPNet": _smp("PSPNet"),
    "DeepLabV3": _smp("DeepLabV3"),
    "DeepLabV3Plus": _smp("DeepLabV3Plus"),
    "UPerNet": _smp("UPerNet"),
    "Segformer": _smp("Segformer", encoder_name="mit_b0"),
}

KORNIA: Models = {
    "VisionTransformer": (
        lambda: made(
            "kornia.models.vit.VisionTransformer",
            image_size=32,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
        ),
        image(),
    ),
    "HardNet": (lambda: made("kornia.feature.HardNet", pretrained=False), image(32, 1)),
    "SOSNet": (lambda: made("kornia.feature.SOSNet", pretrained=False), image(32, 1)),
    "TFeat": (lambda: made("kornia.feature.TFeat", pretrained=False), image(32, 1)),
    "HyNet": (lambda: made("kornia.feature.HyNet", pretrained=False), image(32, 1)),
    "KeyNet": (lambda: made("kornia.feature.KeyNet", pretrained=False), image(32, 1)),
}


def _clip(**more: Any) -> Callable[[], nn.Module]:
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
    return lambda: made(
        more.get("cls", "open_clip.CLIP"),
        embed_dim=16,
        vision_cfg=vision | more.get("vision", {}),
        text_cfg=text | more.get("text", {}),
    )


def _words() -> Tensor:
    return torch.randint(1, 59, (4, 12)).scatter(1, torch.full((4, 1), 11), 59)


OPEN_CLIP: Models = {
    "CLIP": (_clip(), several(image(), _words)),
    "CLIP resnet": (
        _clip(vision={"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}),
        several(image(), _words),
    ),
    "CustomTextCLIP": (_clip(cls="open_clip.CustomTextCLIP"), several(image(), _words)),
    "text alone": (lambda: _clip(cls="open_clip.CustomTextCLIP")().text, _words),
    "vision alone": (lambda: _clip()().visual, image()),
}

MODELS: Models = {
    **prefixed("torchvision", TORCHVISION),
    **prefixed("segmentation-models-pytorch", SEGMENTATION),
    **prefixed("kornia", KORNIA),
    **prefixed("open_clip_torch", OPEN_CLIP),
}
