"""Functions, classes, modules and instances are known by what they do."""

from __future__ import annotations

import abc
import enum
import functools
import importlib
import importlib.metadata
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.interpolate
import scipy.optimize
import scipy.special
import scipy.stats

from warmstart import FingerprintError, FitSpec, Level
from warmstart import code as code_room
from warmstart.fingerprint import code_fingerprint as key


def define(source, name="f", file="<test>", **names):
    """Return what `source` defines under `name`, as exec and Jupyter do it."""
    namespace = {"__name__": "cell", "np": np} | names
    exec(compile(textwrap.dedent(source), file, "exec"), namespace)
    return namespace[name]


BASE = """
import functools
SCALE = 2.0
TABLE = {"a": [1, 2]}
def leaf(x):
    return x + 1
def middle(x):
    return leaf(x) * 2
class Base:
    rate = 3
    def step(self, x):
        return x * self.rate
class Thing(Base):
    size: int = 4
    @property
    def double(self):
        return self.size * 2
    @staticmethod
    def shift(x):
        return x + 5
    @classmethod
    def make(cls):
        return cls()
    @functools.cached_property
    def lazy(self):
        return 6
def wrap(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args) + 7
    return inner
@wrap
def wrapped(x):
    return x - 8
@functools.lru_cache
def cached(x):
    return x - 9
part = functools.partial(leaf, 10)
def f(x, y=1, *, z="a"):
    if x > 0.5:
        return SCALE * middle(x) + TABLE["a"][0]
    def nested(u):
        return u ** 3
    try:
        for i in range(5):
            x += nested(i) + sorted(x, key=None) + wrapped(x) + cached(i) + part()
    except ValueError as error:
        raise TypeError("no") from error
    return [Thing().shift(v) for v in x if v]
"""

EDITS = {
    "expression": ("x > 0.5", "x >= 0.5"),
    "constant": ("range(5)", "range(6)"),
    "operator": ("u ** 3", "u * 3"),
    "default": ("y=1", "y=2"),
    "type of a default": ("y=1", "y=1.0"),
    "keyword default": ('z="a"', 'z="b"'),
    "global constant": ("SCALE = 2.0", "SCALE = 2.5"),
    "global dict": ('"a": [1, 2]', '"a": [1, 3]'),
    "helper's helper": ("return x + 1\n", "return x + 2\n"),
    "helper": ("leaf(x) * 2", "leaf(x) * 3"),
    "base class": ("x * self.rate", "x + self.rate"),
    "attribute of a base class": ("rate = 3", "rate = 4"),
    "class attribute": ("size: int = 4", "size: int = 5"),
    "property": ("self.size * 2", "self.size * 3"),
    "static method": ("return x + 5", "return x + 6"),
    "class method": ("return cls()", "return cls"),
    "cached property": ("return 6", "return 60"),
    "decorator": ("function(*args) + 7", "function(*args) + 70"),
    "decorated": ("return x - 8", "return x - 80"),
    "cached": ("return x - 9", "return x - 90"),
    "partial": ("leaf, 10", "leaf, 11"),
    "exception handler": ("except ValueError", "except OSError"),
    "message": ('"no"', '"nope"'),
    "branch": ("for v in x if v", "for v in x if not v"),
    "argument": ("def nested(u)", "def nested(u, v=0)"),
    "keyword in a call": ("sorted(x, key=None)", "sorted(x, reverse=None)"),
}

KEEPS = {
    "comment": ("    return leaf", "    # why\n    return leaf"),
    "comment at the end": ("return u ** 3", "return u ** 3  # cubed"),
    "blank lines": ("    if x > 0.5:", "\n\n\n    if x > 0.5:"),
    "docstring": ("def leaf(x):\n", 'def leaf(x):\n    """Adds one."""\n'),
    "docstring of itself": ("    if x > 0.5:", '    """Does it."""\n    if x > 0.5:'),
    "docstring of a nested function": ("(u):\n", '(u):\n        """Cubes."""\n'),
    "docstring of a class": ("class Base:\n", 'class Base:\n    """Base."""\n'),
    "docstring of a method": ("(self, x):\n", '(self, x):\n        """Steps."""\n'),
    "layout": ("return leaf(x) * 2", "return (\n        leaf(x)\n        * 2\n    )"),
    "unused global": ("SCALE = 2.0", "SCALE = 2.0\nOTHER = 1\ndef unused(): return OTHER"),
    "order of definitions": ("SCALE = 2.0\nTABLE = ", "TABLE = {}\nSCALE = 2.0\nTABLE = "),
    "order of a dict": ('{"a": [1, 2]}', '{**{}, "a": [1, 2]}'),
    "annotation": ("size: int", "size: float"),
}


class TestEdits:
    """What is done counts, how it is written does not."""

    @pytest.mark.parametrize("edit", EDITS)
    def test_an_edit_changes_the_key(self, edit):
        """Every edit of what the function or anything it reaches does changes its key."""
        old, new = EDITS[edit]
        assert old in BASE
        assert key(define(BASE)) == key(define(BASE))
        assert key(define(BASE.replace(old, new))) != key(define(BASE))

    @pytest.mark.parametrize("edit", KEEPS)
    def test_writing_it_otherwise_keeps_the_key(self, edit):
        """Comments, docstrings (new ones too), blank lines, layout and unused names do not count."""
        old, new = KEEPS[edit]
        assert old in BASE
        assert key(define(BASE.replace(old, new))) == key(define(BASE))

    def test_a_nested_class_may_be_documented(self):
        """A docstring in a class inside a function, or changed from one to another, keeps it."""
        source = "def f(x):\n    class A:\n        {}\n        try:\n            y = x\n        except E:\n            y = 2\n    return A\n"
        keys = {key(define(source.format(doc))) for doc in ("", '"""One."""', '"""Two."""')}
        assert len(keys) == 1
        assert key(define(source.format("z = 1"))) not in keys

    def test_docstrings_do_not_shift_what_is_far(self):
        """In a function with more than 256 constants a docstring moves every argument: no matter."""
        body = "\n".join(
            f"    try:\n        x += {i}.5\n    except E{i}:\n        x = '{i}'" for i in range(200)
        )
        bare, documented = (define(f"def f(x):\n{doc}{body}\n    return x")
                            for doc in ("", '    """D."""\n'))  # fmt: skip
        assert key(bare) == key(documented)

    def test_file_and_name_of_the_module_do_not_count(self):
        """The same text in another file, module or notebook cell is the same function."""
        one = key(define(BASE))
        assert key(define(BASE, file="<ipython-input-1-abc>")) == one
        assert key(define(BASE, file="/tmp/ipykernel_1/2.py", __name__="__main__")) == one
        assert key(define("\n" * 50 + BASE, __name__="other")) == one

    def test_two_lambdas_on_one_line(self):
        """Lambdas differ if what they do differs, wherever they stand."""
        a, b, c = define("f = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)")
        assert key(a) == key(c) != key(b)

    def test_functions_without_names_around_them(self):
        """Code from exec with empty globals, and classes made there, are known by content."""
        found = []
        for number in (1, 2):
            names = {}
            exec(f"def f(x): return x + {number}\nclass A:\n    n = {number}", names)
            found += [key(names["f"]), key(names["A"]), key(names["A"]())]
        assert len(set(found)) == 6

    def test_all_kinds_of_functions(self):
        """Generators, coroutines and asynchronous generators are functions too."""
        sources = ["def f(x):\n    yield {}", "async def f(x):\n    return {}",
                   "async def f(x):\n    yield {}", "def f(x):\n    return {}",
                   "def f(x):\n    return [i async for i in x] and {}" if False else
                   "async def f(x):\n    async with x as y:\n        return [i async for i in {}]",
                   "def f(x):\n    with x as y:\n        return {}",
                   "def f(x):\n    match x:\n        case {}:\n            return 1"]  # fmt: skip
        keys = [key(define(source.format(number))) for source in sources for number in (1, 2)]
        assert len(set(keys)) == len(keys)


class TestHeld:
    """Closures, globals, imports."""

    def test_what_is_captured_counts(self):
        """A captured number, array, list or function counts by content."""

        def make(held):
            return lambda x: x + held

        values = [1, 1.0, np.ones(3), np.zeros(3), [1], [2], {"a": 1}, lambda: 1, lambda: 2]
        keys = [key(make(value)) for value in values]
        assert len(set(keys)) == len(values)
        assert keys == [key(make(value)) for value in values]

    def test_content_counts_at_the_moment_of_the_call(self):
        """Arrays, dicts and lists that a function reads may change in place; so does its key."""
        y, table = np.zeros(5), {"a": [1]}
        f = define("def f(x):\n    return x + y + table['a'][0]", y=y, table=table)
        keys = [key(f)]
        y[3] = 1
        keys.append(key(f))
        table["a"].append(2)
        keys.append(key(f))
        f.__globals__["y"] = 5
        keys.append(key(f))
        del f.__globals__["y"]
        keys.append(key(f))
        assert len(set(keys)) == 5

    def test_recursion_ends(self):
        """Self-reference, mutual recursion, a loop of 100 functions and a cached one terminate."""
        source = "\n".join(
            f"def f{i}(n): return f{(i + 1) % 100}(n) + f{i * 7 % 100}(n) + K" for i in range(100)
        )
        source += (
            "\nimport functools\n@functools.cache\ndef fib(n): return fib(n - 1) + f0(n)\nf = fib"
        )
        assert key(define(source, K=1)) == key(define(source, K=1)) != key(define(source, K=2))

        def inner(n):
            return inner(n - 1)

        assert key(inner) == key(inner)

    def test_where_recursion_is_entered_counts(self):
        """Two functions that call each other are still two functions."""
        source = "def a(n): return b(n)\ndef b(n): return a(n) + 0\n"
        assert key(define(source, "a")) != key(define(source, "b"))

    def test_a_name_that_is_not_defined_yet(self):
        """An undefined global or an empty cell is no error, and its definition counts."""
        f = define("def f(x):\n    return later(x)")
        before = key(f)
        f.__globals__["later"] = abs
        assert key(f) != before

        def outer():
            def g():
                return late

            first = key(g)
            late = 1
            assert key(g) != first

        outer()

    def test_function_attributes_count(self):
        """What is written on a function may be read by it."""
        f, g = define("def f(x): return f.rate"), define("def f(x): return f.rate")
        f.rate = 1
        assert key(f) != key(g)
        g.rate = 1
        assert key(f) == key(g)

    @pytest.mark.parametrize(
        "call", ["eval('1')", "exec('1')", "globals()['a']", "__import__('a')"]
    )
    def test_what_only_running_tells_is_refused(self, call):
        """Code that reads names from text has no identity, and says so."""
        name = call.partition("(")[0]
        sources = [
            f"def f(x):\n    return {call}",
            f"f = lambda x, e={name}: e('1')",
            f"def make(e):\n    return lambda x: e[0]('1')\nf = make([{name}])",
        ]
        for source in sources:
            with pytest.raises(FingerprintError, match="only running it"):
                key(define(source))
        assert key(define("def f(x):\n    return eval(x)", eval=abs))

    def test_builtins(self):
        """A namespace that exec has filled is known by its content; who reads builtins is refused."""
        spaces = []
        for number in (1, 1, 2):
            space = {}
            exec(f"def f(x): return abs(x) + {number}", space)
            spaces.append(key(space))
        assert spaces[0] == spaces[1] != spaces[2]
        f = define("def f(x): return __builtins__['eval'](x)")
        with pytest.raises(FingerprintError, match="only running it"):
            key(f)

    @pytest.mark.parametrize(
        ("module", "name"),
        [("sys", "modules"), ("sys", "_getframe"), ("importlib", "import_module"),
         ("builtins", "eval"), ("inspect", "currentframe")],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "source",
        [
            "import {0}\ndef f(x): return {0}.{1}",
            "import {0} as m\ndef f(x): return [m.{1} for _ in x]",
            "from {0} import {1}\ndef f(x): return {1}",
            "def f(x):\n    import {0}\n    return {0}.{1}",
            "def f(x):\n    import {0} as m\n    return m.{1}",
            "def f(x):\n    from {0} import {1} as n\n    return n",
            "import {0}\nf = lambda x, m={0}: m.{1}",
            "import {0}\nf = lambda x, *, m={0}: m.{1}",
            "import {0}\ndef make(m):\n    return lambda x: m.{1}\nf = make({0})",
        ],
    )
    def test_ways_to_what_only_running_tells(self, module, name, source):
        """What finds things by text is refused whichever way the code got there."""
        if (module, source.find("from")) == ("sys", 0) and name == "modules":
            return  # a dict like any other, which holds what cannot be identified
        with pytest.raises(FingerprintError, match="only running it"):
            key(define(source.format(module, name)))
        assert key(define(source.format("math", "pi")))

    def test_names_in_the_text_of_a_query(self):
        """What a frame's query names after an @ is a global that is read, unless it is local."""
        source = "def f(frame):\n    inside = 1\n    return frame.query('a >= @cut + @inside')"
        keys = [key(define(source, cut=cut, inside=i)) for cut, i in ((1, 1), (2, 1), (2, 2))]
        assert keys[0] != keys[1] == keys[2]
        assert key(define(source.replace("query", "ask"), cut=1)) == key(
            define(source.replace("query", "ask"), cut=2)
        )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package on the path, as text by file name; call it to edit and reload."""

    def write(files=None, **edits):
        for name, text in {
            **(files or {}),
            **{k.replace("__", "/") + ".py": v for k, v in edits.items()},
        }.items():
            place = tmp_path / "mylib_ws" / name
            place.parent.mkdir(exist_ok=True, parents=True)
            place.write_text(textwrap.dedent(text))
        for name in [n for n in sys.modules if n.partition(".")[0] == "mylib_ws"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        return importlib.import_module("mylib_ws")

    kept = sys.dont_write_bytecode
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.dont_write_bytecode = kept
    for name in [n for n in sys.modules if n.partition(".")[0] == "mylib_ws"]:
        del sys.modules[name]


FILES = {
    "__init__.py": "from . import sub\n",
    "sub.py": "from .deep import leaf\nRATE = 1\ndef helper(x): return leaf(x) * RATE\ndef other(x): return 0\n",
    "deep.py": "def leaf(x): return x + 1\n",
    "extra.py": "def more(x): return x + 2\n",
}

WAYS = {
    "attribute chain": "def f(x): return mylib_ws.sub.helper(x)",
    "import inside": "def f(x):\n    import mylib_ws.sub\n    return mylib_ws.sub.helper(x)",
    "import as inside": "def f(x):\n    import mylib_ws.sub as s\n    return s.helper(x)",
    "from inside": "def f(x):\n    from mylib_ws.sub import helper\n    return helper(x)",
    "module from inside": "def f(x):\n    from mylib_ws import sub\n    return sub.helper(x)",
    "relative": "def f(x):\n    from .sub import helper\n    return helper(x)",
    "as a value": "def f(x):\n    m = mylib_ws\n    return m.sub.helper(x)",
    "nested": "def f(x):\n    return [mylib_ws.sub.helper(v) for v in x]",
    "class body": "def f(x):\n    class A:\n        y = mylib_ws.sub.helper(1)\n    return A",
}


class TestModules:
    """The user's own modules are followed; installed ones are named."""

    @pytest.mark.parametrize("way", WAYS)
    def test_a_helper_is_found_whichever_way_it_is_reached(self, package, way):
        """Editing what a user's module computes, two modules away, changes the key."""
        mylib = package(FILES)

        def now(mylib):
            return key(define(WAYS[way], mylib_ws=mylib, __package__="mylib_ws"))

        before = now(mylib)
        assert now(package()) == before
        assert now(package(deep="def leaf(x):\n    # note\n    return x + 1")) == before
        assert now(package(deep="def leaf(x): return x + 2")) != before
        package(FILES)
        assert now(package(sub=FILES["sub.py"].replace("RATE = 1", "RATE = 2"))) != before

    @pytest.mark.parametrize("way", ["attribute chain", "from inside", "nested"])
    def test_what_is_not_used_does_not_count(self, package, way):
        """Another function of the same module does not count where one is named."""
        before = key(define(WAYS[way], mylib_ws=package(FILES)))
        edited = package(sub=FILES["sub.py"].replace("return 0", "return 1"))
        assert key(define(WAYS[way], mylib_ws=edited)) == before

    def test_a_module_not_imported_yet(self, package):
        """What the function itself will import counts as if it were imported already."""
        package(FILES)
        f = define("def f(x):\n    from mylib_ws import extra\n    return extra.more(x)")
        before = key(f)
        assert key(f) == before
        package(extra="def more(x): return x + 3")
        assert key(f) != before

    def test_a_library_not_imported_yet(self):
        """What the function itself imports of a library counts alike before and after."""
        for line in ("import wave", "from wave import open", "import wave as w"):
            sys.modules.pop("wave", None)
            f = define(f"def f(x):\n    {line}")
            before = key(f)
            assert "wave" not in sys.modules
            importlib.import_module("wave")
            assert key(f) == before

    def test_a_module_under_the_name_of_another(self, tmp_path):
        """A user's file, loaded by its path under a library's name, counts by content."""
        import importlib.util

        keys = []
        for number in (1, 1, 2):
            file = tmp_path / f"{len(keys)}" / "wave.py"
            file.parent.mkdir()
            file.write_text(f"K = {number}\ndef f(x): return x + K\nclass C:\n    k = K\n")
            spec = importlib.util.spec_from_file_location("wave", file)
            wave = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(wave)
            users = [
                define("def f(x): return wave.K", wave=wave),
                define("def f(x): return wave.f(x)", wave=wave),
                define("def f(x): return [wave][0].K", wave=wave),
            ]
            keys.append([key(one) for one in (wave.f, wave.C, wave.C(), *users)])
        assert keys[0] == keys[1]
        assert not set(keys[0]) & set(keys[2])

    def test_a_plain_dotted_import_binds_the_whole_package(self, package):
        """``import a.b`` lets the function read all of a, so all of a counts."""
        source = "def f(x):\n    import mylib_ws.sub\n    return mylib_ws.top(x)"
        before = [package(FILES), key(define(source))][1]
        package({"__init__.py": "from . import sub\ndef top(x): return 1\n"})
        assert key(define(source)) != before

    def test_modules_with_a_mind_of_their_own(self, package):
        """A module-level __getattr__ is asked; one that raises, or a failing import, is absent."""
        package({**FILES, "__init__.py": "def __getattr__(name):\n    if name == 'rate': return 5\n    raise OSError(name)\n", "bad.py": "1 / 0"})  # fmt: skip
        import mylib_ws

        five = define("def f(x): return mylib_ws.rate", mylib_ws=mylib_ws)
        assert key(five) == key(five)
        assert key(define("def f(x): return mylib_ws.nothing", mylib_ws=mylib_ws))
        assert key(define("def f(x):\n    import mylib_ws.bad\n    from nowhere_ws import y"))

    def test_a_lock_in_a_module_matters_only_to_who_uses_it(self, package):
        """A whole module handed on is refused with the path to what is wrong in it."""
        mylib = package(
            {
                **FILES,
                "sub.py": "import threading\nguard = threading.Lock()\ndef helper(x): return 1\n",
            }
        )
        assert key(define("def f(x): return mylib_ws.sub.helper(x)", mylib_ws=mylib))
        with pytest.raises(FingerprintError) as caught:
            key(define("def f(x):\n    m = mylib_ws\n    return m", mylib_ws=mylib))
        assert caught.value.path == ".__globals__['mylib_ws'].sub.guard"


def forget():
    code_room._package_of_module.clear()
    code_room._version.cache_clear()


class TestInstalled:
    """What a package offers is known by name and version."""

    def test_names_and_versions(self, monkeypatch):
        """An installed function changes its key with its package's version, not otherwise."""
        import lmfit

        before = key(lmfit.minimize)
        assert before != key(lmfit.report_fit)
        forget()
        assert key(lmfit.minimize) == before
        monkeypatch.setattr(importlib.metadata.Distribution, "version", property(lambda s: "99"))
        forget()
        assert key(lmfit.minimize) != before
        assert key(np.linalg.norm) == key(np.linalg.norm)
        monkeypatch.undo()
        forget()

    def test_numpy_scipy_and_python_stand_in_the_producer(self):
        """Their versions are part of the environment of an entry, not of the key."""
        assert code_room.installed_package("numpy.linalg") == "numpy"
        assert code_room.installed_package("scipy.optimize") == "scipy"
        for name in ("math", "json.decoder", "sys", "builtins", "os", "zipimport"):
            assert code_room.installed_package(name) == "python"

    def test_whose_a_module_is(self, package):
        """Names of imports and distributions may differ; scripts and odd modules are the user's."""
        version = importlib.metadata.version("scikit-learn")
        assert code_room.installed_package("sklearn.svm") == f"sklearn {version}"
        package(FILES)
        for name in (None, "__main__", "mylib_ws.sub", "no_such_module", 5, "x" * 50):
            assert code_room.installed_package(name) is None

    def test_namespace_packages_are_all_their_distributions(self, tmp_path, monkeypatch):
        """A namespace package has the versions of everything that is installed into it."""
        site = tmp_path / "lib" / "site-packages"
        for name in ("alpha", "beta"):
            (site / "space_ws" / name).mkdir(parents=True)
            (site / "space_ws" / name / "__init__.py").write_text("def f(): return 1")
            info = site / f"space_{name}-1.{len(name)}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: space-{name}\nVersion: 1.{len(name)}\n")
            (info / "RECORD").write_text(f"space_ws/{name}/__init__.py,sha256=abc,1\n")
        monkeypatch.syspath_prepend(site)
        code_room._distributions.cache_clear()
        assert code_room.installed_package("space_ws.alpha") == "space_ws 1.5 1.4"
        assert code_room.installed_package("space_ws") == "space_ws 1.5 1.4"
        (site / "space_alpha-1.5.dist-info" / "direct_url.json").write_text("{}")
        forget()
        built = code_room.installed_package("space_ws.alpha")
        (site / "space_alpha-1.5.dist-info" / "RECORD").write_text("space_ws/a.py,sha256=xyz,1\n")
        forget()
        assert built != code_room.installed_package("space_ws.alpha") != "space_ws 1.5 1.4"
        code_room._distributions.cache_clear()
        forget()

    def test_packages_in_a_folder_of_any_name(self, tmp_path):
        """What ``pip install --target`` put somewhere is installed; a file beside it is not."""
        libs = tmp_path / "libs"
        libs.mkdir()
        for path in Path(scipy.__file__).parents[1].iterdir():
            (libs / path.name).symlink_to(path)
        for folder in (libs, tmp_path):
            (folder / "mine_ws.py").write_text("")
        code = """if True:
            import numpy as np, mine_ws
            from scipy.special import gammaln
            from warmstart.code import installed_package as package
            from warmstart.fingerprint import code_fingerprint
            print(code_fingerprint(lambda x: np.sum(gammaln(x))), np.__file__, sep="\\n")
            print(*map(package, ("numpy.linalg", "scipy.special", "lmfit.models", "mine_ws")))
        """
        ours = Path(code_room.__file__).parents[1]
        version = importlib.metadata.version("lmfit")
        identities = set()
        for flag, path in (("-B", f"{tmp_path}:{ours}"), ("-S", f"{libs}:{ours}")):
            command = [sys.executable, flag, "-c", code]
            printed = subprocess.check_output(command, env={"PYTHONPATH": path}, text=True)
            identity, place, packages = printed.splitlines()
            assert place.startswith(str(libs)) == (flag == "-S")
            assert packages == f"numpy scipy lmfit {version} None"
            identities.add(identity)
        assert len(identities) == 1

    def test_objects_made_by_packages_count_by_content(self):
        """What a package made for the user is known by what it holds."""
        things = [np.poly1d([1, 2]), np.poly1d([1, 3]), functools.partial(abs, 1),
                  scipy.stats.norm(0, 1), scipy.stats.norm(0, 2),
                  scipy.stats.norm, scipy.interpolate.CubicSpline([0, 1, 2], [0, 1, 4]),
                  scipy.interpolate.CubicSpline([0, 1, 2], [0, 1, 5])]  # fmt: skip
        assert len({key(thing) for thing in things}) == len(things)
        with pytest.raises(FingerprintError):
            key(functools.cmp_to_key(abs))

    def test_closures_made_by_packages_stand_on_their_version(self):
        """Of a function made inside a package its code and what it captured count, not more."""
        import lmfit

        package = {"__name__": "lmfit.models", "__file__": lmfit.__file__, "LOCK": threading.Lock()}
        source = "def make(n):\n    return lambda x: (LOCK, n)\nf = make({})"
        keys = [key(define(source.format(n), **package)) for n in (1, 1, 2)]
        assert keys[0] == keys[1] != keys[2]
        with pytest.raises(FingerprintError, match="LOCK"):
            key(define(source.format(1), LOCK=threading.Lock()))

    def test_a_wrapper_that_looks_like_a_library_s(self):
        """functools.wraps copies the names of what is wrapped, but the globals stay the user's."""
        source = "import functools\n@functools.wraps(wrapped)\ndef f(x): return wrapped(x) * SCALE"
        import lmfit

        for wrapped in (np.linalg.norm, scipy.optimize.rosen, functools.reduce, lmfit.minimize):
            one, two = (key(define(source, wrapped=wrapped, SCALE=s)) for s in (1, 2))
            assert one == key(define(source, wrapped=wrapped, SCALE=1)) != two

    def test_compiled_functions_have_names(self):
        """Builtins, methods of C types, ufuncs, Cython functions and types are known by name."""
        import pandas as pd

        things = [len, abs, str.upper, "a".upper, "b".upper, [].append, np.exp, np.add,
                  scipy.special.erf, np.sum, np.add.reduce, object.__init__, dict.fromkeys,
                  np.random.normal, pd.Timestamp, pd.to_datetime, types.FunctionType, type(None),
                  scipy.special.expit, np.linalg.norm]  # fmt: skip
        keys = [key(thing) for thing in things]
        assert len(set(keys)) == len(things)

    def test_classes_that_claim_a_module(self):
        """A class made at run time in the name of a library is known by content, not by claim."""
        from dataclasses import make_dataclass

        a, b = make_dataclass("A", ["x"]), make_dataclass("A", ["x", "y"])
        assert key(a) != key(b)
        assert key(types.new_class("A")) != key(types.new_class("A", (int,)))
        fake = type("Bounds", (), {"__module__": "scipy.optimize", "n": 1})
        assert key(fake) != key(type("Bounds", (), {"__module__": "scipy.optimize", "n": 2}))

    def test_wrappers(self):
        """lru_cache, wraps, vectorize and joblib's Memory count by what they wrap."""
        import joblib

        one, two = (lambda x: x + 1), (lambda x: x + 2)
        for wrap in (functools.lru_cache, functools.cache, np.vectorize, functools.wraps(abs),
                     lambda f: joblib.Memory(None).cache(f), functools.partial,
                     lambda f: functools.partialmethod(f, 1), staticmethod):  # fmt: skip
            assert key(wrap(one)) == key(wrap(one)) != key(wrap(two))
        assert key(np.vectorize(one)) != key(np.vectorize(one, excluded={0}))
        used = np.vectorize(one, otypes=[float])
        before = key(used)
        used([1.0])
        assert key(used) == before


def thing(source, **names):
    """Return class A; in ``__main__``, since dataclasses look up the module that is claimed."""
    imports = "import abc, enum, functools, dataclasses, typing, collections\n"
    return define(imports + textwrap.dedent(source), "A", __name__="__main__", **names)


CLASSES = {
    "method": "class A:\n    def m(self): return {}",
    "attribute": "class A:\n    n = {}",
    "match": "class A:\n    __match_args__ = ('a', 'b{}')",
    "property setter": "class A:\n    @property\n    def p(self): return 0\n    @p.setter\n    def p(self, v): self.v = {}",
    "metaclass": "class M(type):\n    def m(cls): return {}\nclass A(metaclass=M): pass",
    "abstract": "class A(abc.ABC):\n    @abc.abstractmethod\n    def m(self): return {}",
    "generic": "T = typing.TypeVar('T')\nclass A(typing.Generic[T]):\n    def m(self): return {}",
    "base": "class B:\n    def m(self): return {}\nclass A(B): pass",
    "slots": "class A:\n    __slots__ = ('a', 'b')\n    def m(self): return {}",
    "dataclass default": "@dataclasses.dataclass\nclass A:\n    x: int = {}",
    "dataclass factory": "@dataclasses.dataclass(frozen=True, slots=True)\nclass A:\n    x: list = dataclasses.field(default_factory=lambda: [{}])",
    "dataclass metadata": "@dataclasses.dataclass\nclass A:\n    x: int = dataclasses.field(metadata={{'a': {}}})",
    "enum value": "class A(enum.Enum):\n    X = {}",
    "enum method": "class A(enum.IntEnum):\n    X = 1\n    def m(self): return {}",
    "enum property": "class A(enum.Flag):\n    X = 1\n    @property\n    def m(self): return {}",
    "enum static": "class A(enum.Enum):\n    X = 1\n    @staticmethod\n    def m(): return {}",
    "enum missing": "class A(enum.Enum):\n    X = 1\n    @classmethod\n    def _missing_(cls, v): return {}",
    "named tuple": "class A(typing.NamedTuple):\n    x: int = {}",
    "nested class": "class A:\n    class B:\n        n = {}",
    "descriptor": "class D:\n    n = {}\n    def __get__(self, i, o): return self.n\nclass A:\n    d = D()",
    "in a function": "def make():\n    class A:\n        def m(self): return super().m() + {}\n    return A\nA = make()",
    "partial method": "class A:\n    def m(self, n): return n\n    p = functools.partialmethod(m, {})",
    "protocol": "class A(typing.Protocol):\n    def m(self): return {}",
}


class TestClasses:
    """Classes by content, instances by class and attributes."""

    @pytest.mark.parametrize("kind", CLASSES)
    def test_what_a_class_does_counts(self, kind):
        """Every member of a class and of its bases counts; two definitions alike agree."""
        one, two = (CLASSES[kind].format(n) for n in (1, 2))
        assert key(thing(one)) == key(thing(one)) != key(thing(two))
        assert key(thing(one)) == key(thing(one + "\n# comment"))

    @pytest.mark.parametrize("kind", ["method", "attribute", "metaclass", "generic", "base", "slots",
                                      "nested class", "in a function"])  # fmt: skip
    def test_an_instance_counts_with_its_class(self, kind):
        """An instance's key changes with a method of its class, and stays when it is used."""
        one, two = (thing(CLASSES[kind].format(n)) for n in (1, 2))
        assert key(one()) == key(one()) == key(thing(CLASSES[kind].format(1))()) != key(two())
        before = key(one)
        key(one())
        assert key(one) == before

    def test_bound_methods_and_callable_objects(self):
        """The method, the class and the instance's attributes count."""
        source = "class A:\n    def __init__(self, a): self.a = a\n    def __call__(self, x): return x * {0}\n    def m(self, x): return self.a\n    def n(self, x): return self.a"
        a = thing(source.format(1))
        keys = [key(a(1)), key(a(2)), key(a(1).m), key(a(2).m), key(a(1).n), key(a), key(a.m),
                key(thing(source.format(2))(1)), key(thing(source.format(2))(1).m)]  # fmt: skip
        assert len(set(keys)) == len(keys)
        assert key(a(1).m) == key(a(1).m)

    def test_what_pickling_notes_on_a_class_does_not_count(self):
        """Pickling notes __slotnames__ on a class, abc its caches, update_wrapper a docstring."""
        a = thing("class A(abc.ABC):\n    __slots__ = ('a', '__dict__')\n    def m(self): return 1")
        before = key(a)
        a().__reduce_ex__(2)
        isinstance(3, a)
        assert key(a) == before

        class Wrapper:
            def __init__(self, function):
                self.function = function
                functools.update_wrapper(self, function)

        assert key(Wrapper(define("def f(): return 1"))) == key(
            Wrapper(define("def f():\n    'One.'\n    return 1", __name__="else"))
        )

    def test_enums_defined_alike_agree(self):
        """An enum member counts by class, name and value."""
        source = "class A(enum.Enum):\n    X = 1\n    Y = 2"
        assert key(thing(source).X) == key(thing(source).X) != key(thing(source).Y)
        assert key(thing(source).X) != key(thing(source.replace("Y = 2", "Y = 3")).X)

    def test_unique_among_abstract_things(self):
        """ABCs and enums of the library are known by name."""
        assert (
            len({key(c) for c in (abc.ABC, abc.ABCMeta, enum.Enum, enum.EnumMeta, enum.Flag)}) == 5
        )


class TestUnknowable:
    """What has no identity is refused with its path."""

    def test_the_paths(self):
        """The path leads through closures, globals, methods, defaults to the culprit."""
        lock = threading.Lock()
        connection = sqlite3.connect(":memory:")

        def closed(x):
            return db

        db = connection

        class Fit:
            def __init__(self, connection):
                self.state = {"db": connection}

            def residuals(self, x):
                return x

        cases = {
            "fun.__closure__['db']": closed,
            "fun.__globals__['DB']": define("def f(x): return DB", DB=connection),
            "fun.__globals__['g'].__globals__['DB']": define("def g(): return DB\ndef f(x): return g()", DB=lock),
            "fun.__self__.state['db']": Fit(connection).residuals,
            "fun.__defaults__[0]": define("def f(x, a=DB): return a", DB=lock),
            "fun.keywords['db']": functools.partial(abs, db=connection),
            "fun.func.__closure__['db']": functools.partial(closed, 1),
        }  # fmt: skip
        for path, function in cases.items():
            with pytest.raises(FingerprintError) as caught:
                FitSpec(model={"fun": function})
            assert caught.value.path == path
            assert str(caught.value).startswith(f"{path}: a ")
            assert 'model="' in str(caught.value)
        connection.close()

    def test_open_connections(self):
        """Sockets, connections, cursors and open files cannot be identified."""
        connection = sqlite3.connect(":memory:")
        with socket.socket() as one:
            for value in (one, connection, connection.cursor(), sys.stdout, open):
                if value is open:
                    assert key(value)
                    continue
                with pytest.raises(FingerprintError):
                    key(value)
        connection.close()

    def test_a_user_s_ufunc(self):
        """np.frompyfunc hides the function it was made of."""
        with pytest.raises(FingerprintError, match="compiled code"):
            key(np.frompyfunc(lambda x: x, 1, 1))


class TestModelAndData:
    """Arrays that a model holds are data, its scalars are model."""

    @staticmethod
    def closure(y, rate=1.0):
        return lambda x: x * rate - y

    def makers(self):
        class Fit:
            def __init__(self, y, rate=1.0):
                self.y, self.rate = y, rate

            def __call__(self, x):
                return x * self.rate - self.y

        yield self.closure
        yield Fit
        yield lambda y, rate=1.0: Fit(y, rate).__call__
        yield lambda y, rate=1.0: define("def f(x): return x * rate - y", y=y, rate=rate)
        yield lambda y, rate=1.0: functools.partial(self.closure(0.0, rate), y=y)
        yield lambda y, rate=1.0: define("def f(x, y=y): return x * rate - y", y=y, rate=rate)
        yield lambda y, rate=1.0: self.closure([{"deep": y}], rate)

    def test_a_held_array_is_data(self):
        """Two data sets in closure, instance, global, partial or default share the model."""
        for make in self.makers():
            one, two, other = (FitSpec(model={"fun": make(*held)})
                               for held in ((np.ones(5),), (np.zeros(5),), (np.ones(5), 2.0)))  # fmt: skip
            assert one.part("model") == two.part("model") != other.part("model")
            assert one.part("data") != two.part("data")
            assert one.part("data") == other.part("data")
            assert one.level_key(Level.FAMILY) == two.level_key(Level.FAMILY)
            assert one.level_key(Level.SIBLING_DATA) == two.level_key(Level.SIBLING_DATA)
            assert one.key != two.key
            assert one.key == FitSpec(model={"fun": make(np.ones(5))}).key
            [difference] = one.explain(two)
            assert difference.part == "data"
            assert difference.name.startswith("fun.")
            assert difference.ours == difference.theirs == "float64[5]"

    def test_explain_names_where_the_array_is_held(self):
        """The name of a captured array is its path from the callable."""
        one, two = (FitSpec(model={"fun": self.closure(np.full(5, v))}) for v in (1.0, 2.0))
        assert [str(d) for d in one.explain(two)] == [
            "data: fun.__closure__['y'] differs (float64[5])"
        ]

    def test_many_arrays_in_one_place_all_count(self):
        """A list of 3,000 arrays in a closure: each counts, its place too, and it takes no time."""
        arrays = [np.full(2, float(i)) for i in range(3000)]
        one = FitSpec(model=self.closure(arrays))
        two = FitSpec(model=self.closure(arrays[::-1]))
        assert one.part("model") == two.part("model")
        assert one.key != two.key
        same, other = np.ones(300), np.zeros(300)
        lists = [[same, same, other], [same, other, other], [same, other, same]]
        assert len({FitSpec(model=self.closure(held)).key for held in lists}) == 3

    def test_sharing_of_held_containers_does_not_count(self):
        """Long lists that hold arrays may be one object or two, and cannot be confused."""
        a, b = ([np.full(3, v)] * 2000 for v in (1.0, 2.0))
        keys = [FitSpec(model=self.closure(held)).key for held in
                ([a, a, b], [a, b, b], [a, list(a), b], [a, b])]  # fmt: skip
        assert keys[0] == keys[2]
        assert len(set(keys)) == 3

    def test_named_data_and_held_data_are_kept_apart(self):
        """A data argument named like a captured path takes nobody's place."""
        name = "fun.__closure__['y']"
        keys = [FitSpec(model={"fun": self.closure(np.ones(3))}, data=data).key
                for data in ({}, {name: np.ones(3)}, {name: np.zeros(3)})]  # fmt: skip
        assert len(set(keys)) == 3

    def test_frames_and_sparse_matrices_are_data_too(self):
        """pandas, polars and scipy.sparse objects in a closure count as data."""
        import pandas as pd
        import polars as pl
        import scipy.sparse as sp

        for make in (lambda v: pd.DataFrame({"a": [v]}), lambda v: pl.DataFrame({"a": [v]}),
                     lambda v: sp.csr_array([[v]]), lambda v: pd.Series([v])):  # fmt: skip
            one, two = (FitSpec(model=self.closure(make(v))) for v in (1.0, 2.0))
            assert one.part("model") == two.part("model")
            assert one.part("data") != two.part("data")

    @pytest.mark.parametrize("method", ["BFGS", "trust-constr", "L-BFGS-B", "SLSQP", "Nelder-Mead"])
    @pytest.mark.filterwarnings("ignore")
    def test_a_fit_does_not_change_its_key(self, method):
        """Before and after a real fit, with strategies, bounds and constraints, the key is one."""
        y = np.linspace(0, 1, 20)

        def fun(x):
            return float(np.sum((x[0] + x[1] * y - y**2) ** 2))

        bounds = None if method == "BFGS" else scipy.optimize.Bounds([-5, -5], [5, 5])
        constraints = ()
        hess = None
        if method == "trust-constr":
            hess = scipy.optimize.BFGS()
            constraints = (
                scipy.optimize.NonlinearConstraint(
                    lambda x: x @ x, 0, 9, hess=scipy.optimize.SR1()
                ),
                scipy.optimize.LinearConstraint(np.eye(2), -9, 9),
                scipy.optimize.NonlinearConstraint(lambda x: x[0], 0, 9),
            )

        def now():
            return FitSpec(
                model={"fun": fun, "hess": hess, "constraints": constraints},
                settings={"x0": np.ones(2), "bounds": bounds, "method": method},
            )

        before = now()
        scipy.optimize.minimize(fun, np.ones(2), method=method, bounds=bounds, hess=hess,
                                constraints=constraints)  # fmt: skip
        assert now().explain(before) == []
        assert now().key == before.key

    def test_constraints_count_by_content(self):
        """Each part of a bound, constraint or strategy counts."""
        so = scipy.optimize
        things = [so.Bounds([0], [1]), so.Bounds([0], [2]), so.Bounds([0], [1], keep_feasible=True),
                  so.LinearConstraint(np.eye(2), 0, 1), so.LinearConstraint(2 * np.eye(2), 0, 1),
                  so.NonlinearConstraint(abs, 0, 1), so.NonlinearConstraint(len, 0, 1),
                  so.NonlinearConstraint(abs, 0, 1, jac="3-point"), so.BFGS(), so.SR1(),
                  so.BFGS(min_curvature=1.0), so.BFGS("damp_update"), so.SR1(init_scale=2.0)]  # fmt: skip
        keys = [key(one) for one in things]
        assert len(set(keys)) == len(things)

        class Mine(so.BFGS):
            pass

        mine = Mine()
        before = key(mine)
        mine.initialize(2, "hess")
        assert key(mine) == before != key(so.BFGS())


LIBRARIES = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, scipy.optimize
from warmstart.fingerprint import FitSpec
seen = []
def watch(module, name):
    real = getattr(module, name)
    def watched(fun, x0, *args, **kwargs):
        held = {k: kwargs[k] for k in ("jac", "hess") if callable(kwargs.get(k))}
        def now():
            return FitSpec(model={"fun": fun, **held}, data={"args": kwargs.get("args", args)},
                           settings={"x0": np.asarray(x0)})
        before = now()
        seen.append((name, str(before.key)))
        return real(fun, x0, *args, **kwargs)
    setattr(module, name, watched)
for name in ("minimize", "least_squares", "leastsq", "fmin_bfgs", "fmin_l_bfgs_b", "fmin"):
    watch(scipy.optimize, name)
rng = np.random.default_rng(1)
x = rng.normal(size=(60, 2)); y = (x[:, 0] + rng.normal(size=60) > 0).astype(int)
library = sys.argv[1]
if library == "lmfit":
    import lmfit, lmfit.minimizer
    for name in ("least_squares", "leastsq"):
        setattr(lmfit.minimizer, name, getattr(scipy.optimize, name))
    lmfit.minimizer.scipy_minimize = scipy.optimize.minimize
    def residual(p, t, d): return p["a"] * np.exp(-t * p["b"]) - d
    p = lmfit.Parameters(); p.add("a", 1.0, min=0); p.add("b", 0.5); p.add("c", expr="a + b")
    t = np.linspace(0, 1, 20)
    for method in ("leastsq", "least_squares", "lbfgsb"):
        lmfit.minimize(residual, p, args=(t, 2 * np.exp(-t)), method=method)
    lmfit.models.GaussianModel().fit(np.exp(-t**2), x=t, amplitude=1, center=0, sigma=1)
elif library == "statsmodels":
    import statsmodels.api as sm
    for method in ("bfgs", "lbfgs", "nm", "minimize"):
        sm.Logit(y, sm.add_constant(x)).fit(method=method, disp=0, maxiter=5)
    sm.Poisson(y, x).fit(method="bfgs", disp=0, maxiter=5)
elif library == "sklearn":
    from sklearn.gaussian_process import GaussianProcessRegressor, kernels
    from sklearn.linear_model import LogisticRegression, HuberRegressor
    GaussianProcessRegressor(kernels.RBF() + kernels.WhiteKernel()).fit(x, x[:, 0])
    LogisticRegression().fit(x, y)
    HuberRegressor().fit(x, x[:, 0])
for line in seen: print(*line)
"""


class TestLibraries:
    """Objectives as real libraries hand them to scipy.optimize."""

    @pytest.mark.parametrize(
        ("library", "least"), [("lmfit", 4), ("statsmodels", 4), ("sklearn", 3)]
    )
    def test_two_processes_find_the_same_keys(self, tmp_path, library, least):
        """The same script twice: every fit can be identified and has one key."""
        script = tmp_path / "fits.py"
        script.write_text(LIBRARIES)
        runs = [
            subprocess.run(
                [sys.executable, str(script), library], text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                                  "PYTHONHASHSEED": seed},
            )
            for seed in ("1", "2")
        ]  # fmt: skip
        assert [run.returncode for run in runs] == [0, 0], runs[0].stdout[-2000:]
        assert runs[0].stdout == runs[1].stdout
        keys = runs[0].stdout.split()[1::2]
        assert len(set(keys)) >= least
