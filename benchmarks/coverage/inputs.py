"""One batch of inputs for a tiny model, made from the signature of its forward and its config."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.special_inputs import BATCH, PLACEHOLDERS, SPECIAL, TEXT, ones, words

__all__: list[str] = ["batch"]

GRID = 4
"""Patches along one side of an image in models that take a list of patches."""

VIDEO = ("videomae", "vivit", "timesformer", "xclip")
"""Models whose images are the frames of a video."""

TILED = ("granite4_vision", "llava_next", "llava_next_video", "llava_onevision")
"""Models that cut an image into tiles and see it as a whole besides."""

BINS_FIRST = (
    "glmasr",
    "glmasr_encoder",
    "qwen3_asr",
    "qwen3_asr_encoder",
    "voxtral_realtime",
    "voxtral_realtime_encoder",
)
"""Models of sound of any length that take the frequencies before the time."""

IMAGE_TOKENS = ("image_token_id", "image_token_index", "media_token_id", "video_token_index")
AUDIO_TOKENS = ("audio_token_id", "audio_token_index")


def _configs(config: Any, kind: str) -> Iterator[Any]:
    """The config and all below it, those first whose field name has the kind in it."""
    below = {k: v for k, v in vars(config).items() if hasattr(v, "model_type")}
    for name in sorted(below, key=lambda name: kind not in name):
        if kind in name:
            yield from _configs(below[name], kind)
    yield config
    for name, sub in below.items():
        if kind not in name:
            yield from _configs(sub, kind)


def _field(config: Any, kind: str, names: tuple[str, ...], default: Any) -> Any:
    """The first field of one of the names that is set, in the config of a kind or near it."""
    for sub in _configs(config, kind):
        for name in names:
            value = vars(sub).get(name)
            if value is not None:
                return value
    return default


def _side(value: Any) -> int:
    """One number of a size that may be given for both sides."""
    return int(value[-1]) if isinstance(value, (list, tuple)) else int(value)


def _mask(length: int) -> Tensor:
    """All ones but the last positions of sample 1, which are padding."""
    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[1, -3:] = 0
    return mask


class Maker:
    """Makes the inputs of one model, each by the name of its parameter."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.config: Any = model.config
        self.parameters = list(inspect.signature(model.forward).parameters)

    def vision(self, names: tuple[str, ...], default: Any) -> Any:
        """A field of the part that sees."""
        return _field(self.config, "vision", names, default)

    def image(self) -> tuple[int, tuple[int, int], int]:
        """Channels, height and width of an image, and the side of a patch."""
        channels = self.vision(("num_channels", "in_channels", "in_chans"), 3)
        channels = channels if isinstance(channels, int) else 3
        size = self.vision(("image_size", "img_size"), 64)
        high, wide = size if isinstance(size, (list, tuple)) else (size, size)
        return channels, (int(high), int(wide)), _side(self.vision(("patch_size",), 16))

    def pixels(self) -> dict[str, Tensor]:
        """The images, in the form in which the model takes them, and what describes them."""
        channels, size, patch = self.image()
        grid_name = next((n for n in ("image_grid_thw", "grid_thw") if n in self.parameters), None)
        pixel_name = "hidden_states" if "hidden_states" in self.parameters else "pixel_values"
        if grid_name:
            depth = _side(self.vision(("temporal_patch_size", "patch_temporal"), 1))
            flat = torch.randn(BATCH * GRID * GRID, channels * depth * patch * patch)
            return {pixel_name: flat, grid_name: torch.tensor([[1, GRID, GRID]] * BATCH)}
        if "spatial_shapes" in self.parameters:
            return {
                "pixel_values": torch.randn(BATCH, GRID * GRID, channels * patch * patch),
                "pixel_attention_mask": torch.ones(BATCH, GRID * GRID, dtype=torch.long),
                "spatial_shapes": torch.tensor([[GRID, GRID]] * BATCH),
            }
        for position in ("image_position_ids", "pixel_position_ids"):
            if position in self.parameters:
                y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
                places = torch.stack([x.flatten(), y.flatten()], -1).expand(BATCH, -1, -1)
                flat = torch.rand(BATCH, GRID * GRID, channels * patch * patch)
                return {"pixel_values": flat, position: places.contiguous()}
        if "pixel_attention_mask" in self.parameters:
            return {"pixel_values": torch.randn(BATCH, 1, channels, *size)}
        frames = self.vision(("num_frames", "frames_per_clip"), None)
        if frames and self.name in VIDEO:
            return {"pixel_values": torch.randn(BATCH, frames, channels, *size)}
        pixels = torch.randn(BATCH, channels, *size)
        made = {"pixel_values": pixels}
        if "image_sizes" in self.parameters and self.name != "llava":
            made["image_sizes"] = torch.tensor([size] * BATCH)
            if self.name in TILED:
                made["pixel_values"] = pixels.unsqueeze(1).repeat(1, 3, 1, 1, 1)
        return made

    def audio(self) -> dict[str, Tensor]:
        """Mel features: bins before time for the encoders of Whisper's kind."""
        bins = _field(
            self.config,
            "audio",
            (
                "num_mel_bins",
                "feature_size",
                "input_dim",
                "input_feat_size",
                "input_feat_per_channel",
            ),
            80,
        )
        projected = _field(self.config, "audio", ("feature_projection_input_dim",), None)
        if projected:
            return {"input_features": torch.randn(BATCH, 64, projected)}
        source = _field(self.config, "audio", ("max_source_positions",), None)
        times = 2 * source if source and self.name != "speech_to_text" else 64
        whisper = times != 64 or self.name in BINS_FIRST
        shape = (bins, times) if whisper else (times, bins)
        made = {"input_features": torch.randn(BATCH, *shape)}
        for mask in ("input_features_mask", "feature_attention_mask"):
            if mask in self.parameters:
                made[mask] = ones(times)
        return made

    def waves(self) -> Tensor:
        """Raw sound, with a dimension of channels for the codecs."""
        if self.name == "audio-spectrogram-transformer":
            return torch.randn(BATCH, self.config.max_length, self.config.num_mel_bins)
        wave = torch.randn(BATCH, 3200)
        flat = hasattr(self.config, "conv_dim") or "moonshine" in self.name
        return wave if flat else wave.unsqueeze(1)

    def features(self, getter: str, given: dict[str, Tensor]) -> int:
        """How many placeholders of one sample the features of an image or a sound take."""
        if self.name in PLACEHOLDERS:
            return PLACEHOLDERS[self.name]
        function = getattr(self.model, getter)
        names = inspect.signature(function).parameters
        with torch.no_grad():
            out: Any = function(**{k: v for k, v in given.items() if k in names})
        pooled: Any = getattr(out, "pooler_output", None)
        out = getattr(out, "last_hidden_state", out) if pooled is None else pooled
        parts = out if isinstance(out, (list, tuple)) else [out]
        return sum(int(p.shape[:-1].numel()) for p in parts) // BATCH

    def text(self, seen: dict[str, Tensor], getter: str, token: int | None) -> Tensor:
        """Words, and behind the fourth as many placeholders as the features take."""
        ids = words(TEXT)
        if (
            token is None
            or not seen
            or not (hasattr(self.model, getter) or self.name in PLACEHOLDERS)
        ):
            return ids
        holes = torch.full((BATCH, self.features(getter, seen)), token)
        return torch.cat([ids[:, :4], holes, ids[:, 4:]], 1)

    def texts(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tokens and what describes them."""
        names, config = self.parameters, self.config
        image = _field(config, "encoder", IMAGE_TOKENS, None)
        audio = _field(config, "audio", AUDIO_TOKENS, None)
        if "pixel_values" in made and image is not None:
            for sound in ("input_features", "input_features_mask", "feature_attention_mask"):
                made.pop(sound, None)
            ids = self.text(made, "get_image_features", image)
        else:
            ids = self.text(made, "get_audio_features", audio)
        length = ids.shape[1]
        tokens = {"input_ids": ids}
        if "attention_mask" in names:
            tokens["attention_mask"] = _mask(length)
            tokens["input_ids"] = ids.masked_fill(tokens["attention_mask"] == 0, 0)
        for kind in ("mm_token_type_ids", "token_type_ids"):
            if kind in names and image is not None:
                tokens[kind] = (ids == image).long()
        if "bbox" in names:
            tokens["bbox"] = torch.tensor([1, 2, 30, 40]).repeat(BATCH, length, 1)
        if self.name == "kyutai_speech_to_text":
            tokens["input_ids"] = ids[..., None].repeat(1, 1, config.num_codebooks + 1)
        return tokens


def batch(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Keyword arguments of one batch for a tiny model of transformers."""
    maker = Maker(model, name)
    names, config = maker.parameters, maker.config
    made: dict[str, Tensor] = {}
    if "pixel_values" in names or "grid_thw" in names:
        if getattr(config, "vision_config", config) is not None:
            made |= maker.pixels()
    elif "pixel_values_videos" in names:
        channels, size, _ = maker.image()
        frames = maker.vision(("num_frames", "frames_per_clip"), 2)
        made["pixel_values_videos"] = torch.randn(BATCH, frames, channels, *size)
    if "input_features" in names:
        made |= maker.audio()
    if "input_values" in names:
        made["input_values"] = maker.waves()
    special = dict(SPECIAL[name](config)) if name in SPECIAL else {}
    made = {k: v for k, v in (made | special).items() if v is not None}
    if "input_ids" in names and "input_ids" not in special:
        made |= maker.texts(made)
    if "decoder_input_ids" in names:
        made.setdefault("decoder_input_ids", words(8))
    return made
