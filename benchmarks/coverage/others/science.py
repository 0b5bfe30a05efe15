"""Models of molecules, fields, series and speech: e3nn, gpytorch, neuralop and others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.others.graphs import NODES, edges, nodes
from benchmarks.coverage.others.recipes import Inputs, Models, floats, made, prefixed, several

__all__: list[str] = ["MODELS"]


class Equivariant(nn.Module):
    """e3nn: a message by spherical harmonics of edges, weighted by their lengths."""

    def __init__(self) -> None:
        super().__init__()
        irreps = "4x0e + 2x1o"
        self.product = made(
            "e3nn.o3.FullyConnectedTensorProduct",
            "4x0e",
            "1x0e + 1x1o",
            irreps,
            shared_weights=False,
        )
        self.net = made("e3nn.nn.FullyConnectedNet", [6, 16, self.product.weight_numel], torch.relu)
        self.out = made("e3nn.o3.Linear", irreps, "3x0e")

    def forward(self, x: Tensor, at: Tensor, edges: Tensor) -> Tensor:
        ours, theirs = edges
        off = at[ours] - at[theirs] + 0.1
        sphere = made("e3nn.o3.spherical_harmonics", "1x0e + 1x1o", off, True)
        lengths = torch.exp(-((off.norm(dim=1)[:, None] - torch.arange(6)) ** 2))
        messages = self.product(x[theirs], sphere, self.net(lengths))
        return self.out(torch.zeros(len(x), messages.size(1)).index_add(0, ours, messages))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = made("e3nn.o3.Linear", "4x0e + 2x1o", "6x0e + 2x1o")
        self.gate = made("e3nn.nn.Gate", "4x0e", [torch.relu], "2x0e", [torch.sigmoid], "2x1o")
        self.norm = made("e3nn.nn.BatchNorm", "4x0e + 2x1o")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gate(self.first(x)))


class DeepKernel(nn.Module):
    """gpytorch: a variational Gaussian process on features of a network."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.kernel = made("gpytorch.kernels.ScaleKernel", made(f"gpytorch.kernels.{kernel}"))
        self.points = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(self.net(x), self.points).to_dense()


def _operator(cls: str, inputs: Inputs, **given: Any) -> tuple[Callable[[], nn.Module], Inputs]:
    return lambda: made(f"neuralop.models.{cls}", **given), inputs


FIELD: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "hidden_channels": 8, "n_layers": 2}
NEURALOP: Models = {
    "FNO": _operator("FNO", floats(1, 16, 16), n_modes=(4, 4), **FIELD),
    "FNO 1d": _operator("FNO", floats(1, 16), n_modes=(4,), **FIELD),
    "TFNO": _operator(
        "FNO",
        floats(1, 16, 16),
        n_modes=(4, 4),
        factorization="Tucker",
        rank=0.5,
        implementation="factorized",
        **FIELD,
    ),
    "SFNO padded": _operator(
        "FNO", floats(1, 16, 16), n_modes=(4, 4), domain_padding=0.1, norm="group_norm", **FIELD
    ),
    "UNO": _operator(
        "UNO",
        floats(1, 16, 16),
        in_channels=1,
        out_channels=1,
        hidden_channels=8,
        n_layers=3,
        channel_mlp_skip="linear",
        uno_out_channels=[8, 8, 8],
        uno_n_modes=[[4, 4]] * 3,
        uno_scalings=[[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]],
    ),
}


def _series(cls: str, folder: str, **given: Any) -> tuple[Callable[[], nn.Module], Inputs]:
    """A network of neuralforecast; it takes a dict of windows."""
    arguments = {"h": 4, "input_size": 16, "max_steps": 1, "accelerator": "cpu"} | given
    return lambda: Windowed(made(f"neuralforecast.models.{cls}", **arguments)), _windows


def _windows() -> Tensor:
    return torch.randn(4, 16, 1)


class Windowed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor) -> Tensor:
        known = {
            "insample_y": y,
            "insample_mask": torch.ones_like(y),
            "futr_exog": None,
            "hist_exog": None,
            "stat_exog": None,
        }
        return self.net(known)


FORECAST: Models = {
    cls: _series(cls, "", **given)
    for cls, given in {
        "MLP": {"hidden_size": 16},
        "NHITS": {"mlp_units": [[16, 16]] * 3},
        "NBEATS": {"mlp_units": [[16, 16]] * 3},
        "DLinear": {},
        "NLinear": {},
        "PatchTST": {"hidden_size": 16, "n_heads": 2, "encoder_layers": 1, "patch_len": 4},
        "TCN": {"encoder_hidden_size": 8, "context_size": 4, "decoder_hidden_size": 8},
        "LSTM": {"encoder_hidden_size": 8, "decoder_hidden_size": 8},
        "TFT": {"hidden_size": 8, "n_head": 2},
        "DeepNPTS": {"hidden_size": 8},
        "TiDE": {"hidden_size": 8, "decoder_output_dim": 4},
        "Informer": {"hidden_size": 16, "n_head": 2, "encoder_layers": 1},
        "Autoformer": {"hidden_size": 16, "n_head": 2, "encoder_layers": 1},
        "FEDformer": {"hidden_size": 16, "n_head": 8, "encoder_layers": 1, "modes": 4},
        "KAN": {"hidden_size": 8},
        "BiTCN": {"hidden_size": 8},
        "TimesNet": {"hidden_size": 8, "conv_hidden_size": 8},
    }.items()
}


class Flow(nn.Module):
    """torchdiffeq: what flows from time 0 to 1."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0])
        options = {"step_size": 0.25} if self.method != "dopri5" else None
        return made(
            "torchdiffeq.odeint",
            lambda _, y: self.field(y),
            x,
            times,
            method=self.method,
            options=options,
        )[-1]


def _speech(path: str, inputs: Inputs, *args: Any, **given: Any) -> Any:
    return lambda: made(f"speechbrain.{path}", *args, **given), inputs


SPEECH: Models = {
    "ECAPA_TDNN": _speech(
        "lobes.models.ECAPA_TDNN.ECAPA_TDNN",
        floats(20, 10),
        10,
        lin_neurons=8,
        channels=[8, 8, 8, 8, 24],
        kernel_sizes=[5, 3, 3, 3, 1],
        dilations=[1, 2, 3, 4, 1],
        attention_channels=8,
        res2net_scale=4,
        se_channels=8,
    ),
    "Xvector": _speech(
        "lobes.models.Xvector.Xvector",
        floats(20, 10),
        in_channels=10,
        tdnn_blocks=2,
        tdnn_channels=[8, 8],
        tdnn_kernel_sizes=[3, 1],
        tdnn_dilations=[1, 1],
        lin_neurons=8,
    ),
    "CRDNN": _speech(
        "lobes.models.CRDNN.CRDNN",
        floats(20, 16),
        input_size=16,
        cnn_channels=(4, 4),
        rnn_neurons=8,
        dnn_neurons=8,
        rnn_layers=1,
        dnn_blocks=1,
    ),
    "TransformerEncoder": _speech(
        "lobes.models.transformer.Transformer.TransformerEncoder",
        floats(20, 16),
        1,
        2,
        32,
        d_model=16,
    ),
    "ConformerEncoder": _speech(
        "nnet.RNN.LiGRU", floats(20, 16), 8, input_shape=[4, 20, 16], num_layers=1
    ),
}

MODELS: Models = {
    "e3nn message": (Equivariant, several(nodes(4), lambda: torch.randn(NODES, 3), edges)),
    "e3nn gate": (Gated, floats(10)),
    "gpytorch RBF": (lambda: DeepKernel("RBFKernel"), floats(6)),
    "gpytorch Matern": (lambda: DeepKernel("MaternKernel"), floats(6)),
    **prefixed("neuraloperator", NEURALOP),
    **prefixed("neuralforecast", FORECAST),
    "torchdiffeq euler": (lambda: Flow("euler"), floats(6)),
    "torchdiffeq rk4": (lambda: Flow("rk4"), floats(6)),
    "torchdiffeq dopri5": (lambda: Flow("dopri5"), floats(6)),
    **prefixed("speechbrain", SPEECH),
}
