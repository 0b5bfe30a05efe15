"""What the general rules for small configs do not get right, by model type or config class."""

from typing import Any

__all__: list[str] = ["EXCEPTIONS", "SECTIONS"]

# The sections of a rotation by time, height and width, which fill half of a head's rotated part.
SECTIONS: dict[str, tuple[int, ...]] = {
    "cosmos3_edge_text": (2, 3, 3),
    "ernie4_5_vl_moe_text": (3, 3, 2),
    "glm4v_moe_text": (2, 1, 1),
    "glm4v_text": (2, 3, 3),
    "glm_image_text": (2, 3, 3),
    "glm_ocr_text": (2, 3, 3),
    "hunyuan_vl_text": (2, 2, 2, 2),
    "paddleocr_vl_text": (2, 3, 3),
    "qwen2_5_omni_text": (2, 3, 3),
    "qwen2_5_vl_text": (2, 3, 3),
    "qwen2_vl_text": (2, 3, 3),
}

DOWNSAMPLED: dict[str, Any] = {"window_size": 4, "downsample_rate": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16}
MAPS: dict[str, Any] = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
SERIES: dict[str, Any] = {"num_time_features": 2}
TILES: dict[str, Any] = {"image_grid_pinpoints": [[64, 128], [128, 64]]}
VISION_TOKENS: dict[str, Any] = {"vision_start_token_id": 101, "vision_end_token_id": 102}
WINDOWS: dict[str, Any] = {"window_size": 64, "fullatt_block_indexes": [1]}

# The words of a vocabulary that stand for the codes of an image, in which letters are digits.
CODES: dict[str, Any] = {
    "vocabulary_map": {
        "<image>": 100,
        **{f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": i for i in range(64)},
    }
}

VISUAL_CODES: dict[str, Any] = {
    "vocabulary_map": {
        "<image>": 100,
        "<|extra_200|>": 101,
        **{f"<|visual token {i:06}|>": i for i in range(64)},
    }
}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "align_vision_model": {"width_coefficient": 1.0, "hidden_dim": 64},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "autoformer": SERIES | {"context_length": 8, "label_length": 4},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "bit": {"num_groups": 4},
    "blip-2": {"image_token_index": 100},
    "blt": {"num_hidden_layers": 2},
    "chameleon": CODES,
    "chameleon_vqgan": {"num_embeddings": 64},
    "clap_audio_model": {"patch_embeds_hidden_size": 16, "hidden_size": 128},
    "clvp_encoder": {"hidden_size": 128},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "cvt": {"depth": [1, 2, 3]},
    "dac": {"encoder_hidden_size": 8, "decoder_hidden_size": 128},
    "DbrxAttentionConfig": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "depth_pro": {"patch_size": 64, "intermediate_hook_ids": [1, 0]},
    "diffusion_gemma_text": EXPERTS | {"global_head_dim": 16},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 64,
        "swa_kv_lora_rank": 64,
        "swa_head_dim": 32,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "efficientloftr": {
        "stage_num_blocks": [1, 1, 1, 1],
        "out_features": [64, 64, 64, 64],
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "efficientnet": {"width_coefficient": 0.25, "hidden_dim": 320},
    "embedding_gemma2_text": {"global_head_dim": 16},
    "emu3": VISUAL_CODES,
    "emu3_vqgan": {"codebook_size": 64, "channel_multiplier": [1, 1, 1]},
    "esm": {"vocab_size": 128, "pad_token_id": 0},
    "exaone4_5_vision": WINDOWS,
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128},
    "fastspeech2_conformer_hifigan": {"model_in_dim": 80, "upsample_initial_channel": 64},
    "fun_asr_nano_encoder": {"num_mel_bins": 80},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "glm5_next_text": {"index_topk": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": TILES
    | {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1], "downsample_rate": "2/4"},
    "granite_speech": DOWNSAMPLED,
    "granite_speech_plus": DOWNSAMPLED,
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "informer": SERIES,
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1, 1]},
    "kosmos-2": {"latent_query_num": 8},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "llama4_vision_model": {"intermediate_size": 256},
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "lw_detr": {"projector_scale_factors": [1.0]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mimi": {"upsample_groups": 64},
    "mimi_decoder": {"upsample_groups": 64},
    "minicpm_ocr": {"image_token_id": 100},
    "minicpmv4_6": {"image_token_id": 100},
    "minicpmv4_7": {"image_token_id": 100},
    "mllama_vision_model": {"intermediate_layers_indices": [1], "vision_output_dim": 128},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "neucodec": {"quantization_dim": 128, "encoder_hidden_size": 8},
    "omdet-turbo": {
        "apply_layernorm_after_vision_backbone": False,
        "encoder_in_channels": [16, 32, 64],
        "d_model": 32,
        "encoder_hidden_dim": 32,
        "decoder_hidden_dim": 32,
        "vision_features_channels": [32, 32, 32],
    },
    "perceiver": {"d_model": 64, "num_latents": 16, "d_latents": 64},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 64},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 64},
    "pp_lcnet_v4": {"stem_channels": [3, 48, 96], "stage_out_channels": [96, 96, 192, 384]},
    "qwen2_5_omni_thinker": VISION_TOKENS,
    "qwen2_5_omni_vision_encoder": WINDOWS,
    "qwen2_5_vl_vision": WINDOWS,
    "qwen3_asr_encoder": {"n_window": 50, "n_window_infer": 100},
    "qwen3_omni_moe_thinker": VISION_TOKENS,
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [4, 4]},
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    },
    "sam2_vision_model": MAPS | {"backbone_channel_list": [128, 64, 32, 16]},
    "sam3_vision_model": MAPS,
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "seggpt": {"image_size": [128, 64], "merge_index": 0, "intermediate_hidden_state_indices": [1]},
    "step3p5": {"sliding_window": 4},
    "superpoint": {"keypoint_decoder_dim": 65},
    "t5gemma2_encoder": {"mm_tokens_per_image": 4},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "time_series_transformer": SERIES,
    "tvp": {"visual_prompt_size": 8, "max_img_size": 64, "num_frames": 2},
    "univnet": {"model_hidden_channels": 8},
    "uvdoc_backbone": {"out_indices": [1, 2, 3, 4, 5, 6]},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "voxtral": {"audio_token_id": 100},
    "xcodec": {"codebook_dim": 192},
    "xcodec2": {"quantization_dim": 128, "encoder_hidden_size": 8},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
}
