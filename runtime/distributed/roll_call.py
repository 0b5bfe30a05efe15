"""Before a call begins, each process says which one it makes, and with which data.

    rank 0   train_step (step 12)   batch 16x32 int64, 7f3a ..   --.
    rank 1   train_step (step 12)   batch 16x32 int64, 7f3a ..   ---+-->  the same: all go on
    rank 2   state_dict                                          --'      not the same: all raise

That takes one message of five numbers. Only if they differ, the processes send the words. What all
calls have in common at their beginning can be compared whatever they are; later, a process would
take the messages of one call for those of another, or wait for ever.

A process that reads no data may be given None instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from skyfx.runtime.distributed.checksum import checksum, digest
from skyfx.runtime.distributed.process_group import ProcessGroup, describe, restore
from skyfx.solver.errors import DisagreementError

ORDER = "all processes have to make the same calls, in the same order"


@dataclass(frozen=True, slots=True)
class Content:
    """What a call is given, such as a batch.

    Attributes:
        form: nesting, shapes, types and constants, in full.
        words: the shapes, for people.
        checksum: of all values.
    """

    form: str
    words: str
    checksum: int

    @classmethod
    def of(cls, leaves: Sequence[Any], form: str) -> "Content":
        """The content of these leaves, of which only the tensors have values."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        sums = [checksum(x) for x in tensors]
        whole = sums[0] if len(sums) == 1 else digest(str(sums))
        return cls(form, ", ".join(map(in_words, tensors)), whole)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of this process.

    Attributes:
        name: such as `train_step (step 12)`.
        asked: arguments that have to be the same, as text, by name.
        data: what it is given, by name; None where this process is given none. At most two.
        failed: the error that came instead, by `process_group.describe`.
    """

    name: str
    asked: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Content | None] = field(default_factory=dict)
    failed: tuple[str, str] | None = None

    def numbers(self) -> list[int]:
        """All of it, in five numbers."""
        rows = [digest(repr((self.name, dict(self.asked), self.failed)))]
        for one in [*self.data.values(), None, None][:2]:
            rows += [0, 0] if one is None else [digest(one.form), one.checksum]
        return rows


@dataclass(frozen=True, slots=True)
class Given:
    """Who is given one kind of data: the ranks, and a digest of its form."""

    ranks: Sequence[int]
    form: int


def enter(group: ProcessGroup | None, name: str, **asked: Any) -> None:
    """Begin a call without data; all processes make it, with the same arguments.

    Raises:
        DisagreementError: another process makes another call.
    """
    if group is not None and group.size > 1:
        meet(group, name, lambda: Call(name, {key: str(value) for key, value in asked.items()}))


def meet(
    group: ProcessGroup,
    name: str,
    describe_call: Callable[[], Call],
    readers: Mapping[str, int] | None = None,
) -> Mapping[str, Given]:
    """Begin a call; all processes make the same one, with the same data or none.

    Args:
        group: all processes, two at least.
        name: of the call.
        describe_call: what this process calls; if it raises, all processes raise.
        readers: the rank that reads each kind of data; what is not named here, all have.

    Returns:
        Who is given what.

    Raises:
        DisagreementError: another process makes another call, has other data, or has none although
            it reads them.
    """
    failure: Exception | None = None
    try:
        mine = describe_call()
    except Exception as error:
        failure, mine = error, Call(name, failed=describe(error))
    assert group.heartbeat is not None
    with group.heartbeat.waiting(name):
        rows = group.gather_numbers(mine.numbers())
    fits = _fit(rows)
    calls: list[Call] = [] if fits else group.all_gather_json(mine, Call)
    if failure is not None:
        raise failure
    readers = readers or {}
    if not fits:
        raise disagreement(calls, readers)
    given = {kind: _given(rows, i) for i, kind in enumerate(mine.data)}
    for kind, reader in readers.items():
        if (held := given.get(kind)) and held.ranks and reader not in held.ranks:
            raise DisagreementError(
                f"{name}: rank {reader} reads the {kind} and got None, {in_ranks(held.ranks)} got "
                f"values. Give the {kind} to rank {reader}"
            )
    return given


def in_words(tensor: Tensor) -> str:
    """Shape and type of a tensor."""
    shape = "x".join(map(str, tensor.shape)) or "one"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def in_ranks(ranks: Sequence[int]) -> str:
    """Ranks as text."""
    *first, last = map(str, ranks)
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"


def differing(values: Mapping[int, str]) -> str:
    """Values by rank as text, `8 on rank 0, 4 on ranks 1 and 2`; nothing if all are the same."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    said = [f"{value} on {in_ranks(some)}" for value, some in ranks.items()]
    return ", ".join(said) if len(said) > 1 else ""


def _given(rows: Sequence[Sequence[int]], kind: int) -> Given:
    """Who has this kind of data; all who have any have the same."""
    ranks = [rank for rank, row in enumerate(rows) if any(_numbers(row, kind))]
    return Given(ranks, _numbers(rows[ranks[0]], kind)[0] if ranks else 0)


def _numbers(row: Sequence[int], kind: int) -> tuple[int, ...]:
    return tuple(row[1 + 2 * kind : 3 + 2 * kind])


def _fit(rows: Sequence[Sequence[int]]) -> bool:
    """Whether all make the same call, with the same data if they have any."""
    data = ({_numbers(row, kind) for row in rows} - {(0, 0)} for kind in (0, 1))
    return len({row[0] for row in rows}) == 1 and all(len(each) <= 1 for each in data)


def disagreement(calls: Sequence[Call], readers: Mapping[str, int]) -> Exception:
    """The error that says in what the calls differ."""
    for rank, call in enumerate(calls):
        if call.failed is not None:
            return restore(rank, *call.failed)
    name = calls[0].name
    if any(call.name != name for call in calls):
        return DisagreementError(f"{_callers(calls)}: {ORDER}")
    for key in dict.fromkeys(key for call in calls for key in call.asked):
        text = differing({rank: call.asked.get(key, "None") for rank, call in enumerate(calls)})
        if text:
            return DisagreementError(f"{name}: {key} is {text}. Give all processes the same")
    for kind in calls[0].data:
        held = {rank: x for rank, call in enumerate(calls) if (x := call.data[kind]) is not None}
        if text := _difference_of(kind, held):
            others = f", or None to all but rank {readers[kind]}" if kind in readers else ""
            return DisagreementError(f"{name}: {text}. Give all processes the same{others}")
    raise AssertionError("the calls are the same")


def _callers(calls: Sequence[Call]) -> str:
    """Who calls what: `rank 0 calls state_dict, rank 1 train_step (step 12)`."""
    names = dict.fromkeys(call.name for call in calls)
    said: list[str] = []
    for name in names:
        ranks = [rank for rank, call in enumerate(calls) if call.name == name]
        verb = "" if said else " call" if len(ranks) > 1 else " calls"
        said.append(f"{in_ranks(ranks)}{verb} {name}")
    return ", ".join(said)


def _difference_of(kind: str, held: Mapping[int, Content]) -> str:
    """In what the data of processes differ, or nothing."""
    be, have = ("are", "have") if kind.endswith("s") else ("is", "has")
    if text := differing({rank: one.words for rank, one in held.items()}):
        return f"the {kind} {be} {text}"
    if differing({rank: one.form for rank, one in held.items()}):
        return f"the {kind} {be} nested in another way, or {have} other constants, on some ranks"
    first = min(held)
    others = [rank for rank, one in held.items() if one.checksum != held[first].checksum]
    if others:
        return f"the {kind} {have} other values on {in_ranks(others)} than on {in_ranks([first])}"
    return ""
