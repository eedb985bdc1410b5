"""The house: imports run downward, examples run, nothing executable is stored."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import warmstart
from warmstart.backends import Durability
from warmstart.record import EntryKind
from warmstart.session import LoadSource

# From the ground up. A module imports only from floors below its own.
FLOORS = [
    ["errors", "locks"],
    ["caller"],
    [
        *("arrays", "code", "backends", "machine", "progress", "continuation", "randomness"),
        *("sketch", "curvature", "host", "trace", "report", "pulse"),
    ],
    [
        "html",
        "values",
        "backends.memory",
        "backends.redis",
        "backends.postgres",
        "backends.place",
    ],
    ["objects", "dataset", "backends.halves", "backends.directory"],
    ["fingerprint", "codec", "backends.lmdb"],
    ["record", "packing", "addresses", "copies"],
    ["journal"],
    ["rows", "replay"],
    ["nearby", "learned", "series", "artifacts", "steps", "carrying"],
    ["upkeep", "bundle", "history", "books"],
    ["tier"],
    ["store"],
    ["session", "warm", "flight", "copying"],
    ["experiment"],
    ["run"],
    ["search"],
    ["plots", "lineage", "models"],
    ["recent", "rewarn", "surfaces", "predictors"],
    ["predictors.nearest", "predictors.path", "predictors.gauss_newton", "predictors.influence"],
    ["recorded"],
    ["recording", "predictors.regression", "predictors.quadratic"],
    ["starts"],
    ["derivatives"],
    ["following"],
    ["workers", "approach"],
    ["wrapping"],
    ["optimize"],
    ["patch", "recipes", "gaussian", "multistart"],
    ["sklearn"],
    ["demo"],
    ["cli_runs", "page"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ROOT = Path(warmstart.__file__).parent
MODULES = sorted(
    m.name.removeprefix("warmstart.") for m in pkgutil.walk_packages([str(ROOT)], "warmstart.")
)


def imports(name):
    """Yield the warmstart modules that a module imports when it runs (not for type checking)."""
    path = ROOT / (name.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / name / "__init__.py"
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or id(node) in late:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("warmstart"):
            below = node.module.removeprefix("warmstart").removeprefix(".")
            names = [below] if below else [alias.name for alias in node.names]
            yield from names


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward(name):
    """Every module stands on a floor, and imports only from below."""
    assert name in FLOOR_OF
    for other in imports(name):
        assert FLOOR_OF[other] < FLOOR_OF[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", ["", *MODULES])
def test_examples_run(name):
    """Examples in docstrings print what they say."""
    if name in {"__main__", "optimize"}:  # it runs when imported; its examples are scipy's
        return
    module = importlib.import_module(f"warmstart.{name}" if name else "warmstart")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_nothing_executable_is_stored(name):
    """No module uses pickle, marshal, shelve, eval or exec."""
    path = ROOT / (name.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / name / "__init__.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "marshal", "shelve"}
        if isinstance(node, ast.ImportFrom):
            assert node.module not in {"pickle", "marshal", "shelve"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile"}


def test_public_names_are_documented():
    """Everything that `import warmstart` offers has a docstring."""
    for name in warmstart.__all__:
        assert getattr(warmstart, name).__doc__, name


@pytest.mark.parametrize(
    "name",
    [
        *("store.Store", "run.Run", "search.Runs", "lineage.Lineage", "session.Session"),
        *("fingerprint.FitSpec", "fingerprint.Fingerprinter", "dataset.Dataset"),
        *("recipes.Fits", "recipes.Replicates"),
    ],
)
def test_public_methods_are_documented(name):
    """Each says what it takes, by name, and what it returns."""
    module, _, name = name.partition(".")
    cls = getattr(importlib.import_module(f"warmstart.{module}"), name)
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or not method.__module__.startswith("warmstart"):
            continue
        doc, signature = inspect.getdoc(method) or "", inspect.signature(method)
        takes, _, _ = doc.partition("Parameters\n-")[2].partition("\n\n")
        for parameter in list(signature.parameters)[1:]:
            assert re.search(rf"\b{parameter}\b", takes), (name, parameter)
        returns = signature.return_annotation not in {"None", "NoReturn"}
        assert ("Returns\n-" in doc) == returns, name


@pytest.mark.parametrize("kind", [warmstart.Level, Durability, EntryKind, LoadSource])
def test_members_are_documented(kind):
    """What ``help`` shows of an enumeration says what each member means."""
    for member in kind:
        assert re.search(rf"^{member.name}\n    \w", inspect.getdoc(kind), re.MULTILINE)


def test_importing_is_light():
    """Importing warmstart imports neither pandas, polars, psutil nor scikit-learn."""
    code = (
        "import sys, warmstart; "
        "assert not {'pandas', 'polars', 'psutil', 'sklearn', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_typed_user_code_type_checks(tmp_path):
    """A file of ordinary typed user code passes the strict type checker."""
    pytest.importorskip("mypy")
    code = """
import numpy as np
from warmstart import FitSpec, LoadedEntry, Session, Store, Warm, optimize, using

store = Store("place", ttl=60.0)
with store.session(FitSpec(model="m", settings={"x0": np.ones(2)})) as session:
    kept: bool = session.checkpoint(np.ones(2), objective=1.0)
    loaded: LoadedEntry | None = session.try_load()
with using(store=store) as fits:
    result = optimize.minimize(lambda x: float(x @ x), [1.0], warm=Warm(refit=True))
saved: int = sum(fit.evaluations_saved for fit in fits)
"""
    file = tmp_path / "user.py"
    file.write_text(code)
    subprocess.run([sys.executable, "-m", "mypy", "--strict", str(file)], check=True, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:.*TCP without encryption")
def test_the_story_runs(tmp_path):
    """The notebook is run as people run it, with a kernel; every cell, from top to bottom."""
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).parents[1] / "notebooks" / "story.ipynb"
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own libraries
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": tmp_path}}).execute()
    assert sum(cell.cell_type == "code" for cell in notebook.cells) >= 10


def test_the_quickstart_runs(tmp_path, monkeypatch):
    """The Python of the notebook runs from top to bottom."""
    path = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
    cells = json.loads(path.read_text())["cells"]
    blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    assert len(blocks) >= 3
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, path.name, "exec"), namespace)


README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def words(printed):
    """Return what was printed, whatever the keys and the numbers are."""
    named = re.sub(r"\b[0-9a-f]{4}…|\b[0-9a-f]{12,14}\b", "KEY", printed)
    return re.sub(r"\d[\d,.]*", "0", named)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_of_the_readme_stands_alone(number, tmp_path, monkeypatch, capsys):
    """It runs in an empty folder, and prints what the comments beside its prints say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMSTART_STORE", str(tmp_path / "store"))
    namespace = {"__name__": "__main__"}
    exec(compile(BLOCKS[number], "README.md", "exec"), namespace)
    if "store" in namespace:
        namespace["store"].close()
    printed = capsys.readouterr().out.splitlines()
    comments = re.findall(r"# ((?:\w+ [0-9a-f]{4}…|[0-9a-f]{14} ).*)", BLOCKS[number])
    assert len(comments) in {0, len(printed)}
    for line, comment in zip(printed, comments, strict=False):
        assert words(line).startswith(words(comment))
