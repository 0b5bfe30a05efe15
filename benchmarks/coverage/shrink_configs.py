"""Small configs: the default config of a transformers model with few and narrow layers."""

import dataclasses
import re
from typing import Any

from benchmarks.coverage.config_overrides import EXCEPTIONS, SECTIONS

__all__: list[str] = ["tiny_config"]

# The largest value of an integer field, by its name; the first pattern found in a name decides, and
# None leaves the field alone.
CAPS: tuple[tuple[str, int | None], ...] = (
    (
        r"kernel|stride|padding|dilation|ratio|scal|merge|tempor|tubelet|_rate$|mask_(time|feat)",
        None,
    ),
    (
        r"focal|block_configs|resnet_|num_encoder_blocks|encode_proj|hook_ids|sampling|_idx",
        None,
    ),
    (r"max_.*_(len|pos)|position|n_ctx|context_length|max_length", 128),
    (r"vocab|num_embeddings|codebook_size|codevectors_per", 128),
    (r"layers?$|depths?$|blocks?$|repeats?$", 2),
    (r"(key_value|kv|key)_heads|index_topk", 2),
    (r"head_dim|d_kv|dim_head|d_head|rotary_dim", 16),
    (r"heads?(_per_stage)?$", 4),
    (r"per_tok|topk$|top_?k$|moe_k$", 2),
    (r"n_groups?$|topk_group", 1),
    (r"shared_experts", 1),
    (r"experts?$", 4),
    (r"num_filters", 4),
    (r"image_size|img_size|^input_size", 64),
    (r"patch_size", 16),
    (r"window", 4),
    (r"num_(queries|query)", 8),
    (r"_pos_feats", 32),
    (r"size|dim|width|hidden|embd|channel|inner|rank|filters|_feats|d_(model|ff)|inter|units", 64),
)

# What a field is that the default config leaves open although the model needs it.
OPEN: dict[str, int] = {
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "prediction_length": 4,
    "topk_group": 1,
}

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers")
"""Fields that count layers; the first of them is the length of the lists with one entry a layer."""

TOKEN = re.compile(r"_token_(ids?|index)$")

COMMON = {"pad": 0, "bos": 1, "cls": 1, "eos": 2, "sep": 2, "decoder_start": 2}
"""The ids of the tokens that most models have; all others lie at 100 and above."""


def _capped(name: str, value: int) -> int:
    """The value of an integer field of a tiny model."""
    cap = next((cap for pattern, cap in CAPS if re.search(pattern, name)), None)
    if cap is None or value <= 2 or isinstance(value, bool):
        return value
    if cap == 16 and "patch" in name:
        return 16 if value > 8 else value
    small = min(value, cap)
    if cap == 4:
        return 1 << (small.bit_length() - 1)
    return small - small % 16 if small > 16 else small


def _small(name: str, value: Any) -> Any:
    """The value of a field of any type: numbers are capped, stages have one block."""
    if isinstance(value, int):
        return _capped(name, value)
    if isinstance(value, (list, tuple)):
        if re.search(r"depths|repeats|num_blocks|blocks_per", name):
            return type(value)(1 for _ in value)
        if re.search(r"ind(ex|ic)es$", name) and all(isinstance(x, int) for x in value):
            return sorted({min(x, 1) for x in value})
        return type(value)(_small(name, x) for x in value)
    return value


def _num_layers(values: dict[str, Any]) -> int:
    """How many layers the config has, 0 where it does not count them."""
    return next((values[k] for k in DEPTHS if isinstance(values.get(k), int)), 0)


def _kept_layers(values: dict[str, Any]) -> tuple[int, ...]:
    """The layers that stay: two, or one of each kind where the config names kinds of layers."""
    total = _num_layers(values)
    if total <= 2:
        return tuple(range(total))
    kinds = [
        v
        for k, v in values.items()
        if isinstance(v, (list, tuple))
        and len(v) == total
        and all(isinstance(x, (str, bool)) for x in v)
    ]
    first: dict[tuple[Any, ...], int] = {}
    for i, kind in enumerate(zip(*kinds, strict=True) if kinds else ()):
        first.setdefault(kind, i)
    kept = sorted(first.values())[:4]
    others = [i for i in range(total) if i not in kept]
    return tuple(sorted(kept + others[: max(0, 2 - len(kept))]))


def _sections(parameters: dict[str, Any], sections: tuple[int, ...]) -> dict[str, Any]:
    """Rotary parameters with the sections of a rotation by several axes."""
    return parameters | {"mrope_section": list(sections)}


def _fields(config: Any) -> dict[str, Any]:
    """The fields of a config, read where they lie: some refuse to give what layers override."""
    stored = vars(config)
    values = {f.name: stored.get(f.name, f.default) for f in dataclasses.fields(config) if f.init}
    part: Any = type(config).sub_configs.get("vision_config")
    known = dataclasses.is_dataclass(part)
    if values.get("vision_config", 0) is None and known:  # an optional part
        values["vision_config"] = part()
    return {k: v for k, v in values.items() if v is not dataclasses.MISSING}


def _token_names(config: Any) -> set[str]:
    """The fields that hold ids of special tokens, in a config and the ones below it."""
    names: set[str] = set()
    for name, value in _fields(config).items():
        if hasattr(value, "model_type"):
            names |= _token_names(value)
        elif TOKEN.search(name):
            names.add(name)
    return names


def _new_field(name: str, value: Any, tokens: dict[str, int]) -> Any:
    """The value of a field of a tiny config, where layers are not concerned."""
    if hasattr(value, "model_type"):
        return _backbone(value) if "timm" in value.model_type else _shrunk(value, tokens)
    if name in tokens and isinstance(value, (list, tuple)):
        return [tokens[name]]
    if name in tokens and isinstance(value, int):
        return tokens[name] if value >= 0 else value
    if value is None:
        return OPEN.get(name)
    return _small(name, value)


def _backbone(config: Any) -> Any:
    """A ResNet of transformers in place of one of timm, which need not be installed."""
    from transformers import ResNetConfig

    arguments: dict[str, Any] = {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_indices": getattr(config, "_out_indices", None) or [4],
    }
    return ResNetConfig(**arguments)


def _shrunk(config: Any, tokens: dict[str, int]) -> Any:
    """The same kind of config with few, narrow layers, made anew so that derived fields follow."""
    values = _fields(config)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    layers = _kept_layers(values)
    total = 0 if "depths" in values else _num_layers(values)
    new: dict[str, Any] = {}
    for name, value in values.items():
        if name in DEPTHS and value == total and layers:
            new[name] = len(layers)
        elif isinstance(value, (list, tuple)) and len(value) == total > 2:
            new[name] = type(value)(value[i] for i in layers)
        elif name != "qk_head_dim":  # always the sum of its two parts
            new[name] = _new_field(name, value, tokens)
    for name in [n for n in new if "key_value_heads" in n]:
        full = name.replace("key_value", "attention")
        if full in new and values[name] in (None, values[full]):
            new[name] = new[full]
    if "depths" in values and new.get("window_size") == 4:
        new["window_size"] = 2  # the last of the stages is only two patches wide
    if config.model_type in SECTIONS:
        new["rope_parameters"] = _sections(values["rope_parameters"], SECTIONS[config.model_type])
    indices = getattr(config, "_out_indices", None)
    if indices and "depths" in values:
        new["out_indices"] = list(indices)
    elif indices and total > 2:
        new["out_indices"] = list(range(max(1, len(layers) + 1 - len(indices)), len(layers) + 1))
    new |= EXCEPTIONS.get(config.model_type or type(config).__name__, {})
    return type(config)(**{k: v for k, v in new.items() if k not in defaults or v != defaults[k]})


def tiny_config(name: str) -> Any:
    """The config of the tiny model of a transformers model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[name]()
    tokens: dict[str, int] = {}
    for token in sorted(_token_names(config)):
        stem = TOKEN.sub("", token)
        tokens[token] = COMMON.get(stem, 100 + len(tokens) % 28)
    return _shrunk(config, tokens)
