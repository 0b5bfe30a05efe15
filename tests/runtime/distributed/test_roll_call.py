"""What is said when processes make different calls; `test_careless` has real ones."""

import pytest

from skyfx.runtime.distributed.roll_call import Call, Content, differing, disagreement
from skyfx.solver.errors import CaptureError, DisagreementError

STEP = "train_step (step 12)"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["state_dict", STEP], "rank 0 calls state_dict, rank 1 train_step (step 12): "),
        ([STEP, "save", STEP], "ranks 0 and 2 call train_step (step 12), rank 1 save: "),
        (["load", STEP, "save", STEP], "rank 0 calls load, ranks 1 and 3 train_step (step 12), "),
    ],
)
def test_who_calls_what(names: list[str], said: str) -> None:
    error = disagreement([Call(name) for name in names], {})
    assert isinstance(error, DisagreementError)
    assert str(error).startswith(said)


def test_the_ranks_of_each_value() -> None:
    assert differing({0: "8", 1: "4", 2: "8", 3: "8"}) == "8 on ranks 0, 2 and 3, 4 on rank 1"
    assert differing({0: "8", 1: "8"}) == ""


def test_a_process_that_has_no_data_agrees_with_all() -> None:
    batch, other = (Content("form", "8x8 float32", checksum) for checksum in (1, 2))
    calls = [Call(STEP, data={"batch": x, "targets": None}) for x in (None, batch, batch, other)]
    assert str(disagreement(calls, {"batch": 1})) == (
        f"{STEP}: the batch has other values on rank 3 than on rank 1. Give all processes the "
        "same, or None to all but rank 1"
    )


def test_an_error_in_one_process_is_raised_in_the_others_as_it_is() -> None:
    calls = [Call("partition"), Call("partition", failed=("CaptureError", "no inputs"))]
    error = disagreement(calls, {})
    assert isinstance(error, CaptureError)
    assert str(error) == "rank 1: no inputs"


def test_a_call_is_five_numbers_which_differ_in_what_differs() -> None:
    content = Content("form", "8x8 float32", 1)
    plain = Call(STEP, {"autocast": "off"}, {"batch": content, "targets": None}).numbers()
    assert len(plain) == 5
    assert plain[3:] == [0, 0]
    assert Call(STEP, {}, {"batch": content, "targets": None}).numbers()[0] != plain[0]
    assert Call("save").numbers()[1:] == [0] * 4
