"""Functions by what they do: every edit of the code counts, nothing else does."""

from __future__ import annotations

import functools
import itertools
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from warmstart import Fingerprinter, FingerprintError, FitSpec
from warmstart import code as code_module


def key(value):
    return Fingerprinter().absorb("fun", value).digest()


numbers = itertools.count()


def define(source, name="fun", **names):
    """Return what `source` defines, as a notebook cell or ``exec`` would."""
    namespace = {"__name__": "__main__", "np": np, **names}
    file = f"<ipython-input-{next(numbers)}>"
    exec(compile(textwrap.dedent(source), file, "exec"), namespace)
    return namespace[name]


BASE = """
SCALE = 2.0
UNUSED = 1
TABLE = {"a": [1, 2]}

def inner(x):
    return x - 1.0

def helper(x, power=2):
    return inner(x) ** power

class Model:
    offset = 3.0
    def __init__(self):
        self.rate = 0.5
    def predict(self, x):
        return helper(x) * self.rate + self.offset
    @property
    def half(self):
        return self.rate / 2
    @staticmethod
    def twice(x):
        return 2 * x

MODEL = Model()

def fun(x, weight=1.0, *, shift=0.0):
    total = helper(x) * SCALE + TABLE["a"][0]
    return total + weight * MODEL.predict(x) + shift + Model.twice(MODEL.half)
"""


def edited(old, new):
    assert old in BASE
    return key(define(BASE.replace(old, new)))


class TestEdits:
    """What changes the key of a function and what does not."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("    return x - 1.0", "    # a comment\n    return x - 1.0"),
            ("    return x - 1.0", "    '''A docstring.'''\n    return x - 1.0"),
            ("    return x - 1.0", "\n\n    return x - 1.0\n\n"),
            ("class Model:\n", "class Model:\n    '''A docstring.'''\n"),
            ("def fun(", "\n\n\n# moved down\ndef fun("),
            ("UNUSED = 1", "UNUSED = 2"),
            ("    return x - 1.0", "    return (x\n            - 1.0)"),
        ],
    )
    def test_what_is_not_done_does_not_count(self, old, new):
        """Comments, docstrings, blank lines, position and unused globals keep the key."""
        assert edited(old, new) == key(define(BASE))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("* SCALE +", "* SCALE -"),
            ("SCALE = 2.0", "SCALE = 2.5"),
            ("SCALE = 2.0", "SCALE = 2"),
            ("weight=1.0", "weight=1.5"),
            ("shift=0.0", "shift=1.0"),
            ("power=2", "power=3"),
            ("return x - 1.0", "return x - 1.5"),
            ("return x - 1.0", "return x + 1.0"),
            ("[1, 2]", "[1, 3]"),
            ("self.rate = 0.5", "self.rate = 0.6"),
            ("offset = 3.0", "offset = 4.0"),
            ("* self.rate +", "* self.rate -"),
            ("self.rate / 2", "self.rate / 3"),
            ("return 2 * x", "return 3 * x"),
            ("class Model:", "class Base:\n    extra = 1\n\nclass Model(Base):"),
        ],
    )
    def test_every_edit_counts(self, old, new):
        """Expressions, defaults, constants, helpers of helpers, methods and bases count."""
        assert edited(old, new) != key(define(BASE))

    def test_data_counts_at_the_moment_of_the_call(self):
        """Global and captured arrays, lists and numbers count by what they hold now."""
        y = np.arange(3.0)
        fun = define("def fun(x):\n    return ((x - Y) ** 2).sum() + C", Y=y, C=1.0)
        before = key(fun)
        y[0] = 7.0
        changed = key(fun)
        assert changed != before
        fun.__globals__["C"] = 2.0
        assert key(fun) not in {before, changed}
        y[0], fun.__globals__["C"] = 0.0, 1.0
        assert key(fun) == before

    def test_closures_count(self):
        """Captured values count, also those of nested functions and of an empty cell."""

        def make(a, b):
            def outer(x):
                def nested(z):
                    return z * b

                return nested(x) + a

            return outer

        assert key(make(1, 2)) == key(make(1, 2))
        assert len({key(make(1, 2)), key(make(1, 3)), key(make(2, 2))}) == 3

        def late():
            return unbound  # noqa: F821

        assert key(late) == key(late)

    def test_lambdas_on_one_line_differ_if_they_differ(self):
        """Code counts, not the place in the file."""
        one, two, three = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)
        assert key(one) != key(two)
        assert key(one) == key(three)

    def test_recursion_ends(self):
        """Self-reference and mutual recursion terminate, and edits in the circle count."""
        source = """
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
        """
        assert key(define(source, "even")) == key(define(source, "even"))
        assert key(define(source, "even")) != key(define(source.replace("!= 0", "> 0"), "even"))
        assert key(define("def fun(n):\n    return n and fun(n - 1)")) != key(
            define("def fun(n):\n    return n and fun(n - 2)")
        )

    def test_shared_helpers_cost_once(self):
        """Forty layers, each calling the next twice, are read forty times and not 2**40."""
        layers = "def f0(x):\n    return x\n" + "".join(
            f"def f{n}(x):\n    return f{n - 1}(x) + f{n - 1}(-x)\n" for n in range(1, 41)
        )
        assert key(define(layers, "f40")) != key(
            define(layers.replace("return x", "return 2 * x"), "f40")
        )

    def test_attributes_of_functions_count(self):
        """What hangs on a function counts; its name does not."""
        one, two = define("def fun(x):\n    return x"), define("def gun(x):\n    return x", "gun")
        assert key(one) == key(two)
        two.order = 3
        assert key(one) != key(two)

    def test_decorators(self):
        """Wrapped functions count by wrapper and wrapped, also behind functools.cache."""
        source = """
        import functools
        def log(f):
            @functools.wraps(f)
            def wrapper(*args):
                return f(*args)
            return wrapper
        @log
        def fun(x):
            return x + 1
        @functools.lru_cache
        def cached(x):
            return x + 1
        """
        for name in ("fun", "cached"):
            assert key(define(source, name)) == key(define(source, name))
            assert key(define(source, name)) != key(define(source.replace("+ 1", "+ 2"), name))
        assert key(define(source, "fun")) != key(define(source, "cached"))

    def test_bound_things(self):
        """Methods and partials count by function and instance."""
        model = define(BASE, "Model")
        one, two = model(), model()
        assert key(one.predict) == key(two.predict)
        two.rate = 9.0
        assert key(one.predict) != key(two.predict)
        assert key(functools.partial(one.predict, 1)) != key(functools.partial(one.predict, 2))
        assert key([].append) == key([].append)
        assert key([].append) != key([1].append)

    def test_generators_and_async(self):
        """Other kinds of functions have keys too."""
        for source in ("def fun(x):\n    yield x", "async def fun(x):\n    return x"):
            assert key(define(source)) == key(define(source))
            assert key(define(source)) != key(
                define(source.replace("x\n", "y\n").replace(" x", " 2"))
            )


class TestModules:
    """The user's own modules are code, installed ones are names."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A package of the user's: mine, with mine.parts.deep."""
        monkeypatch.syspath_prepend(tmp_path)
        folder = tmp_path / "mine"
        folder.mkdir()

        def write(text="return x + 1"):
            for name in [n for n in sys.modules if n.partition(".")[0] == "mine"]:
                del sys.modules[name]
            (folder / "__init__.py").write_text("from mine import parts\nRATE = 1.0\n")
            (folder / "parts.py").write_text(f"OTHER = 5\ndef deep(x):\n    {text}\n")
            import importlib

            importlib.invalidate_caches()
            return importlib.import_module("mine")

        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        yield write
        for name in [n for n in sys.modules if n.partition(".")[0] == "mine"]:
            del sys.modules[name]

    @pytest.mark.parametrize(
        "body",
        [
            "return mine.parts.deep(x)",
            "import mine.parts\n    return mine.parts.deep(x)",
            "from mine.parts import deep\n    return deep(x)",
            "m = mine\n    return m.parts.deep(x)",
        ],
    )
    def test_helpers_in_modules_count(self, package, body):
        """An edit in the user's module counts, however the function gets at it."""
        keys = []
        for text in ("return x + 1", "return x + 1  # the same", "return x + 2"):
            keys.append(key(define(f"def fun(x):\n    {body}", mine=package(text))))
        assert keys[0] == keys[1]
        assert keys[0] != keys[2]

    def test_only_what_is_named_counts(self, package):
        """A change elsewhere in a module that is reached by attribute keeps the key."""
        mine = package()
        fun = define("def fun(x):\n    return mine.parts.deep(x)", mine=mine)
        before = key(fun)
        mine.parts.OTHER = 6
        mine.RATE = 2.0
        assert key(fun) == before

    def test_installed_functions_are_names_and_versions(self, monkeypatch):
        """A package's function is its name and the package's version, numpy's and scipy's without."""
        import lmfit

        before = key(lmfit.minimize), key(scipy.optimize.minimize)
        monkeypatch.setattr(code_module, "_package_of_module", {})
        monkeypatch.setattr(code_module, "_version", lambda _top: "999.0")
        after = key(lmfit.minimize), key(scipy.optimize.minimize)
        assert before[0] != after[0]
        assert before[1] == after[1]

    def test_library_objects(self):
        """ufuncs, builtins, distributions and vectorized functions have keys that last."""
        frozen = scipy.stats.norm(0.0, 1.0)
        things = [
            np.exp,
            len,
            str.upper,
            scipy.stats.norm,
            frozen,
            np.vectorize(len),
            scipy.special.gamma,
        ]
        before = [key(thing) for thing in things]
        np.random.random(3)
        assert [key(thing) for thing in things] == before
        assert len(set(before)) == len(things)
        assert key(scipy.stats.norm(0.0, 2.0)) != key(frozen)

    def test_compiled_code_of_the_user_is_refused(self):
        """A ufunc made of a Python function hides it: it cannot be identified."""
        with pytest.raises(FingerprintError, match="compiled"):
            key(np.frompyfunc(lambda x: x, 1, 1))


class TestPaths:
    """Errors say where the offending value is."""

    @pytest.mark.parametrize(
        ("source", "path"),
        [
            ("def fun(x):\n    return LOCK", "fun.__globals__['LOCK']"),
            ("def helper(x):\n    return LOCK\ndef fun(x):\n    return helper(x)",
             "fun.__globals__['helper'].__globals__['LOCK']"),
            ("class M:\n    pass\nM.lock = LOCK\ndef fun(x):\n    return M()",
             "fun.__globals__['M'].lock"),
            ("def make(lock):\n    return lambda x: lock\nfun = make(LOCK)",
             "fun.__closure__['lock']"),
            ("def fun(x, lock=LOCK):\n    return lock", "fun.__defaults__[0]"),
        ],
    )  # fmt: skip
    def test_the_path_leads_to_the_value(self, source, path):
        """Globals, helpers' globals, class attributes, closures and defaults are named."""
        with pytest.raises(FingerprintError) as caught:
            key(define(source, LOCK=threading.Lock()))
        assert str(caught.value).startswith(path + ": ")
        assert 'Warm(model="' in str(caught.value)


class TestMemory:
    """Frames of functions that are kept are right all the same."""

    def specs(self, fun):
        return FitSpec(model={"fun": fun}).key

    @pytest.mark.parametrize(
        ("source", "change"),
        [
            ("C = 1\ndef fun(x):\n    return x + C", lambda f: f.__globals__.update(C=2)),
            ("def g(x):\n    return x\ndef fun(x):\n    return g(x)",
             lambda f: f.__globals__.update(g=lambda x: x + 1)),
            ("def g(x):\n    return x\ndef fun(x):\n    return g(x)",
             lambda f: setattr(f.__globals__["g"], "__code__", (lambda x: x + 1).__code__)),
            ("def fun(x, a=1):\n    return x + a", lambda f: setattr(f, "__defaults__", (2,))),
            ("def fun(x):\n    return x", lambda f: setattr(f, "__code__", (lambda x: x + 1).__code__)),
            ("def fun(x):\n    return x", lambda f: setattr(f, "order", 2)),
            ("def fun(x):\n    return x", lambda f: setattr(f, "__kwdefaults__", {"x": 2})),
            ("def fun(x):\n    return len(x)", lambda f: f.__globals__.update(len=abs)),
            ("def fun(x):\n    return np.exp(x)", lambda f: f.__globals__.update(np=types)),
            ("L = [1]\ndef fun(x):\n    return L", lambda f: f.__globals__["L"].append(2)),
            ("class K:\n    a = 1\ndef fun(x):\n    return K", lambda f: setattr(f.__globals__["K"], "a", 2)),
            ("def make(c):\n    def fun(x):\n        return x + c\n    return fun\nfun = make(1)",
             lambda f: setattr(f.__closure__[0], "cell_contents", 2)),
        ],
    )  # fmt: skip
    def test_a_change_is_noticed(self, source, change):
        """After whatever change to a function that was seen, its key is that of a new one."""
        fun = define(source)
        before = [self.specs(fun), self.specs(fun)]
        change(fun)
        assert before[0] == before[1]
        assert self.specs(fun) != before[0]


class TestRealLibraries:
    """Objectives that libraries hand to scipy have keys, the same in every process."""

    @pytest.mark.parametrize("library", ["lmfit", "statsmodels", "sklearn_gp", "sklearn_logistic"])
    def test_the_same_fit_is_the_same_in_another_process(self, library, tmp_path):
        """A script run twice, in fresh processes, gives scipy the same functions."""
        import subprocess

        bodies = {
            "lmfit": """
                import lmfit
                def residual(p, x, y):
                    return p["a"] * x + p["b"] - y
                params = lmfit.create_params(a=1.0, b={"value": 0.0, "min": -5})
                x = np.arange(10.0)
                lmfit.minimize(residual, params, args=(x, 2 * x + 1), method="least_squares")
                """,
            "statsmodels": """
                import statsmodels.api as sm
                rng = np.random.default_rng(0)
                x = sm.add_constant(rng.normal(size=(50, 2)))
                y = (rng.random(50) < 0.5).astype(float)
                sm.Logit(y, x).fit(method="minimize", min_method="BFGS", disp=False)
                """,
            "sklearn_gp": """
                from sklearn.gaussian_process import GaussianProcessRegressor
                x = np.arange(10.0)[:, None]
                GaussianProcessRegressor(random_state=0).fit(x, np.sin(x[:, 0]))
                """,
            "sklearn_logistic": """
                from sklearn.linear_model import LogisticRegression
                rng = np.random.default_rng(0)
                LogisticRegression().fit(rng.normal(size=(50, 2)), rng.random(50) < 0.5)
                """,
        }
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import warnings
                warnings.simplefilter("ignore")
                import numpy as np
                import scipy.optimize
                from warmstart import FitSpec
                def spy(name):
                    plain = getattr(scipy.optimize, name)
                    def call(fun, x0, *args, **kwargs):
                        print(name, FitSpec(model={"fun": fun}, data=kwargs.get("args"), settings={"x0": x0}).key)
                        return plain(fun, x0, *args, **kwargs)
                    setattr(scipy.optimize, name, call)
                spy("minimize")
                spy("least_squares")
                """
            )
            + textwrap.dedent(bodies[library])
        )
        outputs = [
            subprocess.run(
                [sys.executable, str(script)], capture_output=True, text=True, check=True
            ).stdout
            for _ in range(2)
        ]
        assert outputs[0] == outputs[1]
        assert outputs[0].strip()
