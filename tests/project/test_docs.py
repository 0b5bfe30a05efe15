"""What the documents say is there, and is run: by `scripts/walk.py`, which is tried out here."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


walk = script("walk")

ON_A_GPU = {"benchmarks.beside_gpu", "benchmarks.fidelity.accelerator"}


def test_the_readme_begins_with_the_two_commands() -> None:
    first = next(walk.blocks(DOCUMENTS[0]))
    assert first.text in walk.ELSEWHERE
    commands = first.text.splitlines()
    assert commands == ["python3 scripts/demo.py", "python3 scripts/test.py"]
    assert all((ROOT / command.split()[1]).exists() for command in commands)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_are_of_a_kind_that_the_walk_knows(document: Path) -> None:
    for block in walk.blocks(document):
        assert block.kind in ("console", "python", "json", "toml", "text")
        words = set(block.flags) - {block.file}
        assert words <= {"no-run", "gpu", "two-hosts"}, block.flags


def test_every_document_and_every_example_is_linked() -> None:
    linked = {
        (document.parent / target).resolve()
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    }
    assert {*DOCUMENTS[1:], *EXAMPLES} <= linked


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_says_how_to_run_it(example: Path) -> None:
    said = "".join(block.text for block in walk.blocks(example))
    assert f"examples/{example.name}" in said


def test_every_benchmark_has_a_smallest_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    cases = script("smallest").CASE.findall((ROOT / "docs/benchmarks.md").read_text())
    programs = [x for x in (ROOT / "benchmarks").rglob("*.py") if "__main__" in x.read_text()]
    names = [str(x.relative_to(ROOT).with_suffix("")).replace("/", ".") for x in programs]
    modules = {name.removesuffix(".__main__") for name in names if "worker" not in name}
    assert modules - ON_A_GPU == {case.split()[1] for case in cases}


def test_the_references_are_what_the_code_says() -> None:
    checked = [sys.executable, "scripts/reference.py", "--check"]
    done = subprocess.run(checked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TEXT = """
```python model.py
x = 1
```

```python
import model
```

More of it:

```python
print(model.x + 1)
```

```console
python -c 'import model; print(model.x + 2)' \\
    | cat
```

```console no-run
false
```
"""


def test_a_walk_goes_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text(TEXT)
    written, program, command = walk.programs(tmp_path / "text.md")
    assert (written.file, written.text) == ("model.py", "x = 1\n")
    assert (program.kind, program.text) == ("python", "import model\nprint(model.x + 1)\n")
    assert command.kind == "console"
    assert command.text.endswith("\\\n    | cat\n")


def test_an_examples_commands_are_those_that_are_set_in(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    said = "Some.\n\n    python some.py\n    ls\n\nOr:\n\n    torchrun --nnodes=2 x\n"
    path.write_text(f'"""{said}"""\n')
    assert [(block.text, block.flags) for block in walk.programs(path)] == [
        ("python some.py\nls\n", ()),
        ("torchrun --nnodes=2 x\n", ("two-hosts",)),
    ]


@pytest.mark.parametrize(
    ("commands", "code", "said"),
    [("echo first\nfalse\necho second", 1, "first"), ("echo first\ntrue", 0, "first")],
)
def test_a_walk_ends_where_a_command_fails(
    tmp_path: Path, commands: str, code: int, said: str
) -> None:
    """In a repository of its own, whose README says these commands."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/walk.py").write_text((ROOT / "scripts/walk.py").read_text())
    (tmp_path / "pyproject.toml").write_text('[dependency-groups]\ndev = ["torch"]\n')
    (tmp_path / "README.md").write_text(f"```console\n{commands}\n```\n")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "all")):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "scripts/walk.py", "README.md"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout
    assert "second" not in done.stdout.replace("echo second", "")
