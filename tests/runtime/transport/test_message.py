"""Values that are packed into one message come out as they were."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skyfx.runtime.transport.message import ALIGNMENT, MessageLayout, TensorSpec

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


@st.composite
def values(draw: st.DrawFn) -> Tensor | None:
    if draw(st.booleans()) and draw(st.booleans()):
        return None
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    tensor = torch.randint(0, 2, shape).to(dtype)
    if tensor.ndim == 2 and draw(st.booleans()):
        tensor = tensor.t()  # not contiguous
    return tensor.requires_grad_(dtype.is_floating_point and draw(st.booleans()))


@given(st.lists(values(), max_size=5))
def test_a_message_gives_back_what_was_packed(sent: list[Tensor | None]) -> None:
    message = MessageLayout.of(sent).pack(sent)
    forms = [None if x is None else TensorSpec.of(x) for x in sent]
    received = MessageLayout(forms).unpack(message)  # the receiver knows the forms alone
    for found, expected in zip(received, sent, strict=True):
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype
            if not expected.is_contiguous():
                assert found.stride() == torch.empty_like(expected).stride()
            assert found.requires_grad == expected.requires_grad
            assert found.data_ptr() % ALIGNMENT == message.data_ptr() % ALIGNMENT


def test_a_value_that_has_room_may_still_be_missing() -> None:
    layout = MessageLayout([TensorSpec((2,), torch.float32), TensorSpec((3,), torch.float32)])
    first, second = layout.unpack(layout.pack([None, torch.ones(3)]))
    assert first is None
    assert second is not None


def test_nothing_to_send_is_known_beforehand() -> None:
    assert MessageLayout([]).is_empty
    assert MessageLayout([None, None]).is_empty
    assert MessageLayout([None, None]).unpack(None) == [None, None]
