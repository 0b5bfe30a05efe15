"""Buffers that are written within a checkpoint are written again in backward, as in plain torch."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support import attribute_models
from tests.support.attribute_models import WIDTH, Layers


class Checkpointed(Layers):
    """Batch norms and a moving mean in checkpoints of both kinds, one block in two of them."""

    is_reentrant = False

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)]
        self.block = nn.Sequential(self.inner, norms[0], nn.ReLU(inplace=True), norms[1])
        self.frozen = nn.BatchNorm1d(WIDTH).requires_grad_(False)
        self.register_buffer("mean", nn.init.zeros_(self.last.bias.detach().clone()))

    def normed(self, h: Tensor) -> Tensor:
        h = self.block(h)
        self.mean.mul_(0.9).add_(h.detach().mean(0))  # type: ignore[operator]
        return h.tanh()

    def between(self, h: Tensor) -> Tensor:
        first = checkpoint(self.normed, h, use_reentrant=False)
        if not self.training:
            return self.normed(h)
        second = checkpoint(self.block, first, use_reentrant=self.is_reentrant)
        return second + checkpoint(self.frozen, h.detach(), use_reentrant=False)


def test_running_statistics_move_as_often_as_in_plain_torch() -> None:
    for check in ("full", "outputs"):
        model = Checkpointed()
        model.is_reentrant = check == "full"  # it warns where gradients are off
        plain = attribute_models.unsplit(model)
        with attribute_models.partitioned(model, check=check) as pipeline:
            found = attribute_models.pipeline_steps(pipeline, model, 1)
        expected = attribute_models.plain_steps(plain, 1)
        assert [loss for loss, _ in found] == [loss for loss, _ in expected]
        assert attribute_models.attributes(model) == attribute_models.attributes(plain)
