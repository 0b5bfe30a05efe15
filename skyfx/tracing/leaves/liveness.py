"""Which local variables statements of a function read and assign.

    y = self.a(x)           reads x, assigns y
    if flag:                reads flag
        z = y               may assign z; reads y, which is assigned before
    return z

Names are taken as they stand in the syntax tree. Names of globals are among those that are read.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_COMPREHENSIONS = _SCOPES[1:]
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_LEAVES_BLOCK = (ast.Return, ast.Raise, ast.Break, ast.Continue)

Path = tuple[str | int, ...]
"""Fields and indices that lead from one node of a syntax tree to another."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What statements do to local variables.

    Attributes:
        reads: names that may be read before the statements have assigned them.
        assigns: names that may be assigned.
        surely: names that are assigned wherever the statements come to their end; None if they
            never do, because they return, raise, break or continue.
    """

    reads: frozenset[str]
    assigns: frozenset[str]
    surely: frozenset[str] | None

    def then(self, other: "Flow") -> "Flow":
        """This, and the other after it."""
        if self.surely is None:
            return self
        surely = None if other.surely is None else self.surely | other.surely
        reads = self.reads | (other.reads - self.surely)
        return Flow(reads, self.assigns | other.assigns, surely)

    def either(self, other: "Flow") -> "Flow":
        """This or the other."""
        both = [x.surely for x in (self, other) if x.surely is not None]
        surely = frozenset.intersection(*both) if both else None
        return Flow(self.reads | other.reads, self.assigns | other.assigns, surely)

    def perhaps(self) -> "Flow":
        """This, or nothing."""
        return self.either(_NOTHING)


_NOTHING = Flow(frozenset(), frozenset(), frozenset())


def flow(statements: Iterable[ast.AST]) -> Flow:
    """What these statements or expressions do, one after the other."""
    whole = _NOTHING
    for statement in statements:
        whole = whole.then(_flow_of(statement))
    return whole


def leaves_block(statements: Sequence[ast.stmt], kinds: tuple[type[ast.stmt], ...]) -> bool:
    """Whether such a statement (return, break, continue) may end more than these statements."""
    for statement in statements:
        if isinstance(statement, _DEFINITIONS):
            continue
        if isinstance(statement, kinds):
            return True
        is_loop = isinstance(statement, _LOOPS)
        inner = tuple(k for k in kinds if not (is_loop and k in (ast.Break, ast.Continue)))
        if any(leaves_block(block, inner) for _, block in blocks_of(statement)):
            return True
    return False


def blocks_of(statement: ast.AST) -> list[tuple[Path, list[ast.stmt]]]:
    """The blocks of statements directly within a statement, with the fields that lead there."""
    found: list[tuple[Path, list[ast.stmt]]] = []
    for name, value in ast.iter_fields(statement):
        if not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], ast.stmt):
            found.append(((name,), value))
        elif isinstance(value[0], (ast.ExceptHandler, ast.match_case)):
            found += [((name, i, "body"), part.body) for i, part in enumerate(value)]
    return found


def block_at(tree: ast.AST, path: Path) -> list[ast.stmt]:
    """The block of statements that a path leads to."""
    found: Any = tree
    for step in path:
        found = found[step] if isinstance(step, int) else getattr(found, step)
    assert isinstance(found, list)
    return found


def around(path: Path) -> tuple[Path, int] | None:
    """The block of the statement around a block, and its index there; None for the outermost."""
    inner = path[:-1]
    if not inner:
        return None
    if inner[-2] in ("handlers", "cases"):
        inner = inner[:-2]
    index = inner[-1]
    assert isinstance(index, int)
    return inner[:-1], index


def in_loop(tree: ast.AST, path: Path) -> bool:
    """Whether a block is within a loop."""
    outer = around(path)
    if outer is None:
        return False
    return isinstance(block_at(tree, outer[0])[outer[1]], _LOOPS) or in_loop(tree, outer[0])


def read_after(tree: ast.AST, path: Path, last: int) -> frozenset[str]:
    """The variables that may be read after a statement of a block."""
    rest = flow(block_at(tree, path)[last + 1 :])
    outer = around(path)
    if outer is None:
        return rest.reads
    one = block_at(tree, outer[0])[outer[1]]
    again = frozenset[str]()
    if isinstance(one, _LOOPS):  # from its beginning
        again = flow([one]).reads | flow(one.body).reads
    elif isinstance(one, (ast.Try, ast.TryStar)):  # from anywhere
        again = names_in(one)
    return rest.reads | ((again | read_after(tree, *outer)) - (rest.surely or frozenset()))


def names_in(node: ast.AST) -> frozenset[str]:
    """All names that are read or assigned in it, also in its inner functions."""
    return frozenset(x.id for x in ast.walk(node) if isinstance(x, ast.Name))


def _flow_of(node: ast.AST) -> Flow:
    match node:
        case ast.If():
            return _flow_of(node.test).then(flow(node.body).either(flow(node.orelse)))
        case ast.For() | ast.AsyncFor():
            body = flow([node.target, *node.body]).perhaps()
            return _flow_of(node.iter).then(_loop(body)).then(flow(node.orelse).perhaps())
        case ast.While():
            body = flow(node.body).perhaps()
            return _flow_of(node.test).then(_loop(body)).then(flow(node.orelse).perhaps())
        case ast.Try() | ast.TryStar():
            parts = [flow(node.body), *map(_flow_of, node.handlers), flow(node.orelse)]
            inner = _NOTHING
            for part in parts:  # any of it may have happened
                inner = inner.either(part)
            return Flow(inner.reads, inner.assigns, frozenset()).then(flow(node.finalbody))
        case ast.Match():
            cases = [flow([c.pattern, *filter(None, [c.guard]), *c.body]) for c in node.cases]
            inner = _NOTHING
            for part in cases:
                inner = inner.either(part)
            return _flow_of(node.subject).then(inner)
        case ast.ExceptHandler():
            caught = frozenset(filter(None, [node.name]))
            return Flow(frozenset(), caught, caught).then(flow(node.body))
    if isinstance(node, _DEFINITIONS):
        reads = frozenset(x.id for x in ast.walk(node) if isinstance(x, ast.Name))
        return Flow(reads, frozenset([node.name]), frozenset([node.name]))
    return _flow_of_simple(node)


def _flow_of_simple(node: ast.AST) -> Flow:
    """Of statements without blocks, and of expressions."""
    match node:
        case ast.Name():
            name = frozenset([node.id])
            stores = isinstance(node.ctx, ast.Store)
            return Flow(frozenset(), name, name) if stores else Flow(name, frozenset(), name - name)
        case ast.Assign():
            return flow([node.value, *node.targets])
        case ast.AnnAssign():
            return flow([*filter(None, [node.value]), node.target]) if node.value else _NOTHING
        case ast.AugAssign():
            read = names_in(node.target)
            return Flow(read, frozenset(), frozenset()).then(flow([node.value, node.target]))
        case ast.NamedExpr():
            return flow([node.value, node.target])
        case ast.Import() | ast.ImportFrom():
            names = frozenset((a.asname or a.name).partition(".")[0] for a in node.names)
            return Flow(frozenset(), names, names)
        case ast.MatchAs() | ast.MatchStar():
            own = frozenset(filter(None, [node.name]))
            inner = flow(ast.iter_child_nodes(node))
            return inner.then(Flow(frozenset(), own, own))
        case ast.BoolOp():
            return _flow_of(node.values[0]).then(flow(node.values[1:]).perhaps())
        case ast.IfExp():
            return _flow_of(node.test).then(_flow_of(node.body).either(_flow_of(node.orelse)))
        case ast.With() | ast.AsyncWith():
            items = [x for i in node.items for x in (i.context_expr, i.optional_vars) if x]
            inner = flow([*items, *node.body])
            return Flow(inner.reads, inner.assigns, inner.surely)
    if isinstance(node, _SCOPES):
        return Flow(_read_in_scope(node), _walrus_targets(node), frozenset())
    inner = flow(ast.iter_child_nodes(node))
    return Flow(inner.reads, inner.assigns, None) if isinstance(node, _LEAVES_BLOCK) else inner


def _loop(body: Flow) -> Flow:
    """A loop's body as often as it likes; `break` and `continue` end within the loop."""
    return Flow(body.reads, body.assigns, frozenset())


def _read_in_scope(node: ast.AST) -> frozenset[str]:
    """What a lambda or comprehension reads that is not its own."""
    read = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    if isinstance(node, ast.Lambda):
        own = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
    else:
        generators = getattr(node, "generators", [])
        own = {name for g in generators for name in names_in(g.target)}
    return frozenset(read - own)


def _walrus_targets(node: ast.AST) -> frozenset[str]:
    return frozenset(x.target.id for x in ast.walk(node) if isinstance(x, ast.NamedExpr))
