"""Models of torch_geometric: graphs of which a node is no sample."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import Inputs, Models, floats, made, prefixed, several

__all__: list[str] = ["EDGES", "MODELS", "NODES", "edges", "nodes"]

NODES, EDGES = 12, 30


def edges() -> Tensor:
    """Pairs of nodes, none with itself, `(2, EDGES)`."""
    ours = torch.randint(0, NODES, (EDGES,))
    return torch.stack([ours, (ours + torch.randint(1, NODES, (EDGES,))) % NODES])


def _looped() -> Tensor:
    """Pairs of nodes, some with itself, `(2, EDGES)`."""
    return torch.randint(0, NODES, (2, EDGES))


def nodes(width: int = 8) -> Inputs:
    """Features, `(NODES, width)`."""
    return lambda: torch.randn(NODES, width)


def graphs() -> Tensor:
    """Which of three graphs a node is of."""
    return torch.arange(NODES) // 4


def atoms() -> tuple[Tensor, Tensor, Tensor]:
    """Kinds of atoms, where they are, and of which molecule they are."""
    return torch.randint(1, 9, (NODES,)), torch.randn(NODES, 3) * 2, graphs()


def _pairs(at: Tensor, graphs: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of atoms of one molecule, and their distances."""
    near = (graphs[:, None] == graphs[None]) & ~torch.eye(len(at), dtype=torch.bool)
    pairs = near.nonzero().T
    return pairs, (at[pairs[0]] - at[pairs[1]]).norm(dim=-1)


GRAPH = several(nodes(), edges)


def _net(cls: str, inputs: Inputs = GRAPH, *args: Any, **given: Any) -> Any:
    return lambda: made(f"torch_geometric.nn.{cls}", *args, **given), inputs


class Layers(nn.Module):
    """Two layers of one kind, and a mean over each graph."""

    def __init__(self, cls: str, **given: Any) -> None:
        super().__init__()
        self.first = made(f"torch_geometric.nn.{cls}", 8, 8, **given)
        self.last = made(f"torch_geometric.nn.{cls}", 8, 8, **given)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        hidden = self.last(self.first(x, edges).relu(), edges)
        return made("torch_geometric.nn.global_mean_pool", hidden, batch, 3)


POOLED = several(nodes(), edges, graphs)
BASIC: dict[str, Any] = {
    "in_channels": 8,
    "hidden_channels": 16,
    "num_layers": 2,
    "out_channels": 3,
}
MODELS: Models = prefixed(
    "torch_geometric",
    {
        "GCN": _net("GCN", **BASIC, dropout=0.1),
        "GCN self-loops": _net("GCN", several(nodes(), _looped), **BASIC),
        "GAT": _net("GAT", **BASIC, heads=2, dropout=0.1),
        "GATv2": _net("GAT", **BASIC, v2=True),
        "GIN": _net("GIN", **BASIC, norm="batch_norm"),
        "GraphSAGE": _net("GraphSAGE", **BASIC, jk="cat"),
        "PNA": _net(
            "PNA",
            **BASIC,
            aggregators=["mean", "max", "std"],
            scalers=["identity"],
            deg=torch.tensor([0, 2, 3, 4]),
        ),
        "EdgeCNN": _net("EdgeCNN", **BASIC),
        "LightGCN": _net("LightGCN", edges, NODES, 8, 2),
        "SchNet": _net(
            "SchNet",
            atoms,
            hidden_channels=16,
            num_filters=16,
            num_interactions=1,
            num_gaussians=8,
            interaction_graph=_pairs,
        ),
        "AttentiveFP": _net(
            "AttentiveFP",
            several(nodes(), edges, lambda: torch.randn(EDGES, 4), graphs),
            8,
            16,
            2,
            4,
            1,
            1,
        ),
        "GraphUNet": _net("GraphUNet", GRAPH, 8, 16, 3, 2),
        "DenseGCNConv": _net("DenseGCNConv", several(floats(6, 8), floats(6, 6)), 8, 8),
        "DenseGINConv": (
            lambda: made("torch_geometric.nn.DenseGINConv", nn.Linear(8, 8)),
            several(floats(6, 8), floats(6, 6)),
        ),
        **{
            name: (lambda name=name, given=given: Layers(name, **given), POOLED)
            for name, given in {
                "ChebConv": {"K": 2},
                "SGConv": {"K": 2},
                "TAGConv": {},
                "ARMAConv": {},
                "GraphConv": {},
                "LEConv": {},
                "TransformerConv": {},
                "ClusterGCNConv": {},
                "ResGatedGraphConv": {},
                "SuperGATConv": {"is_undirected": True},
                "MFConv": {},
                "FeaStConv": {},
            }.items()
        },
    },
)
