"""The data of a call in several processes: each is given the same, or None where it reads none.

    rank 0, first stage    batch            -->  micro-batches
    rank 1                 None             -->  micro-batches without values
    rank 2, last stage     None, targets    -->  micro-batches without values, targets

A process without the batch is told its shapes, once for each form of batch. Only to split the model
for a new shape of micro-batch it needs values: then it is sent one such micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from skyfx.runtime.batches.microbatch import CONSTANTS, Batch
from skyfx.runtime.distributed.checksum import digest
from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.runtime.distributed.roll_call import Call, Content, in_words, meet
from skyfx.runtime.pytree import flatten


class CallData(NamedTuple):
    """What a process is given in a call: a batch, and in training the targets of its samples."""

    batch: Batch | None
    targets: Any = None

    @classmethod
    def of(cls, batch: Any, targets: Any = None) -> "CallData":
        """From a batch as a user gives it, or None; raises as `Batch.of` does."""
        return cls(None if batch is None else Batch.of(batch), targets)

    @classmethod
    def for_training(cls, batch: Any, targets: Any) -> "CallData":
        """The same; gradients end there.

        Raises:
            ValueError: a tensor of the batch requires a gradient.
        """
        data = cls.of(batch, targets)
        if data.batch is not None and any(x.requires_grad for x in data.batch.tensors):
            raise ValueError(
                "a tensor of the batch requires a gradient, but gradients end at the pipeline's "
                "inputs: move its computation into the model, or detach it"
            )
        return data


class Reads(NamedTuple):
    """Whether this process reads the batch (for the first stage) and the targets (for the last)."""

    batch: bool
    targets: bool


class _Form(NamedTuple):
    """What a process without the batch has to know of it."""

    nesting: int
    shapes: Sequence[tuple[Sequence[int], str]]
    samples: int


class SharedData:
    """Compares the data of all processes at the beginning of each call, and tells their shapes."""

    def __init__(self, group: ProcessGroup, first: int, last: int) -> None:
        """No batch is known yet.

        Args:
            group: all processes.
            first: the rank that runs the first stage, and reads the batch.
            last: the rank that runs the last stage, and reads the targets.
        """
        self._group, self._readers = group, {"batch": first, "targets": last}
        self._nestings: dict[int, Batch] = {}
        self._told: dict[int, Batch] = {}
        self._source, self._is_shared = first, True

    def learn(self, batch: Batch) -> None:
        """Know the nesting of a batch, and its constants."""
        self._nestings.setdefault(_nesting(batch), _without_values(batch))

    def meet(self, name: str, asked: Mapping[str, str], make: Callable[[], CallData]) -> CallData:
        """Begin a call with data; all processes make it.

        Returns:
            The batch, whose tensors have no values where it is None, and the targets.

        Raises:
            DisagreementError: processes make different calls, or have different data.
            ValueError: a process is given None for what it reads.
        """
        made: list[CallData] = []

        def call() -> Call:
            made.append(make())
            return Call(name, asked, self._contents(made[0]))

        given = meet(self._group, name, call, self._readers)
        batch, targets = made[0]
        self._is_shared = all(len(each.ranks) in (0, self._group.size) for each in given.values())
        if len(given["batch"].ranks) < self._group.size:
            batch = self._completed(batch, given["batch"].form)
        assert batch is not None
        return CallData(batch, targets)

    def meet_with_state(
        self, name: str, asked: Mapping[str, str], state: Mapping[str, Any]
    ) -> None:
        """Begin a call that is given a state, the same in all processes."""

        def call() -> Call:
            tensors = {key: x for key, x in state.items() if isinstance(x, Tensor)}
            forms = [(key, x.shape, x.dtype) for key, x in tensors.items()]
            content = Content.of([*tensors.values()], repr(forms))
            return Call(name, asked, {"state": replace(content, words=f"{len(state)} tensors")})

        meet(self._group, name, call)

    def fill(
        self, parts: list[Batch], lacking: Sequence[int], failure: Exception | None
    ) -> list[Batch]:
        """Give micro-batches values where a process needs them.

        Args:
            parts: the micro-batches of the last call's batch.
            lacking: those that this process has to split the model for, and has no values of.
            failure: why the call fails in this process; then it does in all.
        """
        group = self._group
        if self._is_shared:
            return parts
        rows = group.gather_numbers([len(lacking), int(failure is not None)])
        if any(failed for _, failed in rows):
            group.run_together(partial(_raise, failure))
        if not any(num for num, _ in rows):
            return parts
        wanted = group.all_gather_json(list(lacking), list[int])
        filled = list(parts)
        for i in sorted({i for each in wanted for i in each}):
            leaves = [self._sent(x) if isinstance(x, Tensor) else x for x in parts[i].leaves]
            if lacks_values(parts[i]):
                filled[i] = replace(parts[i], leaves=tuple(leaves))
        return filled

    def _sent(self, tensor: Tensor) -> Tensor:
        """The source's values of a tensor."""
        is_here = self._group.rank == self._source
        values = tensor if is_here else torch.empty(tensor.shape, dtype=tensor.dtype)
        if values.numel():
            self._group.broadcast(self._source, as_bytes(values))
        return values

    def _contents(self, data: CallData) -> dict[str, Content | None]:
        batch, targets = data
        if batch is None and self._group.rank == self._readers["batch"]:
            raise ValueError("the batch is None in the process of the first stage, which reads it")
        found: dict[str, Content | None] = {"batch": None, "targets": None}
        if batch is not None:
            self.learn(batch)
            form = form_of(batch.leaves, batch.spec)
            found["batch"] = Content.of(batch.leaves, form)
        if targets is not None:
            leaves, spec = flatten(targets)
            found["targets"] = Content.of(leaves, form_of(leaves, spec))
        return found

    def _completed(self, batch: Batch | None, form: int) -> Batch:
        """The batch where this process has none, by what the source tells of it."""
        group = self._group
        if form not in self._told:
            mine = b"" if group.rank != self._source else _form_of(batch)
            told = msgspec.json.decode(group.all_gather(mine)[self._source], type=_Form)
            self._told[form] = group.barrier_after(lambda: self._made(told))
        return self._told[form] if batch is None else batch

    def _made(self, form: _Form) -> Batch:
        known = self._nestings.get(form.nesting)
        if known is None:
            raise ValueError(
                "None was given for a batch that is nested in another way, or holds other "
                "constants, than those that this process has seen: give it there once"
            )
        shapes = iter(form.shapes)
        leaves = tuple(_empty(*next(shapes)) if isinstance(x, Tensor) else x for x in known.leaves)
        return replace(known, leaves=leaves, batch_size=form.samples)


def form_of(leaves: Sequence[Any], nesting: Any) -> str:
    """All but the values of tensors, the same in all processes."""
    forms = [
        in_words(x) if isinstance(x, Tensor) else repr(x) if isinstance(x, CONSTANTS) else type(x)
        for x in leaves
    ]
    return f"{', '.join(map(str, forms))} in {nesting}"


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def lacks_values(batch: Batch) -> bool:
    """Whether this process was given None for it."""
    return any(x.is_meta for x in batch.tensors)


def _empty(shape: Sequence[int], kind: str) -> Tensor:
    return torch.empty(tuple(shape), dtype=getattr(torch, kind), device="meta")


def _form_of(batch: Batch | None) -> bytes:
    assert batch is not None
    shapes = [(list(x.shape), str(x.dtype).removeprefix("torch.")) for x in batch.tensors]
    return msgspec.json.encode(_Form(_nesting(batch), shapes, batch.batch_size))


def _nesting(batch: Batch) -> int:
    """A digest of all but its tensors."""
    leaves = [None if isinstance(x, Tensor) else x for x in batch.leaves]
    return digest(form_of(leaves, batch.spec))


def _without_values(batch: Batch) -> Batch:
    leaves = (x.detach().to("meta") if isinstance(x, Tensor) else x for x in batch.leaves)
    return replace(batch, leaves=tuple(leaves))
