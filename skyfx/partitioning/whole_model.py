"""The whole model in each process for a while, where each has the tensors of its own stages."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from skyfx.runtime.distributed.gathering import gathered
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.tracing.tensor_binding import in_place_of, named_tensors, rebind


class WholeModel(NamedTuple):
    """What has become of a model's tensors.

    Attributes:
        missing: the name of one that no process has values of; empty if there is none.
        back: the model's own tensors by the `id`s of those that stand for them.
    """

    missing: str
    back: Mapping[int, Tensor]


@contextmanager
def whole_model(model: nn.Module, group: ProcessGroup) -> Iterator[WholeModel]:
    """Within it, the model has the values of all processes; all of them call it."""
    named = named_tensors(model)
    values = gathered(group, named) if group.size > 1 else named.items()
    missing, filled, back = "", dict[int, Tensor](), dict[int, Tensor]()
    for name, found in values:
        own = named[name]
        if found is None or found.is_meta:
            missing = missing or name
        elif own.is_meta:
            filled[id(own)] = stand_in = in_place_of(own, found)
            back[id(stand_in)] = own
    rebind(model, filled)
    try:
        yield WholeModel(missing, back)
    finally:
        rebind(model, back)
