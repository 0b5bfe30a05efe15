"""Other values that are safe for code in C: whole numbers become smaller and keep their order."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from skyfx.runtime.pytree import flatten
from skyfx.tracing.leaves.other_values import other_values


def test_whole_numbers_become_smaller_and_keep_their_order() -> None:
    ends, chosen = torch.tensor([0, 2, 5, 9]), torch.tensor([3, 1, 2])
    given = (ends, chosen, "x")
    for found, other, word in other_values(flatten(given)[0], given):
        assert word == "x"
        assert bool((found <= ends).all())
        assert bool((found.diff() >= 0).all())
        assert bool((other <= chosen).all())


def test_each_other_number_is_seen_to_change() -> None:
    given = (torch.tensor([True, True]), torch.tensor([1.5, 2.5]), torch.tensor([4, 4]))
    others = list(other_values(flatten(given)[0], given))
    for i, x in enumerate(given):
        assert any(not torch.equal(other[i], x) for other in others)
        assert all(other[i].shape == x.shape and other[i].dtype == x.dtype for other in others)


def test_the_lengths_of_a_packed_sequence_stay() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    leaves = flatten(packed)[0]
    for other in other_values(leaves, packed):
        whole = [x for x in other if isinstance(x, Tensor) and not x.is_floating_point()]
        assert torch.equal(whole[0], packed.batch_sizes)
