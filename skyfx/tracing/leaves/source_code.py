"""Functions from their source: read, changed and compiled again where they were.

A compiled function has the globals, the closure, the defaults and the decorators of the original,
and its line numbers.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from types import CellType, CodeType, FunctionType
from typing import Any


def source_of(function: FunctionType) -> ast.FunctionDef | None:
    """Its syntax tree with the line numbers of its file; None where there is no source."""
    try:
        lines, begin = inspect.getsourcelines(function)
        source, shift = "".join(lines), begin - 1
        if source[:1].isspace():
            source, shift = f"if True:\n{source}", shift - 1
        (tree,) = ast.parse(source).body
    except (OSError, SyntaxError, ValueError, TypeError):
        return None
    if isinstance(tree, ast.If):
        (tree,) = tree.body
    ast.increment_lineno(tree, shift)
    return tree if isinstance(tree, ast.FunctionDef) else None


def statement(code: str, place: ast.AST) -> ast.stmt:
    """One statement as a syntax tree, with the line of another place."""
    (made,) = ast.parse(code).body
    for node in ast.walk(made):
        ast.copy_location(node, place)
    return made


def as_list(names: Sequence[str]) -> str:
    """The names as the inside of a tuple or of arguments."""
    return "".join(f"{name}, " for name in names)


def compiled(
    outermost: Any, own: FunctionType, definitions: Sequence[ast.FunctionDef]
) -> Mapping[str, FunctionType]:
    """Compile functions in the place of one that exists, by their names.

    Args:
        outermost: the function with its decorators.
        own: the function inside of them.
        definitions: the first is `own`, changed, and gets the decorators; others are new. Trees are
            changed.
    """
    cells = dict(zip(own.__code__.co_freevars, own.__closure__ or (), strict=True))
    names = [definition.name for definition in definitions]
    factory = statement(f"def factory({as_list(list(cells))}): pass", definitions[0])
    assert isinstance(factory, ast.FunctionDef)
    factory.body = list(map(_bare, definitions))
    owner = own.__qualname__.split(".")[-2] if "." in own.__qualname__ else ""
    module = ast.fix_missing_locations(ast.Module([_Mangled(owner).visit(factory)], []))
    whole = compile(module, own.__code__.co_filename, "exec", dont_inherit=True)
    made = {}
    for name in names:
        code = _code_in(_code_in(whole, "factory"), name)
        closure = tuple(cells[free] for free in code.co_freevars)
        made[name] = FunctionType(code, own.__globals__, name, None, closure)
    changed = made[names[0]]
    changed.__defaults__, changed.__kwdefaults__ = own.__defaults__, own.__kwdefaults__
    return made | {names[0]: _rewrapped(outermost, own, changed)}


def can_rewrap(outermost: Any, own: FunctionType) -> bool:
    """Whether each decorator around a function is a function that holds the next one."""
    while outermost is not own:
        inner = getattr(outermost, "__wrapped__", None)
        if not isinstance(outermost, FunctionType) or inner is None:
            return False
        if not any(cell.cell_contents is inner for cell in outermost.__closure__ or ()):
            return False
        outermost = inner
    return True


def _code_in(code: CodeType, name: str) -> CodeType:
    """The code of the function that it defines under this name."""
    return next(x for x in code.co_consts if isinstance(x, CodeType) and x.co_name == name)


def _bare(definition: ast.FunctionDef) -> ast.FunctionDef:
    """A function without decorators, annotations and values of defaults."""
    arguments = definition.args
    definition.decorator_list, definition.returns = [], None
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [x and ast.Constant(None) for x in arguments.kw_defaults]
    return definition


class _Mangled(ast.NodeTransformer):
    """Writes private names of a class as Python does inside of it."""

    def __init__(self, owner: str) -> None:
        self._prefix = f"_{owner.lstrip('_')}"

    def _name(self, name: str) -> str:
        private = name.startswith("__") and not name.endswith("__")
        return self._prefix + name if private else name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._name(node.attr)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node


def _rewrapped(function: Any, own: FunctionType, instead: FunctionType) -> FunctionType:
    """The function with its decorators' own functions around another innermost one."""
    if function is own:
        return instead
    inner = function.__wrapped__
    cells = [
        CellType(_rewrapped(inner, own, instead)) if cell.cell_contents is inner else cell
        for cell in function.__closure__ or ()
    ]
    name, defaults = function.__name__, function.__defaults__
    made = FunctionType(function.__code__, function.__globals__, name, defaults, tuple(cells))
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    made.__wrapped__ = instead  # type: ignore[attr-defined]
    return made
