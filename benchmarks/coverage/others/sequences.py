"""Models of words, sounds and tables: peft, torchaudio, mambapy, pytorch-tabnet."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import (
    Models,
    floats,
    made,
    named,
    of,
    prefixed,
    several,
    tokens,
)

__all__: list[str] = ["MODELS"]

IDS, X = tokens(16), floats(16, 32)


def _mamba(cls: str, **more: Any) -> Callable[[], nn.Module]:
    folder = "mamba2" if cls == "Mamba2" else "mamba"
    config = {"d_model": 16, "n_layers": 2} | more
    return lambda: made(f"mambapy.{folder}.{cls}", made(f"mambapy.{folder}.{cls}Config", **config))


class Rotated(nn.Module):
    """Attention with rotary embeddings."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.rotary = made("rotary_embedding_torch.RotaryEmbedding", dim=8, **given)
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 16).permute(2, 0, 3, 1, 4)
        if self.rotary.use_xpos:
            q, k = self.rotary.rotate_queries_and_keys(q, k)
        else:
            q, k = map(self.rotary.rotate_queries_or_keys, (q, k))
        return nn.functional.scaled_dot_product_attention(q, k, v)


def _tabnet(cls: str = "TabNet", **more: Any) -> Callable[[], nn.Module]:
    given = {"n_d": 4, "n_a": 4, "n_steps": 2, "virtual_batch_size": 2} | more
    return lambda: made(
        f"pytorch_tabnet.tab_network.{cls}", 6, 3, group_attention_matrix=torch.eye(6), **given
    )


def _adapted(kind: str, **given: Any) -> tuple[Callable[[], nn.Module], Any]:
    """A small Llama with one of peft's adapters."""

    def make() -> nn.Module:
        config = made(
            "transformers.LlamaConfig",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=50,
            attn_implementation="sdpa",
        )
        model = made("transformers.LlamaForCausalLM", config)
        return made("peft.get_peft_model", model, made(f"peft.{kind}", **given))

    return make, named(input_ids=IDS)


TARGETS = {"target_modules": ["q_proj", "v_proj"]}
TASK = {"task_type": "CAUSAL_LM"}
PEFT: Models = {
    "LoRA": _adapted("LoraConfig", r=4, lora_dropout=0.1, **TARGETS, **TASK),
    "DoRA": _adapted("LoraConfig", r=4, use_dora=True, **TARGETS, **TASK),
    "rsLoRA": _adapted("LoraConfig", r=4, use_rslora=True, **TARGETS, **TASK),
    "LoHa": _adapted("LoHaConfig", r=4, **TARGETS, **TASK),
    "LoKr": _adapted("LoKrConfig", r=4, **TARGETS, **TASK),
    "AdaLoRA": _adapted("AdaLoraConfig", total_step=10, **TARGETS, **TASK),
    "IA3": _adapted(
        "IA3Config",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        **TASK,
    ),
    "VeRA": _adapted("VeraConfig", r=4, **TARGETS, **TASK),
    "OFT": _adapted("OFTConfig", oft_block_size=8, **TARGETS, **TASK),
    "BOFT": _adapted("BOFTConfig", boft_block_size=4, **TARGETS, **TASK),
    "FourierFT": _adapted("FourierFTConfig", n_frequency=20, **TARGETS, **TASK),
    "LN tuning": _adapted("LNTuningConfig", **TASK),
    "prompt tuning": _adapted("PromptTuningConfig", num_virtual_tokens=4, **TASK),
    "prefix tuning": _adapted("PrefixTuningConfig", num_virtual_tokens=4, **TASK),
    "p-tuning": _adapted("PromptEncoderConfig", num_virtual_tokens=4, **TASK),
}

TORCHAUDIO: Models = {
    "Conformer": of(
        "torchaudio.models.Conformer",
        several(floats(16, 8), lambda: torch.full((4,), 16)),
        input_dim=8,
        num_heads=2,
        ffn_dim=16,
        num_layers=1,
        depthwise_conv_kernel_size=7,
    ),
    "ConvTasNet": of(
        "torchaudio.models.ConvTasNet",
        floats(1, 400),
        num_sources=2,
        enc_kernel_size=16,
        enc_num_feats=16,
        msk_num_feats=8,
        msk_num_hidden_feats=16,
        msk_num_layers=2,
        msk_num_stacks=1,
    ),
    "DeepSpeech": of("torchaudio.models.DeepSpeech", floats(1, 16, 8), n_feature=8, n_hidden=16),
    "Wav2Letter": of(
        "torchaudio.models.Wav2Letter",
        floats(8, 64),
        num_classes=10,
        input_type="mfcc",
        num_features=8,
    ),
    "Emformer": of(
        "torchaudio.models.Emformer",
        several(floats(18, 16), lambda: torch.full((4,), 16)),
        16,
        2,
        16,
        1,
        4,
        right_context_length=2,
    ),
    "Tacotron2": of(
        "torchaudio.models.Tacotron2",
        several(
            tokens(8, 30), lambda: torch.full((4,), 8), floats(8, 10), lambda: torch.full((4,), 10)
        ),
        n_mels=8,
        n_symbol=30,
        symbol_embedding_dim=16,
        encoder_embedding_dim=16,
        decoder_rnn_dim=16,
        attention_rnn_dim=16,
        attention_hidden_dim=8,
        prenet_dim=8,
        postnet_embedding_dim=16,
        decoder_max_step=20,
    ),
    "wav2vec2": of(
        "torchaudio.models.wav2vec2_model",
        floats(1600),
        "layer_norm",
        [(8, 10, 5), (8, 3, 2), (8, 2, 2)],
        True,
        16,
        0.1,
        4,
        2,
        2,
        2,
        0.1,
        32,
        0.1,
        0.1,
        True,
        0.0,
        None,
    ),
    "Spectrogram": of("torchaudio.transforms.MelSpectrogram", floats(1600), n_fft=256, n_mels=8),
}

MODELS: Models = {
    **prefixed("peft", PEFT),
    **prefixed("torchaudio", TORCHAUDIO),
    "mambapy Mamba": (_mamba("Mamba"), floats(16, 16)),
    "mambapy Mamba sequential": (_mamba("Mamba", pscan=False), floats(16, 16)),
    "rotary-embedding-torch rotary": (Rotated, X),
    "rotary-embedding-torch xpos": (lambda: Rotated(use_xpos=True), X),
    "pytorch-tabnet TabNet": (_tabnet(), floats(6)),
    "pytorch-tabnet entmax": (_tabnet(mask_type="entmax"), floats(6)),
}
