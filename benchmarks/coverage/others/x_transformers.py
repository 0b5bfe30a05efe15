"""Models of x-transformers."""

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.coverage.others.recipes import Models, floats, made, prefixed, several, tokens

__all__: list[str] = ["MODELS"]

IDS, X = tokens(16), floats(16, 32)


def _x(kind: str = "Decoder", **more: Any) -> tuple[Callable[[], nn.Module], Any]:
    """A model of words by x-transformers."""
    wrap = more.pop("wrap", {})
    layers = {"dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16} | more

    def make() -> nn.Module:
        body = made(f"x_transformers.{kind}", **layers)
        return made(
            "x_transformers.TransformerWrapper",
            num_tokens=50,
            max_seq_len=32,
            attn_layers=body,
            **wrap,
        )

    return make, IDS


MODELS: Models = prefixed(
    "x-transformers",
    {
        "Decoder": _x(),
        "Encoder": _x("Encoder"),
        "dropouts": _x(attn_dropout=0.1, ff_dropout=0.1, wrap={"emb_dropout": 0.1}),
        "rotary": _x(rotary_pos_emb=True),
        "rotary xpos": _x(rotary_xpos=True),
        "alibi": _x(alibi_pos_bias=True, alibi_num_heads=1),
        "relative": _x(rel_pos_bias=True),
        "dynamic positions": _x(dynamic_pos_bias=True, dynamic_pos_bias_log_distance=False),
        "gated": _x(ff_glu=True, ff_swish=True),
        "rmsnorm": _x(use_rmsnorm=True),
        "sandwich": _x(sandwich_coef=1),
        "macaron": _x(macaron=True),
        "one key": _x(attn_one_kv_head=True),
        "grouped": _x(attn_kv_heads=1),
        "qk norm": _x(attn_qk_norm=True),
        "talking heads": _x(attn_pre_talking_heads=True, attn_post_talking_heads=True),
        "memory": _x(attn_num_mem_kv=2, wrap={"num_memory_tokens": 2}),
        "sparse topk": _x(attn_sparse_topk=4),
        "shift tokens": _x(shift_tokens=1),
        "deepnorm": _x(pre_norm=False, scale_residual=True),
        "gate residual": _x(gate_residual=True),
        "flash": _x(attn_flash=True),
        "tied": _x(wrap={"tie_embedding": True}),
        "sinusoidal": _x(wrap={"scaled_sinu_pos_emb": True}),
        "hyper connections": _x(num_residual_streams=2),
        "value residual": _x(add_value_residual=True),
        "stochastic depth": _x(layer_dropout=0.5),
        "autoregressive loss": (
            lambda: made("x_transformers.AutoregressiveWrapper", _x()[0]()),
            tokens(17),
        ),
        "encoder and decoder": (
            lambda: made(
                "x_transformers.XTransformer",
                dim=32,
                enc_num_tokens=50,
                enc_depth=1,
                enc_heads=2,
                enc_max_seq_len=16,
                dec_num_tokens=50,
                dec_depth=1,
                dec_heads=2,
                dec_max_seq_len=16,
            ),
            several(IDS, tokens(10)),
        ),
        "continuous": (
            lambda: made(
                "x_transformers.ContinuousTransformerWrapper",
                dim_in=32,
                dim_out=4,
                max_seq_len=32,
                attn_layers=made("x_transformers.Encoder", dim=32, depth=1, heads=2),
            ),
            X,
        ),
        "vision": (
            lambda: made(
                "x_transformers.ViTransformerWrapper",
                image_size=32,
                patch_size=8,
                num_classes=5,
                attn_layers=made("x_transformers.Encoder", dim=32, depth=1, heads=2),
            ),
            floats(3, 32, 32),
        ),
    },
)
