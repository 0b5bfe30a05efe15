"""The shortest whole program: a model over two unequal devices, planned, trained and used.

From the checkout:

    python examples/quickstart.py
"""

import torch
from torch import nn
from torch.nn import functional

import skyfx


def build() -> tuple[nn.Module, torch.Tensor]:
    """A transformer of torch's own layers, as it is, and one batch: `(samples, tokens, width)`."""
    layers = (nn.TransformerEncoderLayer(64, 4, 256, batch_first=True) for _ in range(4))
    return nn.Sequential(*layers, nn.Linear(64, 8)), torch.randn(16, 32, 64)


def main() -> None:
    """Plan, look at the plan, train, compare with it, infer."""
    torch.manual_seed(0)
    model, batch = build()
    targets = torch.randn(16, 32, 8)
    devices = ["cpu", skyfx.Device("cpu", slowdown=2)]  # or ["cuda:0", "cpu"]
    with skyfx.partition(model, devices, example_inputs=batch) as pipeline:
        print(pipeline.plan)
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
        for step in range(10):
            loss = pipeline.train_step(batch, targets, functional.mse_loss)
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {step}  loss {loss.item():.4f}")
        print(pipeline.profile(batch, targets, functional.mse_loss))
        outputs = pipeline(batch)
    print(f"inferred {tuple(outputs.shape)}")


if __name__ == "__main__":
    main()
