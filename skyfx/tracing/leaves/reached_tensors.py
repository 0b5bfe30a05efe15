"""Which parameters and buffers code may use, beyond those that one run of it has used.

A run goes one way. Another batch may take another branch, or reach another expert:

    if x.sum() > 0:                       reaches all of `self.positive`
        x = self.positive(x)              and all of `self.negative`
    else:
        x = self.negative(x)
"""

import ast
import inspect
from collections.abc import Iterable
from types import FunctionType

from torch import nn

from skyfx.tracing.leaves.source_code import source_of


def reached_by(module: nn.Module, method: str) -> tuple[str, ...]:
    """As `reached`, for a method of a module."""
    function = inspect.unwrap(getattr(type(module), method, None))  # type: ignore[arg-type]
    tree = source_of(function) if isinstance(function, FunctionType) else None
    if tree is None or not tree.args.args:
        return ()
    return reached(module, tree.body, tree.args.args[0].arg, frozenset([method]))


def reached(
    module: nn.Module, code: Iterable[ast.AST], this: str, seen: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """The modules and tensors that code calls, indexes or goes through: beginnings of names.

    Args:
        module: what `this` is.
        code: statements of one of its methods.
        this: the name of the module there, `self`.
        seen: methods that are being looked at.
    """
    found: list[str] = []
    for node in (x for statement in code for x in ast.walk(statement)):
        found += [f"{name}." for name in module._modules if _may_be_got(node, this, name)]
        for inner in _used(node):
            path = _path(inner, this)
            submodule, rest = _submodule(module, path)
            own = {**submodule._parameters, **submodule._buffers}
            if len(rest) <= 1 and submodule is not module:
                found.append(".".join(path[: len(path) - len(rest)]) + ".")
            elif len(rest) == 1 and rest[0] in own:
                found.append(".".join(path))
            is_method = len(path) == 1 and rest and path[0] not in seen
            if is_method and isinstance(getattr(type(module), path[0], None), FunctionType):
                method = getattr(type(module), path[0])
                tree = source_of(inspect.unwrap(method))
                if tree is not None and tree.args.args:
                    its = tree.args.args[0].arg
                    found += reached(module, tree.body, its, seen | {path[0]})
    return tuple(dict.fromkeys(found))


def _may_be_got(node: ast.AST, this: str, name: str) -> bool:
    """Whether a node may get the attribute of that name, as `getattr(self, f"layer{i}")` does."""
    match node:
        case ast.Call(func=ast.Name("getattr"), args=[ast.Name(owner), asked, *_]) if owner == this:
            match asked:
                case ast.Constant(value):
                    return name == value
                case ast.JoinedStr([ast.Constant(start), *_]):
                    return name.startswith(str(start))
            return True
    return False


def _used(node: ast.AST) -> list[ast.AST]:
    """The expressions whose modules a node calls, indexes, passes on or goes through."""
    match node:
        case ast.Call():
            return [node.func, *node.args, *(k.value for k in node.keywords)]
        case ast.Subscript():
            return [node.value]
        case ast.For() | ast.comprehension():
            return [node.iter]
        case ast.BinOp():
            return [node.left, node.right]
        case ast.List() | ast.Tuple():
            return [*node.elts]
        case ast.Dict():
            return [*node.values]
        case ast.IfExp():
            return [node.body, node.orelse]
        case ast.Assign():
            return [node.value]
    return []


def _path(node: ast.AST, this: str) -> list[str]:
    """`["layers", "first"]` for `self.layers.first`; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return names[::-1] if isinstance(node, ast.Name) and node.id == this else []


def _submodule(module: nn.Module, path: list[str]) -> tuple[nn.Module, list[str]]:
    """The module as far as the path leads through modules, and the rest of the path."""
    for i, name in enumerate(path):
        if name not in module._modules or module._modules[name] is None:
            return module, path[i:]
        module = module._modules[name]  # type: ignore[assignment]
    return module, []
