"""A checksum depends on values and their places, and on no layout of memory."""

import torch

from skyfx.runtime.distributed.checksum import checksum, digest


def test_it_depends_on_each_value_and_its_place() -> None:
    x = torch.randn(7, 5)
    swapped = x.clone()
    swapped[2, 3], swapped[4, 1] = x[4, 1], x[2, 3]
    assert checksum(x) == checksum(x.clone()) != checksum(swapped)
    assert checksum(x.t()) == checksum(x.t().contiguous()) != checksum(x)
    assert checksum(x[1:, 1:]) == checksum(x[1:, 1:].clone())


def test_any_type_and_shape_has_one() -> None:
    for x in (torch.tensor(True), torch.tensor([1, 2], dtype=torch.bfloat16), torch.tensor(3j)):
        assert checksum(x) == checksum(x.clone()) != 0
    z = torch.randn(3, dtype=torch.complex64)
    assert checksum(z.conj()) == checksum(z.conj().resolve_conj()) != checksum(z)
    assert checksum(torch.empty(0, 4)) == 0
    assert checksum(torch.empty(4, device="meta")) == 0
    assert checksum(torch.eye(3).to_sparse()) == 0


def test_a_text_has_the_same_digest_in_all_processes() -> None:
    assert digest("rank") == -2536630918046255524 != digest("ranks")
