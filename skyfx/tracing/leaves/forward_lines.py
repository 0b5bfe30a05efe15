"""Lines of a model's own forward that can become leaves: statements, taken out as a method.

    def forward(self, x, lengths):              def forward(self, x, lengths):
        h = self.embed(x)                           h = self.embed(x)
        p = pack(h, lengths)         becomes        (h,) = self._lines_3_to_5(h, lengths)
        p, _ = self.lstm(p)                         return self.head(h)
        h, _ = unpack(p)
        return self.head(h)                     def _lines_3_to_5(self, h, lengths):
                                                    ...
                                                    return (h,)

What the statements read of the local variables are the arguments, and what later statements read
are the results (`liveness`). So lines can become a leaf as any other method of the model can.
"""

import ast
import copy
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from skyfx.tracing.leaves.call_sites import Replacement
from skyfx.tracing.leaves.liveness import (
    Path,
    around,
    block_at,
    blocks_of,
    flow,
    in_loop,
    leaves_block,
    names_in,
    read_after,
)
from skyfx.tracing.leaves.source_code import as_list, can_rewrap, compiled, source_of, statement
from skyfx.tracing.torch_internals import replaced


@dataclass(frozen=True, slots=True)
class Lines:
    """Statements of a model's own forward, one after the other in one block.

    Attributes:
        file: where they stand.
        block: leads from the function to the block.
        first: index in the block of the first statement.
        last: of the last one.
        begin: the first line.
        end: the last line.
    """

    file: str
    block: Path
    first: int
    last: int
    begin: int
    end: int

    def __str__(self) -> str:
        lines = f"{self.begin}" if self.begin == self.end else f"{self.begin}-{self.end}"
        return f"{FilePath(self.file).name}:{lines}"

    @property
    def name(self) -> str:
        """The name of the method that they become."""
        return f"_lines_{self.begin}_to_{self.end}"

    def holds(self, other: "Lines") -> bool:
        """Whether the other statements are among these, or within them."""
        depth = len(self.block)
        if other.block == self.block:
            return self.first <= other.first and other.last <= self.last
        if other.block[:depth] != self.block:
            return False
        step = other.block[depth]
        return isinstance(step, int) and self.first <= step <= self.last


@dataclass(frozen=True, slots=True)
class Signature:
    """The method that lines become.

    Attributes:
        takes: the local variables that they get.
        gives: those that they assign for later statements.
        perhaps: those of `gives` that they may not assign either, and then nobody reads.
        returns: whether they end forward instead, with its result.
    """

    takes: tuple[str, ...]
    gives: tuple[str, ...]
    perhaps: tuple[str, ...]
    returns: bool


_AWKWARD = (ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom, ast.Await)
"""Statements that do something else in a method of their own."""


class ForwardCode:
    """The source of a model's own forward."""

    def __init__(self, model: nn.Module, own: FunctionType, tree: ast.FunctionDef) -> None:
        self._model = model
        self._own = own
        self._tree = tree
        self.file = own.__code__.co_filename
        self.this = own.__code__.co_varnames[0]
        self._parameters = frozenset(a.arg for a in ast.walk(tree.args) if isinstance(a, ast.arg))

    @classmethod
    def of(cls, model: nn.Module) -> "ForwardCode | None":
        """Read it; None where there is no such source, or no statements can be taken out of it."""
        forward = _outermost(model)
        own = inspect.unwrap(forward) if isinstance(forward, FunctionType) else None
        if not isinstance(own, FunctionType) or not own.__code__.co_argcount:
            return None
        tree = source_of(own)
        if tree is None or any(isinstance(x, _AWKWARD) for x in ast.walk(tree)):
            return None
        return cls(model, own, tree) if can_rewrap(forward, own) else None

    def around(self, error: BaseException) -> Lines | None:
        """The innermost statement of forward that was running when an error was raised."""
        line = None
        for frame, number in traceback.walk_tb(error.__traceback__):
            is_here = frame.f_code.co_filename == self.file
            is_own = self._tree.lineno <= number <= (self._tree.end_lineno or 0)
            this = frame.f_locals.get(self.this)
            if is_here and is_own and getattr(this, "__dict__", None) is vars(self._model):
                line = number
        if line is None:
            return self.around(error.__cause__) if error.__cause__ else None
        return self._statement_at(line, ("body",))

    def statements(self, lines: Lines) -> list[ast.stmt]:
        """The statements themselves."""
        return block_at(self._tree, lines.block)[lines.first : lines.last + 1]

    def signature(self, lines: Lines) -> Signature:
        """What the lines get and give as a method."""
        inner = flow(self.statements(lines))
        gives = inner.assigns & read_after(self._tree, lines.block, lines.last)
        surely = frozenset() if inner.surely is None else inner.surely
        # A name that only some way through the lines assigns keeps its value on the others.
        takes = (inner.reads | (gives - surely)) & self._assigned_outside(lines)
        returns = leaves_block(self.statements(lines), (ast.Return,))
        given = () if returns else tuple(sorted(gives - {self.this}))
        perhaps = tuple(x for x in given if x not in surely | takes)
        return Signature(tuple(sorted(takes - {self.this})), given, perhaps, returns)

    def widened(self, lines: Lines, name: str, *, back: bool) -> Lines | None:
        """More statements: with those that assign a variable before, or that read it later."""
        block = block_at(self._tree, lines.block)
        if back:
            before = [i for i in range(lines.first) if name in flow([block[i]]).assigns]
            wider = lines if not before else self._lines(lines.block, before[-1], lines.last)
        else:
            after = [i for i in range(lines.last + 1, len(block)) if name in names_in(block[i])]
            wider = lines if not after else self._lines(lines.block, lines.first, after[-1])
        is_enough = wider is not None and wider != lines
        return wider if is_enough else self.around_statement(lines)

    def latest(self, lines: Lines, names: Sequence[str]) -> str:
        """Which of these variables the statements before the lines assign last; "" for none."""
        for one in reversed(block_at(self._tree, lines.block)[: lines.first]):
            for name in names:
                if name in flow([one]).assigns:
                    return name
        return ""

    def around_statement(self, lines: Lines) -> Lines | None:
        """The statement that they stand in; None where they stand in no other."""
        found = around(lines.block)
        return None if found is None else self._lines(found[0], found[1], found[1])

    def joined(self, lines: Lines, others: Sequence[Lines]) -> Lines | None:
        """The lines and all others that they overlap or that stand around them, as one."""
        for other in others:
            if lines.holds(other) or other == lines:
                continue
            if other.holds(lines):
                lines = other
            elif other.block == lines.block and not (
                other.last < lines.first or lines.last < other.first
            ):
                first, last = min(lines.first, other.first), max(lines.last, other.last)
                wider = self._lines(lines.block, first, last)
                return None if wider is None else self.joined(wider, others)
        return lines

    @contextmanager
    def taken_out(self, instead: Mapping[Lines, Callable[..., Any]]) -> Iterator[None]:
        """Within it, forward calls these functions for lines, with the own method first."""
        if not instead:
            yield
            return
        functions = self._functions(list(instead))
        methods = {name: MethodType(function, self._model) for name, function in functions.items()}
        calls = {"forward": Replacement(methods[self._own.__name__])}
        calls |= {x.name: Replacement(by, methods[x.name]) for x, by in instead.items()}
        with ExitStack() as stack:
            for name, call in calls.items():
                stack.enter_context(replaced(self._model, name, call))
            yield

    def _functions(self, all_lines: Sequence[Lines]) -> Mapping[str, FunctionType]:
        """The rewritten forward, and the method of each lines, by their names."""
        tree, methods = copy.deepcopy(self._tree), []
        unbound = dict.fromkeys(x for lines in all_lines for x in self.signature(lines).takes)
        blocks = {lines: block_at(tree, lines.block) for lines in all_lines}
        for lines in sorted(all_lines, key=lambda lines: -lines.first):
            taken = blocks[lines][lines.first : lines.last + 1]
            signature = self.signature(lines)
            call = f"{self.this}.{lines.name}({as_list(signature.takes)})"
            method = statement(
                f"def {lines.name}({as_list([self.this, *signature.takes])}): pass", taken[0]
            )
            assert isinstance(method, ast.FunctionDef)
            if signature.returns:
                method.body, instead = taken, f"return {call}"
            else:
                gives = as_list(signature.gives)
                nothing = [statement(f"{x} = None", taken[0]) for x in signature.perhaps]
                method.body = [*nothing, *taken, statement(f"return ({gives})", taken[-1])]
                instead = f"({gives}) = {call}" if gives else call
            methods.append(method)
            blocks[lines][lines.first : lines.last + 1] = [statement(instead, taken[0])]
        # A branch that is not taken may assign what the lines read in another branch.
        tree.body[:0] = [
            statement(f"{x} = None", tree.body[0]) for x in unbound if x not in self._parameters
        ]
        return compiled(_outermost(self._model), self._own, [tree, *methods])

    def _statement_at(self, line: int, block: Path) -> Lines | None:
        for i, one in enumerate(block_at(self._tree, block)):
            if one.lineno <= line <= (one.end_lineno or 0):
                inner = (self._statement_at(line, (*block, i, *p)) for p, _ in blocks_of(one))
                return next(filter(None, inner), None) or self._lines(block, i, i)
        return None

    def _lines(self, block: Path, first: int, last: int) -> Lines | None:
        """These statements, with as much around them as makes them a method."""
        all_of = block_at(self._tree, block)
        taken = all_of[first : last + 1]
        begin, end = taken[0].lineno, taken[-1].end_lineno or taken[-1].lineno
        lines = Lines(self.file, block, first, last, begin, end)
        if leaves_block(taken, (ast.Break, ast.Continue)):
            return self.around_statement(lines)
        if not leaves_block(taken, (ast.Return,)):
            return lines
        if block != ("body",):
            return self.around_statement(lines)
        end = all_of[-1].end_lineno or end
        return replace(lines, last=len(all_of) - 1, end=end)

    def _assigned_outside(self, lines: Lines) -> frozenset[str]:
        """Variables that may have a value before the lines."""
        own = flow(self.statements(lines)).assigns
        tree = copy.deepcopy(self._tree)
        del block_at(tree, lines.block)[lines.first : lines.last + 1]
        again = own if in_loop(self._tree, lines.block) else frozenset()
        return flow(tree.body).assigns | self._parameters | again


def _outermost(model: nn.Module) -> Any:
    """Its forward, with its decorators."""
    return vars(model).get("forward", getattr(type(model), "forward", None))
