"""The references in `docs/`, from what stands in the code: `cli.md` and `api.md`.

.venv/bin/python scripts/reference.py          writes them
.venv/bin/python scripts/reference.py --check  fails where they are not what the code says
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import skyfx
from skyfx import solver

ROOT = Path(__file__).resolve().parent.parent
API = """# The Python interface

Written by `scripts/reference.py` from the docstrings. The commands: [cli.md](cli.md). The files and
the cost model: [formats.md](formats.md).
"""
PACKAGES = {"skyfx": skyfx, "skyfx.solver": solver}


def api() -> str:
    """`api.md`: what each package exports, each name where it first stands."""
    parts, seen = [API], set()
    for package, module in PACKAGES.items():
        parts.append(f"## `{package}`\n\n{_text(module)}")
        for name in module.__all__:
            thing = getattr(module, name)
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            parts.extend(_entry(f"{package}.{name}", thing))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _entry(name: str, thing: Any) -> Iterator[str]:
    """A function, or a class and its public methods."""
    raised = inspect.isclass(thing) and issubclass(thing, Exception)
    yield f"### `{name}`\n" + ("" if raised else f"\n```text\n{_signature(name, thing)}\n```\n")
    yield _text(thing)
    if not inspect.isclass(thing) or raised:
        return
    for key, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if (key.startswith("_") and key != "__call__") or not inspect.getdoc(function):
            continue
        if isinstance(function, property):
            yield f"#### `{key}`\n\n{_text(function)}"
        elif inspect.isfunction(function):
            yield f"#### `{key}`\n\n```text\n{_signature(key, function)}\n```\n\n{_text(function)}"


def _signature(name: str, thing: Any) -> str:
    """One line, or where that is long, a line for each parameter."""
    signature = inspect.signature(thing)
    if (line := f"{name}{_plain(str(signature))}") and len(line) <= 90:
        return line
    kinds, lines = inspect.Parameter, list[str]()
    marked = False
    for parameter in signature.parameters.values():
        if parameter.kind is kinds.KEYWORD_ONLY and not marked:
            lines.append("    *,")
            marked = True
        marked = marked or parameter.kind is kinds.VAR_POSITIONAL
        lines.append(f"    {_plain(str(parameter))},")
    returned, arrow = signature.return_annotation, ""
    if returned is not signature.empty:
        arrow = f" -> {_plain(inspect.formatannotation(returned))}"
    return "\n".join([f"{name}(", *lines, f"){arrow}"])


def _plain(text: str) -> str:
    """Without the homes of the types."""
    return re.sub(r"\b(?:\w+\.)+(?=[A-Za-z_])", "", text).replace("'", '"')


def _text(thing: Any) -> str:
    """The docstring as Markdown: its sections become lists."""
    lines = []
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields):", line):
            lines += [f"**{line[:-1]}**", ""]
        elif found := re.match(r"    (\w+): (.*)", line):
            lines.append(f"- `{found[1]}`: {found[2]}")
        else:
            lines.append(re.sub(r"^ {4,8}(?=\S)", "  ", line) if lines else line)
    return "\n".join(lines) + "\n"


def cli() -> str:
    """`cli.md`, as typer writes it."""
    command = ["-m", "typer", "skyfx.cli", "utils", "docs", "--name", "skyfx"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.rstrip() + "\n"


def main() -> None:
    """Write them, or hold them against the code."""
    checking = "--check" in sys.argv[1:]
    for name, made in {"api.md": api(), "cli.md": cli()}.items():
        path = ROOT / "docs" / name
        if not checking:
            path.write_text(made, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != made:
            sys.exit(f"docs/{name} is not what the code says: run scripts/reference.py")


if __name__ == "__main__":
    main()
