"""Tiny randomly initialised models of many architectures, each with one batch of inputs."""

import inspect
import random
from importlib.util import find_spec
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from benchmarks.coverage import others
from benchmarks.coverage.inputs import batch
from benchmarks.coverage.shrink_configs import tiny_config

__all__: list[str] = ["Subject", "names", "seed"]

# No models of their own, in need of a library that is not installed, or without a forward pass on
# tensors alone.
LEFT_OUT = """
    bark dinat edgetam edgetam_video edgetam_vision_model fast_vlm gemma3n gemma3n_vision
    glm_image_vqmodel higgs_audio_v2_tokenizer inkling_mm_model layoutlmv2 pe_audio_video
    pe_audio_video_encoder pe_video pe_video_encoder perception_lm sam2_video sam3_tracker_video
    sam3_video timm_backbone timm_wrapper voxtral_realtime_text
"""

# The smallest member of each module of timm.
TIMM = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convit_tiny convmixer_768_32
    convnext_atto_rms cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny
    davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla34 dpn48b eca_botnext26ts_256
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 gmlp_ti16_224
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 jx_nest_tiny lcnet_035 lcnetv2_small
    legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto mobilenetv5_base
    mobileone_s1 mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
    nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_306m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2net50_14w_8s resnest14d resnet18
    resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s
    shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window16_256 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    vgg11 visformer_tiny vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
    vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
"""

VIT: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 4}
SWIN: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 32, "num_heads": (2, 2, 2, 2)}
WIDTHS = (32, 64, 128, 256)

# Arguments that make small what is large even in the smallest member.
SMALLER: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": VIT,
    "cait_xxs24_224": VIT,
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": WIDTHS, "num_heads": (2, 2, 4, 8)},
    "deepseek_vit_412m": VIT,
    "deit_tiny_patch16_224": VIT,
    "dla34": {"channels": [8, 8, 16, 32, 64, 64]},
    "eva02_tiny_patch14_224": VIT,
    "gemma4_vit_167m_enc": VIT,
    "hiera_tiny_224": {"embed_dim": 32, "stages": (1, 1, 1, 1)},
    "mobilenetv5_base": {"channel_multiplier": 0.25},
    "naflexvit_base_patch16_parfac_gap": VIT,
    "nasnetalarge": {"stem_size": 32, "channel_multiplier": 2, "num_features": 1344},
    "qwen3_vit_306m": VIT,
    "res2net50_14w_8s": {"layers": [1, 1, 1, 1]},
    "sam2_hiera_tiny": {"embed_dim": 32, "stages": (1, 1, 2, 1)},
    "samvit_base_patch16_224": VIT,
    "sequencer2d_s": {"layers": [1, 1, 1, 1]},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_cr_tiny_224": SWIN,
    "swinv2_tiny_window16_256": SWIN,
    "twins_svt_small": {"embed_dims": WIDTHS, "depths": (1, 1, 2, 1)},
    "vgg11": {"mlp_ratio": 1 / 64},
    "vit_srelpos_small_patch16_224": VIT,
    "vit_tiny_patch16_224": VIT,
}

SIDES: dict[str, int] = {"deepseek_vit_412m": 112, "gemma4_vit_167m_enc": 96}
"""Sides of images where 128 is no multiple of a patch."""


def names(family: str) -> list[str]:
    """The models of a family: of transformers those that have a base model of their own."""
    if family == "timm":
        return sorted(TIMM.split())
    if family == "others":
        return list(others.MODELS)
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(set(MODEL_MAPPING_NAMES) - set(LEFT_OUT.split()))


def _transformers_model(name: str) -> nn.Module:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = MODEL_MAPPING_NAMES[name]
    cls: Any = getattr(transformers, names if isinstance(names, str) else names[0])
    config = tiny_config(name)
    parts = [v for v in vars(config).values() if type(v) is cls.config_class]
    if parts and not isinstance(config, cls.config_class):  # the model of a part
        config = parts[0]
    model: nn.Module = cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
    return model


def _declare_torchvision() -> torch.library.Library:
    """Names the two operators that torchvision registers fakes for.

    PyPI's torchvision is compiled for another PyTorch than the CPU's, so that its operators are
    missing and its import, which timm needs, fails without their schemas.
    """
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


LIBRARIES = [_declare_torchvision()] if find_spec("torchvision") else []
"""An operator is gone when its library is."""


def _timm_model(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=10, **SMALLER.get(name, {}))
    return model


def _images(model: Any, name: str) -> dict[str, Tensor]:
    """Images for a model of timm: as large as it says where it takes one size alone."""
    channels, high, wide = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        high = wide = SIDES.get(name, 128)
    parameter = next(iter(inspect.signature(model.forward).parameters))
    return {parameter: torch.randn(4, channels, high, wide)}


def seed(number: int) -> None:
    """Of all generators that are there without being made."""
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


class Subject:
    """A tiny model that can be made anew, and batches for it.

    Attributes:
        num_microbatches: that it is partitioned into; images and words of transformers' models
            differ in number, so that their batches stay whole.
    """

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self.num_microbatches = 1 if family == "transformers" else 2
        self.model()  # a package may draw random numbers while it is imported

    def model(self, *, dropout: bool = True) -> nn.Module:
        """The model with values that are the same each time, in eval mode."""
        seed(0)
        if self.family == "timm":
            model = _timm_model(self.name)
        elif self.family == "others":
            model = others.MODELS[self.name][0]()
        else:
            model = _transformers_model(self.name)
        model = model.float().eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.is_floating_point():  # some start at zero, which would stop all gradients
                    p.copy_(torch.nan_to_num(p) + 0.02 * torch.randn_like(p))
        if not dropout:
            _without_dropout(model)
        return model

    def batch(self, k: int) -> Any:
        """The k-th batch; the first one is the example."""
        sized = None if self.family == "others" else self.model()
        seed(1 + k)
        if sized is None:
            return others.MODELS[self.name][1]()
        return _images(sized, self.name) if self.family == "timm" else batch(sized, self.name)


def _without_dropout(model: nn.Module) -> None:
    """Set every probability of dropping something to 0, in modules and in configs."""
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            for key, value in list(getattr(owner, "__dict__", {}).items()):
                if "drop" in key and isinstance(value, float):
                    setattr(owner, key, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
