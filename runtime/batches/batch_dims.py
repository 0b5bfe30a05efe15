"""Where the samples of a batch are: a dimension for each argument, the same for all batches.

x        (8, 3, 32, 32)       0        along dimension 0
h        (2, 8, 64)           1        along dimension 1
images   [(3, 20, 30), ...]   entries  the list has one entry for each sample
table    (8, 64)              None     goes whole to each micro-batch, whatever its size
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from torch import Tensor

Dim = int | Literal["entries"] | None
"""How an argument is cut: along a dimension, between the entries of a list, or not at all."""

AskedDims = int | Mapping[str | int, Dim] | None
"""What a caller says: a dimension for all tensors, or for each argument, by name or position."""

Path = tuple[str | int, ...]
"""The keys that lead to a value in a batch; the indices of lists and tuples are numbers."""

Leaves = Sequence[tuple[Path, Any]]
"""All values of a batch, each with its path."""

TARGETS: Final = "targets"
"""The name of what a loss gets beside the outputs."""

NEW: Final = "new"
"""Of a value that no rule names."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the samples of one batch are.

    Attributes:
        dims: the dimension of each leaf that holds them; None for what goes whole.
        lists: the paths of lists with an entry for each sample.
        num_samples: how many there are.
    """

    dims: tuple[int | None, ...]
    lists: tuple[Path, ...]
    num_samples: int


@dataclass(frozen=True, slots=True)
class BatchDims:
    """The rule by which batches are cut into micro-batches.

    Attributes:
        asked: what the caller says, by the name of an argument or of a value in it (`"a.b"`).
        found: what was decided when a tensor or a list was seen first, by its name.
        default: the dimension to look at where nothing is asked.
        parameters: the names of forward's parameters, in order.
        argument: of `partition`, by which a caller says otherwise.
    """

    asked: Mapping[str, Dim] = field(default_factory=dict)
    found: Mapping[str, Dim] = field(default_factory=dict)
    default: int = 0
    parameters: tuple[str, ...] = ()
    argument: str = "batch_dims"

    @classmethod
    def of(cls, asked: Any, parameters: Sequence[str] = ()) -> "BatchDims":
        """From what a caller says: None, a dimension, or a `Dim` by argument's name or position.

        Raises:
            ValueError: it is none of these.
        """
        return cls(parameters=tuple(parameters))._asking(asked, ())

    @classmethod
    def of_targets(cls, asked: Any) -> "BatchDims":
        """The same for targets, which are an argument of this name; `asked` is by its keys."""
        rule = cls(argument="target_dims")
        if asked == "entries":
            return replace(rule, asked={TARGETS: asked})
        return rule._asking(asked, (TARGETS,))

    def _asking(self, asked: Any, root: Path) -> "BatchDims":
        if asked is None:
            return self
        if isinstance(asked, int) and _is_dim(asked):
            return replace(self, default=asked)
        if isinstance(asked, Mapping) and all(map(_is_dim, asked.values())):
            named = {self.name((*root, key)): dim for key, dim in asked.items()}
            return replace(self, asked=named)
        raise ValueError(
            f"{self.argument} is {asked!r}, expected a dimension, or a dict of arguments, each "
            "with a dimension, 'entries' (of a list with one for each sample) or None (not cut)"
        )

    def name(self, path: Path) -> str:
        """A name for a value: that of its argument, then the keys that lead to it."""
        first, *rest = path
        if isinstance(first, int):
            is_known = first < len(self.parameters)
            first = self.parameters[first] if is_known else f"input_{first}"
        return ".".join(map(str, (first, *rest)))

    def said(self, path: Path) -> Dim | Literal["new"]:
        """What the rule says of a value: of itself, or of what it is in."""
        for end in range(len(path), 0, -1):
            name = self.name(path[:end])
            for told in (self.asked, self.found):
                if name in told:
                    return told[name]
        return NEW

    def candidates(self, leaves: Leaves) -> list["BatchDims"]:
        """The rules that come into question for the first batch, the likeliest one first.

        They differ in the number of samples: the size that most of the tensors share along the
        default dimension comes first. A list of so many entries may be the samples, too.
        """
        rules: list[BatchDims] = []
        for prefer_lists in (False, True):
            for number in self._numbers(leaves):
                rule = self._decided(leaves, number, prefer_lists=prefer_lists)
                if rule not in rules:
                    rules.append(rule)
        return rules

    def extended(self, leaves: Leaves, num_samples: int | None = None) -> "BatchDims":
        """The same rule, with what is new in this batch."""
        paths = [path for path, _ in _tensors(leaves)]
        paths += [path for path in _lists(leaves) if self._are_entries(leaves, path)]
        if all(self.said(path) != NEW for path in paths):
            return self
        numbers = self._numbers(leaves) if num_samples is None else [num_samples]
        return self._decided(leaves, numbers[0]) if numbers else self

    def neighbours(self, leaves: Leaves) -> Iterator["BatchDims"]:
        """The rules that a caller could ask for instead, each about one tensor more."""
        number = max(self._numbers(leaves), default=0)
        for path, leaf in _tensors(leaves):
            name = self.name(path)
            if name not in self.found:
                continue
            dims = [d for d in range(leaf.ndim) if leaf.shape[d] == number]
            others: list[Dim] = [*dims] if self.found[name] is None else [None]
            found = {key: dim for key, dim in self.found.items() if key != name}
            for dim in others:
                yield replace(self, asked={**self.asked, name: dim}, found=found)

    @property
    def told(self) -> str:
        """What a caller has to say to get this rule."""
        if not self.asked:
            return f"{self.argument}={self.default}"
        return (
            f"{self.argument}={({} if self.default == 0 else dict(self.found)) | dict(self.asked)}"
        )

    def placement(self, leaves: Leaves) -> Placement:
        """Where the samples of a batch are; a single row for all samples goes whole.

        Raises:
            ValueError: the batch contradicts the rule.
        """
        dims = [self._dim(path, leaf) for path, leaf in leaves]
        sizes = {
            self.name(path): leaf.shape[dim]
            for (path, leaf), dim in zip(leaves, dims, strict=True)
            if dim is not None
        }
        lists = {path: n for path, n in _lists(leaves).items() if self.said(path) == "entries"}
        sizes |= {self.name(path): n for path, n in lists.items()}
        if not sizes:
            raise ValueError(f"nothing is cut into samples: say what in {self.argument}")
        num_samples = max(sizes.values())
        if not num_samples:
            raise ValueError("the batch holds 0 samples, expected at least 1")
        for name, size in sizes.items():
            if size not in (1, num_samples):
                other = next(key for key in sizes if sizes[key] == num_samples)
                raise ValueError(
                    f"{other!r} holds {num_samples} samples, but {name!r} holds {size}: give as "
                    f"many in each, or say in {self.argument} what is not cut"
                )
        own = [
            dim if dim is not None and leaf.shape[dim] == num_samples else None
            for (_, leaf), dim in zip(leaves, dims, strict=True)
        ]
        entries = tuple(path for path, n in lists.items() if n == num_samples)
        return Placement(tuple(own), entries, num_samples)

    def has_entries(self, leaves: Leaves, number: int) -> bool:
        """Whether there is such a list with so many entries."""
        lists = _lists(leaves).items()
        return any(n == number > 1 and self._are_entries(leaves, path) for path, n in lists)

    def _are_entries(self, leaves: Leaves, path: Path) -> bool:
        """Whether a list among targets holds texts or numbers of one type."""
        kinds = {type(x) for where, x in leaves if _is_inside(where, path)}
        return self.argument == "target_dims" and len(kinds) == 1 and kinds <= {str, int, float}

    def _dim(self, path: Path, leaf: Any) -> int | None:
        dim = self.said(path)
        if not isinstance(dim, int) or not isinstance(leaf, Tensor):
            return None
        if not -leaf.ndim <= dim < leaf.ndim:
            raise ValueError(
                f"{self.name(path)!r} has shape {tuple(leaf.shape)}, but its samples are along "
                f"dimension {dim}: say where they are in {self.argument}"
            )
        return dim % leaf.ndim

    def _numbers(self, leaves: Leaves) -> list[int]:
        """How many samples there may be: those of what the rule cuts, else by majority.

        The tensors of a list have one vote together, and so has the number of its entries.
        """
        said, votes = list[int](), dict[tuple[str | int, ...], int]()
        for path, leaf in _tensors(leaves):
            dim = self.said(path)
            if dim == NEW and (size := _size(leaf, self.default)) is not None:
                votes[
                    *("*" if isinstance(key, int) else key for key in path[1:]), path[0], size
                ] = size
            elif isinstance(dim, int) and (size := _size(leaf, dim)) is not None:
                said.append(size)
        lists = _lists(leaves).items()
        said += [number for path, number in lists if self.said(path) == "entries"]
        if said:
            return [max(said)]
        new_lists = [number for path, number in lists if self.said(path) == NEW]
        numbers = [n for n, _ in Counter([*votes.values(), *new_lists]).most_common()]
        # A single row may be meant for all samples.
        return [n for n in numbers if n != 1] or numbers

    def _decided(
        self, leaves: Leaves, num_samples: int, *, prefer_lists: bool = False
    ) -> "BatchDims":
        """The rule for a batch of so many samples, with what is new in this one."""
        found: dict[str, Dim] = {}
        for path, number in _lists(leaves).items():
            rows = {
                _size(x, self.default) for where, x in _tensors(leaves) if _is_inside(where, path)
            }
            is_clear = prefer_lists or rows != {num_samples}
            has_entries = bool(rows) or self._are_entries(leaves, path)
            if self.said(path) == NEW and number == num_samples > 1 and has_entries and is_clear:
                found[self.name(path)] = "entries"
        rule = replace(self, found={**self.found, **found})
        for path, leaf in _tensors(leaves):
            size = _size(leaf, self.default)
            # A single row is for all samples in this batch, and may be for one in another.
            if rule.said(path) == NEW and not size == 1 < num_samples:
                found[self.name(path)] = self.default if size == num_samples else None
        return replace(self, found={**self.found, **found})


def _tensors(leaves: Leaves) -> Iterator[tuple[Path, Tensor]]:
    return ((path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor))


def _lists(leaves: Leaves) -> dict[Path, int]:
    """The outermost lists and tuples in arguments, with their numbers of entries."""
    found: dict[Path, int] = {}
    for path, _ in leaves:
        index = next((i for i, key in enumerate(path) if i and isinstance(key, int)), 0)
        if index:
            found[path[:index]] = int(path[index]) + 1
    return found


def _is_inside(path: Path, outer: Path) -> bool:
    return path[: len(outer)] == outer


def _size(leaf: Tensor, dim: int) -> int | None:
    return leaf.shape[dim] if -leaf.ndim <= dim < leaf.ndim else None


def _is_dim(dim: Any) -> bool:
    is_number = isinstance(dim, int) and not isinstance(dim, bool)
    return dim is None or dim == "entries" or is_number
