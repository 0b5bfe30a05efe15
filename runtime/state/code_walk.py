"""From a function to the functions that it names, and to the variables of all of them.

    SCALE = 2.0                     a global
    def made(width):                a variable of a closure
        return lambda x: x * width
    class Net(nn.Module):
        def forward(self, x):       names a method, another function, and a global
            return self.between(helper(x)) * SCALE

Code of the user is looked into, and that of installed packages is not, unless it is asked for.
"""

from collections import deque
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from dis import get_instructions
from functools import cache, cached_property, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch.autograd import Function

from skyfx.runtime.state.contents import is_closed

_DEPTH = 4
"""How far functions that functions name are followed."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that holds a value: a key of a dict, a variable of a closure, or of a class.

    Attributes:
        name: as messages have it, with a colon where it is no attribute of the model.
        owner: the dict, the cell or the class.
        key: of the dict or the class.
    """

    name: str
    owner: MutableMapping[str, Any] | CellType | type
    key: str = ""

    @property
    def value(self) -> Any:
        """What is there now; None for a variable that is not set yet."""
        if isinstance(self.owner, type):
            return vars(self.owner).get(self.key)
        if isinstance(self.owner, CellType):
            return self.owner.cell_contents if self.owner != CellType() else None
        return self.owner.get(self.key)

    def put(self, value: Any) -> None:
        """Put a value there."""
        if isinstance(self.owner, type):
            setattr(self.owner, self.key, value)
        elif isinstance(self.owner, CellType):
            self.owner.cell_contents = value
        else:
            self.owner[self.key] = value


def functions_from(
    start: Any, kind: type = object, *, closed: bool = False
) -> Iterator[FunctionType]:
    """A function and those that it names, itself or by others; each is met once.

    They are methods and properties of a class, variables that hold functions, and what decorators
    wrap.

    Args:
        start: a function, or a method.
        kind: the class whose methods are meant.
        closed: whether to look into the code of installed packages.
    """
    pending, met = deque([(start, _DEPTH)]), set[int]()
    while pending:
        found, depth = pending.popleft()
        function = function_of(found)
        if function is None or id(function) in met or (is_closed(function) and not closed):
            continue
        met.add(id(function))
        yield function
        pending.append((getattr(function, "__wrapped__", None), depth))
        if depth > 1:
            named = [slot.value for slot in variables_of(function)]
            names = names_in(function.__code__)
            named += [vars(base).get(x) for base in kind.__mro__ for x in names]
            for one in [x for x in named if isinstance(x, type) and issubclass(x, Function)]:
                named += [one.forward, one.backward]  # which `apply` and autograd call
            pending += [(x, depth - 1) for x in named]


def variables_of(function: FunctionType) -> Iterator[Slot]:
    """The variables of its closure, its defaults and attributes, and the globals that it names.

    Of a file of the user's that it names, those in it.
    """
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield Slot(f"{function.__qualname__}: {name}", cell)
    for i, value in enumerate(function.__defaults__ or ()):
        yield Slot(f"{function.__qualname__}: default {i}", {"": value})
    for name, value in (function.__kwdefaults__ or {}).items():
        yield Slot(f"{function.__qualname__}: default {name}", {"": value})
    for name in [x for x in vars(function) if not x.startswith("_")]:
        yield Slot(f"{function.__qualname__}: {name}", vars(function), name)
    names, held = names_in(code), function.__globals__
    for name in _globals_in(code):
        if name not in held:
            continue
        slot = Slot(f"{held.get('__name__')}: {name}", held, name)
        if isinstance(slot.value, ModuleType) and not is_closed(slot.value):
            there = vars(slot.value)
            for inner in [x for x in names if x in there]:
                yield Slot(f"{slot.value.__name__}: {inner}", there, inner)
        yield slot


def function_of(value: Any) -> FunctionType | None:
    """The function in a method, a property and the like; None where there is none."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, partial | cached_property):
        value = value.func
    elif isinstance(value, MethodType | staticmethod | classmethod):
        value = value.__func__
    return value if isinstance(value, FunctionType) else None


@cache
def names_in(code: CodeType) -> tuple[str, ...]:
    """Names of globals and attributes in a function and the functions inside it, in order."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return tuple(sorted(set(code.co_names).union(*map(names_in, inner))))


@cache
def _globals_in(code: CodeType) -> tuple[str, ...]:
    """Those of the names that are no attributes: a script's own loop may have the same names."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    kinds = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
    own = {x.argval for x in get_instructions(code) if x.opname in kinds}
    return tuple(sorted(own.union(*map(_globals_in, inner))))


@cache
def texts_in(code: CodeType) -> frozenset[str]:
    """The strings in them, such as keys of dicts."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    own = frozenset(const for const in code.co_consts if isinstance(const, str))
    return own.union(*map(texts_in, inner))
