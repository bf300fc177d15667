# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The order of the house: who imports whom, how many arguments come by position, how long a file is."""

import ast
import graphlib
import inspect

import pytest
from variants import ROOT

import astroformer_hf
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


PACKAGE = ROOT / "astroformer_hf"
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}
SCRIPTS = {
    ".".join(path.relative_to(ROOT / "scripts").with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "scripts").rglob("*.py"))
}
MOST_POSITIONAL, MOST_LINES = 8, 800


def is_triton_kernel(function):
    """Triton reads the parameters of its functions off their positions."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("name", MODULES)
def test_no_function_takes_many_arguments_by_position(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef) and not is_triton_kernel(node):
            positional = [x.arg for x in (*node.args.posonlyargs, *node.args.args) if x.arg not in ("self", "cls")]
            assert len(positional) <= MOST_POSITIONAL, f"{name}.{node.name} takes {len(positional)} by position"


@pytest.mark.parametrize("name", [*TEXT_MODELS.values(), *IMAGE_MODELS.values()])
def test_no_model_takes_many_arguments_by_position(name):
    parameters = inspect.signature(getattr(astroformer_hf, name).forward).parameters.values()
    positional = [x.name for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    assert len(positional) - 1 <= MOST_POSITIONAL, positional  # without self


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")) + sorted((ROOT / "scripts").rglob("*.py")), ids=str)
def test_no_file_is_long(path):
    if path.name not in ("neuron_astrocyte_cpu_source.py", "neuron_astrocyte_triton.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def imports_of(name, tree, known):
    """The modules of `known` that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for candidate in (base, *(f"{base}.{alias.name}" if base else alias.name for alias in node.names)):
                if candidate in known and candidate != name:
                    yield candidate
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known and alias.name != name)


@pytest.mark.parametrize("modules", [MODULES, SCRIPTS], ids=["package", "scripts"])
def test_no_circle_of_imports(modules):
    graph = {name: set(imports_of(name, tree, modules)) for name, tree in modules.items() if name != "__init__"}
    assert sum(map(len, graph.values())) > len(graph)  # it sees them
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_of_the_package_import_no_subpackage():
    """Only relatively imported files beside them travel with a checkpoint."""
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (name == "__init__" or node.module), f"{name}: {ast.unparse(node)}"
