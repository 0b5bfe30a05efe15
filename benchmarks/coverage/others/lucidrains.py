"""Models of smaller packages, most of them of one author."""

import torch
from torch import nn

from benchmarks.coverage.others.recipes import Models, floats, made, of, several, tokens

__all__: list[str] = ["MODELS"]

IDS, X = tokens(16), floats(16, 32)

MODELS: Models = {
    "performer-pytorch PerformerLM": of(
        "performer_pytorch.PerformerLM",
        IDS,
        num_tokens=50,
        max_seq_len=16,
        dim=32,
        depth=2,
        heads=2,
        causal=False,
    ),
    "performer-pytorch Performer": of(
        "performer_pytorch.Performer", X, dim=32, depth=2, heads=2, dim_head=16
    ),
    "linformer Linformer": of("linformer.Linformer", X, dim=32, seq_len=16, depth=2, heads=2, k=8),
    "linformer LinformerLM": of(
        "linformer.LinformerLM", IDS, num_tokens=50, dim=32, seq_len=16, depth=2, heads=2, k=8
    ),
    "linear-attention-transformer LM": of(
        "linear_attention_transformer.LinearAttentionTransformerLM",
        IDS,
        num_tokens=50,
        dim=32,
        heads=2,
        depth=2,
        max_seq_len=16,
        causal=True,
    ),
    "reformer-pytorch ReformerLM": of(
        "reformer_pytorch.ReformerLM",
        IDS,
        num_tokens=50,
        dim=32,
        depth=1,
        max_seq_len=16,
        heads=2,
        bucket_size=4,
        n_hashes=2,
        causal=True,
    ),
    "reformer-pytorch LSHSelfAttention": of(
        "reformer_pytorch.LSHSelfAttention", X, dim=32, heads=2, bucket_size=4, n_hashes=2
    ),
    "conformer Conformer": of(
        "conformer.Conformer",
        X,
        dim=32,
        depth=1,
        dim_head=16,
        heads=2,
        ff_mult=2,
        conv_expansion_factor=2,
        conv_kernel_size=7,
    ),
    "soft-moe-pytorch SoftMoE": of(
        "soft_moe_pytorch.SoftMoE", X, dim=32, seq_len=16, num_experts=2
    ),
    "soft-moe-pytorch DynamicSlots": of(
        "soft_moe_pytorch.DynamicSlotsSoftMoE", X, dim=32, num_experts=2
    ),
    "st-moe-pytorch MoE": of("st_moe_pytorch.MoE", X, dim=32, num_experts=4),
    "mixture-of-experts MoE": of("mixture_of_experts.MoE", X, dim=32, num_experts=4),
    "mixture-of-experts Hierarchical": of(
        "mixture_of_experts.HeirarchicalMoE", X, dim=32, num_experts=(2, 2)
    ),
    "local-attention LocalTransformer": of(
        "local_attention.LocalTransformer",
        IDS,
        num_tokens=50,
        max_seq_len=32,
        dim=32,
        depth=1,
        local_attn_window_size=8,
        causal=True,
        heads=2,
        dim_head=16,
    ),
    "perceiver-pytorch Perceiver": of(
        "perceiver_pytorch.Perceiver",
        floats(8, 8, 3),
        input_channels=3,
        input_axis=2,
        num_freq_bands=2,
        max_freq=4.0,
        depth=1,
        num_latents=4,
        latent_dim=16,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=8,
        latent_dim_head=8,
        num_classes=5,
    ),
    "perceiver-pytorch PerceiverIO": of(
        "perceiver_pytorch.PerceiverIO",
        X,
        depth=1,
        dim=32,
        queries_dim=16,
        logits_dim=4,
        num_latents=4,
        latent_dim=16,
    ),
    "nystrom-attention Nystromformer": of(
        "nystrom_attention.Nystromformer",
        X,
        dim=32,
        dim_head=16,
        heads=2,
        depth=1,
        num_landmarks=4,
    ),
    "tab-transformer-pytorch TabTransformer": of(
        "tab_transformer_pytorch.TabTransformer",
        several(tokens(3, 5), floats(4)),
        categories=(5, 5, 5),
        num_continuous=4,
        dim=16,
        dim_out=1,
        depth=1,
        heads=2,
        mlp_act=nn.ReLU(),
    ),
    "tab-transformer-pytorch FTTransformer": of(
        "tab_transformer_pytorch.FTTransformer",
        several(tokens(3, 5), floats(4)),
        categories=(5, 5, 5),
        num_continuous=4,
        dim=16,
        dim_out=1,
        depth=1,
        heads=2,
    ),
    "g-mlp-pytorch gMLP": of("g_mlp_pytorch.gMLP", IDS, num_tokens=50, dim=32, depth=1, seq_len=16),
    "mlp-mixer-pytorch MLPMixer": of(
        "mlp_mixer_pytorch.MLPMixer",
        floats(3, 32, 32),
        image_size=32,
        channels=3,
        patch_size=8,
        dim=16,
        depth=1,
        num_classes=5,
    ),
    "slot-attention SlotAttention": of(
        "slot_attention.SlotAttention", X, num_slots=3, dim=32, iters=2
    ),
    "hyper-connections Residual": (
        lambda: made("hyper_connections.HyperConnections", 2, dim=32, branch=nn.Linear(32, 32)),
        lambda: torch.randn(8, 16, 32),
    ),
    "egnn-pytorch EGNN": of("egnn_pytorch.EGNN", several(X, floats(16, 3)), dim=32),
    "iTransformer iTransformer": of(
        "iTransformer.iTransformer",
        floats(16, 5),
        num_variates=5,
        lookback_len=16,
        dim=32,
        depth=1,
        heads=2,
        dim_head=16,
        pred_length=(4,),
        num_tokens_per_variate=1,
    ),
}
