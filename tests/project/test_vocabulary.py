"""The code uses the words of docs/glossary.md; words that it has given up do not come back."""

import ast
from collections import Counter

import pytest

from tests.support import ROOT

PACKAGES = ("skyfx", "solver", "runtime")

NAMES = """
Place Site Hosts Pulse Crew Group Channel LocalBoundary Before After Upstream Downstream
Incoming Outgoing Form OutputForm Layout Split Splits Ranks Outcome Started Remade Measured Fit
Whole Spot Line AtLines Static Seen Run Store Prices OnType Own Walk Task Answer Found Search
Program Cutter Pace Done Room OneLive Peak Outlook Strand _Here _Everywhere _Saying _Walk
_Search _within _thin _close _of_its_own _like _has_room awake_s met own_gradients own_random
no_vmap outline kept_bytes lent numbers_between skipped begun drawing noted taken_up late_order
live_counts waits_for_itself none_under_1f1b usual scheduled outlooks narrowed earnings sharing
all_ideals many_ideals heard solve_within together UNDER PROVEN BRINGS_LIVE
"""
"""Of classes, functions and constants: each has a word of the field now."""

MODULES = """
advances aliases calls captures counting hazards hosts keeping leaves lines links machine moving
outline placing probe rebinding regions samples sites spots store telling together whole
allocator channel crew draws folder generators group joining loading nesting pulse random ranks
restoring saving splits tree twister undisturbed annealed_search aside beam bit_ideals bitsets
charges checks coarsen compiling cuts cutting dual filling fitting hosted ideals ilp integer
interrupt interval labels lattice lazily levels line orders outlook pace page pairs phases
program recheck_plan relayed room scheduled sharing shifting shifts shortening slices
solving states steps unlike windows within
"""


def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.resolve().is_relative_to(ROOT / package)
    }


def defined(tree: ast.Module) -> set[str]:
    """The names of classes and functions anywhere, and of constants of the module."""
    names = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return names | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def test_no_word_that_was_given_up_is_a_name() -> None:
    left = {path: sorted(defined(tree) & {*NAMES.split()}) for path, tree in trees().items()}
    assert not {path: words for path, words in left.items() if words}


def test_no_module_has_a_name_that_was_given_up() -> None:
    stems = {path: path.rsplit("/", 1)[-1].removesuffix(".py") for path in trees()}
    assert not {path for path, stem in stems.items() if stem in MODULES.split()}


def test_a_public_class_has_one_name() -> None:
    """No two public classes are called alike, but for the two that users give devices with."""
    names = Counter(
        node.name
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, number in names.items() if number > 1} <= {"Device", "Cluster", "Stage"}


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_and_files_stay_small(package: str) -> None:
    folders = [ROOT / package, *(p.parent for p in (ROOT / package).rglob("__init__.py"))]
    for folder in folders:
        if folder.is_symlink():
            continue
        entries = [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
        assert len(entries) <= 15, f"{folder.relative_to(ROOT)} has {len(entries)} entries"
    for path in trees():
        lines = len((ROOT / path).read_text().splitlines())
        assert lines <= 300, f"{path} has {lines} lines"
