"""Inputs of the models that the general rules do not fit: forecasters, rare encoders, odd forms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = ["BATCH", "PLACEHOLDERS", "SPECIAL", "TEXT", "normal", "ones", "words"]

BATCH = 4
TEXT = 16
"""Tokens of a text without images."""

FIRST_WORD, LAST_WORD = 5, 30
"""The range of ordinary tokens: within the smallest vocabulary, outside the special tokens."""


def words(length: int) -> Tensor:
    """A batch of ordinary tokens."""
    return torch.randint(FIRST_WORD, LAST_WORD, (BATCH, length))


def ones(*shape: int) -> Tensor:
    """Integer ones for each sample, as masks are."""
    return torch.ones(BATCH, *shape, dtype=torch.long)


def normal(*shape: int) -> Tensor:
    """Normal noise for each sample."""
    return torch.randn(BATCH, *shape)


def _series(config: Any) -> dict[str, Tensor]:
    """The past and the future of a series, for the encoder and the decoder of a forecaster."""
    future = config.prediction_length
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": normal(past),
        "past_time_features": normal(past, config.num_time_features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": normal(future),
        "future_time_features": normal(future, config.num_time_features),
    }


def _tiles(config: Any) -> dict[str, Tensor]:
    """One image in two tiles, which every word may look at."""
    tiles = config.vision_config.max_num_tiles
    return {
        "pixel_values": normal(1, tiles, 3, 64, 64),
        "aspect_ratio_ids": ones(1),
        "aspect_ratio_mask": ones(1, tiles),
        "cross_attention_mask": ones(TEXT, 1, tiles),
    }


def _spaced(length: int) -> Tensor:
    """Ones where the placeholders of an image lie: behind the first word."""
    place = torch.zeros(BATCH, TEXT, dtype=torch.long)
    place[:, 1 : 1 + length] = 1
    return place


def _strip(_: Any) -> dict[str, Tensor]:
    """The patches of all images side by side, 4 times 4 of each."""
    return {
        "pixel_values": torch.randn(1, 3, 16, BATCH * 16 * 16),
        "target_sizes": torch.full((BATCH, 2), 4),
    }


def _blocks(_: Any) -> dict[str, Tensor]:
    """Blocks of 2 times 2 patches with the channels last."""
    return {"pixel_values": torch.randn(BATCH * 16, 32, 32, 3)}


def _patches(_: Any) -> dict[str, Tensor]:
    """Patches that are not flat, 4 times 4 of each image."""
    return {"pixel_values": torch.randn(BATCH * 16, 3, 16, 16)}


def _line(_: Any) -> dict[str, Tensor]:
    """The image of a line of text."""
    return {"pixel_values": normal(3, 96, 320)}


def _chunk(_: Any) -> dict[str, Tensor]:
    """The 100 frames of a sound that the encoder sees at a time."""
    return {"input_features": normal(128, 100), "input_features_mask": ones(100)}


def _stacked(_: Any) -> dict[str, Tensor]:
    """Seven frames of a sound stacked into one."""
    return {"input_features": normal(32, 560), "input_features_mask": ones(32)}


def _whole(_: Any) -> dict[str, Tensor]:
    """A sound without padding."""
    return {"padding_mask": ones(3200)}


# How many placeholders one sample takes where the model does not say.
PLACEHOLDERS: dict[str, int] = {
    "fuyu": 16,
    "granite4_vision": 10,
    "instructblip": 8,
    "instructblipvideo": 16,
    "musicflamingo": 64,
    "pi0": 16,
    "qwen2_audio": 64,
    "t5gemma2": 4,
    "t5gemma2_encoder": 4,
    "vibevoice": 1,
}

# What the general rules do not make, or make in another form; None takes an input out.
SPECIAL: dict[str, Callable[[Any], Mapping[str, Tensor | None]]] = {
    "autoformer": _series,
    "blip_2_qformer": lambda c: {
        "query_embeds": normal(8, c.hidden_size),
        "encoder_hidden_states": normal(16, c.encoder_hidden_size),
    },
    "clap": lambda c: {"input_features": normal(1, 64, 64)},
    "csm": lambda c: {"input_values": None},
    "decision_transformer": lambda c: {
        "states": normal(8, c.state_dim),
        "actions": normal(8, c.act_dim),
        "rewards": normal(8, 1),
        "returns_to_go": normal(8, 1),
        "timesteps": torch.arange(8).repeat(BATCH, 1),
        "attention_mask": ones(8),
    },
    "deepseek_vl_hybrid": lambda c: {"high_res_pixel_values": normal(3, 64, 64)},
    "depth_pro": lambda c: {"pixel_values": normal(3, 256, 256)},
    "dia": lambda c: {"decoder_input_ids": ones(8, 9) * 7},
    "efficientloftr": lambda c: {"pixel_values": normal(2, 3, 64, 64)},
    "embedding_gemma2": lambda c: {"input_features": None, "input_features_mask": None},
    "fun_asr_nano": _stacked,
    "fun_asr_nano_encoder": _stacked,
    "fuyu": lambda c: {"pixel_values": normal(16, 768)},
    "gemma3n_audio": lambda c: {
        "audio_mel": normal(64, c.input_feat_size),
        "audio_mel_mask": torch.zeros(BATCH, 64, dtype=torch.bool),
    },
    "gemma4_audio": lambda c: {"input_features": normal(64, 128)},
    "gemma4_unified": lambda c: {"pixel_values": normal(16, 6912)},
    "glm_image": lambda c: {"pixel_values": None, "image_grid_thw": None},
    "granite_docling": lambda c: {
        "pixel_values": normal(1, 3, 64, 64),
        "pixel_attention_mask": ones(1).bool(),
    },
    "granite_speech": lambda c: {"input_features_mask": ones(32).bool()},
    "granite_speech5_ctc": lambda c: {"input_features": normal(32, 320)},
    "granite_speech5_encoder": lambda c: {"input_features": normal(32, 320)},
    "granite_speech_plus": lambda c: {"input_features_mask": ones(32).bool()},
    "idefics": lambda c: {
        "pixel_values": normal(1, 3, 64, 64),
        "image_attention_mask": ones(TEXT, 1),
    },
    "informer": _series,
    "inkling2": _blocks,
    "inkling2_vision": _blocks,
    "instructblip": lambda c: {"qformer_input_ids": words(8)},
    "instructblipvideo": lambda c: {
        "qformer_input_ids": words(8),
        "pixel_values": normal(2, 3, 64, 64),
    },
    "kimi_k25": _patches,
    "kimi_k25_vision": _patches,
    "kosmos-2": lambda c: {"image_embeds_position_mask": _spaced(c.latent_query_num)},
    "lightglue": lambda c: {"pixel_values": normal(2, 3, 64, 64)},
    "lxmert": lambda c: {
        "visual_feats": normal(10, c.visual_feat_dim),
        "visual_pos": torch.rand(BATCH, 10, c.visual_pos_dim),
    },
    "mimi_decoder": lambda c: {"latents": normal(c.hidden_size, 8)},
    "minicpm_ocr": _strip,
    "minicpm_ocr_vision": _strip,
    "minicpmv4_6": _strip,
    "minicpmv4_7": _strip,
    "minicpmv4_7_vision": _strip,
    "mllama": _tiles,
    "molmo2": lambda c: {"pixel_values": None},
    "moss_transcribe_diarize": lambda c: {"padding_mask": ones(1)},
    "muse_glimmer_assistant": lambda c: {
        "noise_embeds": normal(8, c.hidden_size),
        "context_hidden_states": normal(8, 2 * c.hidden_size),
        "attention_mask": ones(16),
    },
    "muse_spark": lambda c: {"input_values": None},
    "muse_spark_audio": lambda c: {"input_values": normal(3840)},
    "nemotron3_5_transcribe_word_timestamp": lambda c: {"inputs_embeds": normal(16, c.hidden_size)},
    "neomme": lambda c: {"pixel_values": torch.randn(BATCH * 16, c.patch_dim)},
    "neucodec": lambda c: {"input_features": normal(10, 64)},
    "omdet-turbo": lambda c: {
        "classes_input_ids": words(8).repeat(2, 1),
        "classes_attention_mask": ones(8).repeat(2, 1),
        "tasks_input_ids": words(8),
        "tasks_attention_mask": ones(8),
        "classes_structure": torch.full((BATCH,), 2),
    },
    "oneformer": lambda c: {"task_inputs": words(c.task_seq_len)},
    "paddleocr_vl": _patches,
    "patchtsmixer": lambda c: {"past_values": normal(c.context_length, c.num_input_channels)},
    "patchtst": lambda c: {"past_values": normal(c.context_length, c.num_input_channels)},
    "perceiver": lambda c: {"inputs": normal(16, c.d_model)},
    "pi0": lambda c: {"action_embeds": normal(8, 64), "pixel_attention_mask": ones(1)},
    "pocket_tts_audio_tokenizer_decoder": lambda c: {"latents": normal(c.hidden_size, 8)},
    "pp_ocrv5_mobile_rec": _line,
    "pp_ocrv5_server_rec": _line,
    "pp_ocrv6_small_rec": _line,
    "pp_ocrv6_tiny_rec": _line,
    "qwen3_asr": _chunk,
    "qwen3_asr_encoder": _chunk,
    "seamless_m4t": lambda c: {"input_features": None},
    "seamless_m4t_v2": lambda c: {"input_features": None},
    "seggpt": lambda c: {
        "prompt_pixel_values": normal(3, 64, 64),
        "prompt_masks": normal(3, 64, 64),
        "pixel_values": normal(3, 64, 64),
    },
    "speecht5": lambda c: {
        "input_values": normal(16, c.hidden_size),
        "decoder_input_values": normal(8, c.hidden_size),
    },
    "time_series_transformer": _series,
    "timesfm": lambda c: {
        "past_values": normal(128),
        "past_values_padding": torch.zeros(BATCH, 128),
        "freq": torch.zeros(BATCH, 1, dtype=torch.long),
    },
    "timesfm2_5": lambda c: {"past_values": normal(128)},
    "tvp": lambda c: {"pixel_values": torch.randn(1, 2, 3, 64, 64), "input_ids": words(TEXT)[:1]},
    "vibevoice": _whole,
    "vibevoice_acoustic_tokenizer_decoder": lambda c: {"hidden_states": normal(c.hidden_size, 8)},
    "vibevoice_acoustic_tokenizer_encoder": lambda c: {"hidden_states": normal(1, 3200)},
    "vibevoice_asr": _whole,
    "video_llama_3": lambda c: {"image_merge_sizes": torch.full((BATCH,), 2)},
    "video_llama_3_vision": lambda c: {"merge_sizes": torch.full((BATCH,), 2)},
    "voxtral_realtime": lambda c: {"input_ids": words(8), "attention_mask": ones(8)},
    "xcodec2": lambda c: {"input_features": normal(10, 64)},
}
