"""Models that leave something on their modules, for `loss_fn` or for the next call."""

import copy
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.runtime.state.python_numbers import Added
from skyfx.tracing.capture import capture
from tests.support.plans import even_plan
from tests.support.tiers import is_long

WIDTH, SIZE, NUM_MICROBATCHES = 8, 2, 4
BATCH = torch.linspace(-1, 1, SIZE * NUM_MICROBATCHES * WIDTH).reshape(-1, WIDTH)
TARGETS = BATCH.flip(0).contiguous()

Loss = Callable[[Any, Any], Tensor]


class Layers(nn.Module):
    """Two linear layers, and between them what a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.inner(self.between(h))))

    def kept(self) -> Any:
        """What the loss adds."""
        return ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets) + sum(self.kept())


class Experts(nn.Module):
    """Keeps its auxiliary loss, as DeepSpeed's and fairseq's do."""

    l_aux: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        gates = self.gate(h).softmax(-1)
        self.l_aux = (gates.mean(0) * (gates > 0.5).float().mean(0)).sum()
        return h + gates[:, :1] * self.expert(h)


class Mixture(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.moe = Experts()

    def between(self, h: Tensor) -> Tensor:
        return self.moe(h)

    def kept(self) -> Any:
        return [0.1 * self.moe.l_aux]


class PickingExperts(Experts):
    """Picks by values, so it stays whole."""

    def forward(self, h: Tensor) -> Tensor:
        gates = self.gate(h).softmax(-1)
        self.l_aux = gates.mean(0).pow(2).sum()
        self.kind = h.dtype, "gated"
        (rows,) = torch.where(gates[:, 0] > 0.5)
        return h.index_add(0, rows, self.expert(h[rows]))


class PickingMixture(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.moe = PickingExperts()


class Nested(Layers):
    """Tensors in containers that are made anew, and what only training assigns."""

    regular: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        self.length = len(h)
        self.losses = []
        self.losses.append(h.pow(2).mean())
        self.losses.append(h.abs().mean())
        self.means = (h.mean(), {"seen": h.detach().mean(0), "of": self.length})
        if self.training:
            self.regular = self.first.weight.pow(2).sum()
        return h

    def kept(self) -> Any:
        assert self.means[1]["of"] == self.length
        return [0.1 * self.losses[0], self.losses[1], self.means[0], 0.01 * self.regular]


class Appending(Layers):
    """The loss reads a list and clears it."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def between(self, h: Tensor) -> Tensor:
        self.losses.append(h.pow(2).mean())
        return h

    def kept(self) -> Any:
        kept = list(self.losses)
        self.losses.clear()
        return kept


class Growing(Layers):
    """Nobody clears these lists."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Tensor] = []
        self.history: dict[str, Any] = {"calls": 0}
        self.means: dict[str, list[Tensor]] = defaultdict(list)

    def between(self, h: Tensor) -> Tensor:
        self.log.append(h.detach().mean())
        self.history["calls"] += 1
        self.history.setdefault("norm", []).append(h.detach().norm())
        self.means["h"].append(h.mean())
        self.means["rows"].append(h.detach().mean(0))
        return h

    def kept(self) -> Any:
        return self.means["h"][-1:]


class Clearing(Layers):
    """Clears its list itself, and has a dict whose entries are assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.stats: dict[str, Any] = {"name": "inner"}

    def between(self, h: Tensor) -> Tensor:
        self.losses.clear()
        self.losses.append(h.pow(2).mean())
        self.stats["aux"] = h.abs().mean()
        return h

    def kept(self) -> Any:
        return [*self.losses, self.stats["aux"]]


class Recurrent(Layers):
    """State from call to call: assigned anew, written in place, and a buffer assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.ema = torch.ones(WIDTH)
        self.kept_state = torch.zeros(WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.peak = torch.tensor(1e-9)

    def between(self, h: Tensor) -> Tensor:
        self.peak = torch.maximum(self.peak, h.detach().abs().max())
        h = h / self.peak
        seen, h = h.detach().mean(0), (h + self.kept_state - self.mean) * self.ema.clone()
        self.ema.mul_(0.9).add_(seen)
        self.kept_state = 0.5 * self.kept_state + seen
        self.mean = 0.9 * self.mean + seen
        return h


class Masking(Layers):
    """Makes a mask when it first needs one."""

    mask: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        if self.mask is None or self.mask.shape != h.shape[1:]:
            self.mask = torch.ones_like(h[0]).cumsum(0)
        return h * self.mask


class Caching(Layers):
    """Keeps a table in a buffer, and its length, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.register_buffer("table", torch.zeros(16), persistent=False)

    def angles(self, length: int) -> Tensor:
        if length <= self.length:
            return self.table[:length].detach()
        angles = torch.arange(length).float()
        self.table[:length] = angles
        self.length = length
        return angles

    def between(self, h: Tensor) -> Tensor:
        return h * self.angles(h.shape[1]) + self.angles(h.shape[1])


class Drawing(Layers):
    """Draws from a generator of its own, from one that each call makes, and from a fork."""

    class Noise(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            with torch.random.fork_rng():
                torch.manual_seed(5)
                return h + torch.rand(h.shape[1])

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.Generator().manual_seed(1)
        self.noise = self.Noise()

    def between(self, h: Tensor) -> Tensor:
        made = torch.Generator().manual_seed(5)
        with torch.no_grad():
            scale = torch.rand(WIDTH, generator=made)
        noise = torch.randn(WIDTH, generator=made)
        return self.noise(h) * scale + noise * torch.rand(WIDTH, generator=self.held)


class Hooked(Layers):
    """Hooks collect numbers, arrays and text of it, also inside of what stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = Experts()
        self.seen: list[Any] = []
        self.calls = 0
        self.inner.register_forward_hook(self.note)
        self.moe.register_forward_pre_hook(self.enter)
        self.last.register_forward_hook(self.count, with_kwargs=True)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.seen.append(args[0].sum().item())

    def note(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(f"{type(module).__name__} {output.detach().mean().item()}")

    def count(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        self.calls += 1
        self.seen.append(output.detach().numpy().tolist())

    def between(self, h: Tensor) -> Tensor:
        return self.moe(h).mul_(2)


class Meter:
    """Averages, as those of torch's examples do."""

    def __init__(self) -> None:
        self.last = self.average = self.sum = 0.0
        self.count = 0

    def update(self, value: Any, count: int) -> None:
        self.last = value
        self.sum += value * count
        self.count += count
        self.average = self.sum / self.count


class Counting(Layers):
    """Counts in attributes, of the class and of its own, in containers and a sum of tensors."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[Any, int] = {"calls": 0, "most": 5}
        self.shapes: dict[str, int] = defaultdict(int)
        self.sizes = [0, 0.5]
        self.kinds = Counter(before=3)
        self.recent: deque[Any] = deque(maxlen=3)
        self.meter, self.norm = Meter(), 1.0
        self.means: Any = 0

    def between(self, h: Tensor) -> Tensor:
        self.total += 1
        self.counts["calls"] += 1
        self.counts["rows"] = self.counts.get("rows", 0) + len(h)
        self.shapes[str(h.shape)] += 1
        self.sizes[0] -= h.shape[1]
        self.sizes[1] += 0.1
        self.kinds.update(["h", str(h.dtype), "h"])
        self.recent.extend([h.detach().mean(), len(h)])
        self.meter.update(0.1 * self.training, len(h))
        self.norm = 0.9 * self.norm + (1 - 0.9) * h.detach().norm()
        self.means = self.means + h.detach().mean()
        return h


class Logging(Layers):
    """Keeps computed numbers, in lines of the model's own and in a submodule."""

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.norms = 0, {"of": "h", "last": 0.0}
            self.recent: deque[float] = deque(maxlen=5)
            self.meter = Meter()

        def forward(self, h: Tensor) -> Tensor:
            self.calls += 1
            self.recent.append(h.sum().item())
            self.meter.update(h.sum().item(), len(h))
            self.norms["last"] = h.norm().item()
            return h * 2

    def __init__(self) -> None:
        super().__init__()
        self.noting = self.Noting()
        self.history: list[float] = []
        self.largest, self.sum = None, 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.noting(torch.tanh(self.first(x)))
        self.history.append(h.mean().item())
        self.largest = (h.argmax().item(), h.max().item())
        self.sum += h.mean().item()
        self.sum += 0.1
        return self.last(torch.tanh(self.inner(h)))


class Stretching(Layers):
    """Returns as many rows as its values say; it leaves nothing."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.first(x))))
        if not h.isfinite().all():
            raise ValueError("no numbers")
        h = h.repeat_interleave((h > 0).sum(-1), 0)
        return self.last(h)


class Recomputing(Layers):
    """Runs a block again in backward, by what it has left there, as reversible networks do."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor, block: nn.Module) -> Tensor:
            ctx.save_for_backward(h)
            ctx.block = block
            with torch.no_grad():
                return block(h)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
            h = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                torch.autograd.backward(ctx.block(h, again=True), gradient)
            return h.grad, None

    class Block(nn.Module):
        scale: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor, again: bool = False) -> Tensor:
            if not again:
                self.scale = h.detach().mean(0)
            return torch.tanh(self.linear(h)) * self.scale

    class Reversible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Recomputing.Block()

        def forward(self, h: Tensor) -> Tensor:
            return 2 * Recomputing.Again.apply(h, self.block)  # type: ignore[no-any-return, no-untyped-call]

    def __init__(self) -> None:
        super().__init__()
        self.reversible = self.Reversible()

    def between(self, h: Tensor) -> Tensor:
        return self.reversible(h)


KINDS: list[type[Layers]] = [
    Mixture,
    PickingMixture,
    Nested,
    Appending,
    Growing,
    Clearing,
    Recurrent,
    Masking,
    Caching,
    Drawing,
    Hooked,
    Counting,
    Logging,
    Recomputing,
]


def kinds_over_processes() -> list[type[Layers]]:
    """Of the others no more has to travel than of these; `--long` tries all."""
    chosen = [Mixture, Nested, Appending, Recurrent, Drawing, Hooked, Logging, Recomputing]
    return KINDS if is_long() else chosen


def partitioned(model: nn.Module, **options: Any) -> skyfx.Pipeline:
    """Over two CPUs."""
    plan = even_plan(capture(model, BATCH[:SIZE], training=True), 2)
    plan = replace(plan, assumptions=replace(plan.assumptions, microbatches=NUM_MICROBATCHES))
    return skyfx.partition(model, ["cpu", "cpu"], example_inputs=BATCH, plan=plan, **options)


def attributes(model: nn.Module) -> dict[str, Any]:
    """Tensors and plain values that its modules hold, by name."""
    held = {
        f"{path}.{name}": copy_of(value)
        for path, module in model.named_modules()
        for name, value in {**vars(module), **module._buffers}.items()
        if not name.startswith("_") and name not in ("training", "mask")
    }
    return held


def copy_of(value: Any) -> Any:
    """The value, in which tensors are lists of numbers."""
    if isinstance(value, Tensor):
        return "elsewhere" if value.is_meta else value.tolist()
    if isinstance(value, Added):
        return "elsewhere"
    if isinstance(value, dict):
        return {key: copy_of(one) for key, one in value.items()}
    if isinstance(value, Meter):
        return copy_of(vars(value))
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    return [copy_of(one) for one in value] if isinstance(value, list | tuple | deque) else value


def plain_steps(model: Layers, num_steps: int) -> list[Any]:
    """Losses and gradients of training steps in plain torch, micro-batch by micro-batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said = []
    for _ in range(num_steps):
        total = torch.zeros(())
        for x, y in zip(BATCH.split(SIZE), TARGETS.split(SIZE), strict=True):
            share = model.loss(model(x), y) / NUM_MICROBATCHES
            share.backward()
            total += share.detach()
        said.append((float(total), gradients(model)))
        optimizer.step()
        optimizer.zero_grad()
    return said


def pipeline_steps(pipeline: Any, model: Layers, num_steps: int) -> list[Any]:
    """The same of a pipeline."""
    optimizer = torch.optim.SGD(pipeline.parameters(), lr=0.1)
    said = []
    for _ in range(num_steps):
        loss = pipeline.train_step(BATCH, TARGETS, model.loss)
        said.append((float(loss), gradients(model)))
        optimizer.step()
        optimizer.zero_grad()
    return said


def gradients(model: nn.Module) -> dict[str, Any]:
    """Of the parameters that are here."""
    return {
        name: None if x.grad is None else x.grad.tolist()
        for name, x in model.named_parameters()
        if not x.is_meta
    }


def unsplit(model: Layers) -> Layers:
    """A copy for plain torch."""
    return copy.deepcopy(model)
