"""One small, quick, deterministic call for every way in which scipy.optimize calls a function.

``FITS`` names them; `differences` compares two results bit for bit. Every function in this file
counts its real calls in ``COUNTER``, which may end the process at any of them.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import scipy.optimize
import scipy.optimize.elementwise
from scipy.integrate import solve_ivp
from scipy.optimize import (
    BFGS,
    SR1,
    Bounds,
    LbfgsInvHessProduct,
    LinearConstraint,
    NonlinearConstraint,
    OptimizeResult,
    RootResults,
)
from scipy.sparse import csr_array, diags_array, issparse
from scipy.sparse.linalg import LinearOperator

__all__ = ["COUNTER", "FITS", "Fit", "differences", "same"]


class Counter:
    """Counts real calls without being part of any fit's key, and kills where it is told to."""

    def __init__(self):
        self.reset()

    def __reduce__(self):
        return Counter, ()

    def reset(self, kill_at=None):
        """Count from zero; at the start of the call with number `kill_at` this process dies."""
        self.count = 0
        self.kill_at = kill_at
        self.process = os.getpid()  # remembered, since a worker is to kill its parent

    def tick(self):
        self.count += 1
        if self.count == self.kill_at:
            os.kill(self.process, signal.SIGKILL)


COUNTER = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One call of a function of scipy.optimize.

    Parameters
    ----------
    function : str
        Its dotted name.
    make : callable
        Takes the function and calls it, with fresh arguments each time.
    callback : bool
        Whether there is one; what it was told is returned beside the result.
    ignore : bool
        Whether scipy warns.
    opaque : bool
        Whether a function returns what has no bytes, so that it has to be called again.
    pool : bool
        Whether other processes call the function, so that this one's counter does not see it.
    """

    function: str
    make: Callable[[Callable[..., Any]], Any]
    callback: bool = False
    ignore: bool = False
    opaque: bool = False
    pool: bool = False

    def call(self, module: Any, **extra: Any) -> Any:
        """Make the call with the function of that name in `module`."""
        return self.make(functools.partial(attrgetter(self.function)(module), **extra))


FITS: dict[str, Fit] = {}


def add(name: str, function: str, make: Callable[..., Any], **flags: bool) -> None:
    assert name not in FITS, name
    FITS[name] = Fit(function=function, make=make, **flags)


def watched(call, *args, **kwargs):
    """Make a call with a callback, and return what it was told beside the result."""
    history = []

    def callback(x, *_args, **_kwargs):
        history.append(np.array(x))

    return call(*args, callback=callback, **kwargs), history


def watched_result(call, *args, **kwargs):
    """As `watched`, by the keyword that makes scipy hand over an intermediate result."""
    history = []

    def callback(intermediate_result):
        history.append((np.array(intermediate_result.x), float(intermediate_result.fun)))

    return call(*args, callback=callback, **kwargs), history


def stopped(call, limit, *args, **kwargs):
    """Make a call with a callback that stops it."""
    history = []

    def callback(x, *_args, **_kwargs):
        history.append(np.array(x))
        if len(history) == limit:
            raise StopIteration

    return call(*args, callback=callback, **kwargs), history


# Objectives. They return floats or numpy's, which optimizers treat differently.

START = (-1.2, 1.0, 0.8, 1.1)


def rosen(x):
    COUNTER.tick()
    return scipy.optimize.rosen(x)


def rosen_float(x):
    COUNTER.tick()
    return float(scipy.optimize.rosen(x))


def rosen_float32(x):
    COUNTER.tick()
    return np.float32(scipy.optimize.rosen(x))


def rosen_vector(x):
    COUNTER.tick()
    return np.array([scipy.optimize.rosen(x)])


def rosen_gradient(x):
    COUNTER.tick()
    return scipy.optimize.rosen_der(x)


def rosen_gradient32(x):
    COUNTER.tick()
    return scipy.optimize.rosen_der(x).astype(np.float32)


def rosen_pair(x):
    COUNTER.tick()
    return scipy.optimize.rosen(x), scipy.optimize.rosen_der(x)


def rosen_hessian(x):
    COUNTER.tick()
    return scipy.optimize.rosen_hess(x)


def rosen_hessian_fortran(x):
    COUNTER.tick()
    return np.asfortranarray(scipy.optimize.rosen_hess(x))


def rosen_hessian_sparse(x):
    COUNTER.tick()
    return csr_array(scipy.optimize.rosen_hess(x))


def rosen_hessp(x, p):
    COUNTER.tick()
    return scipy.optimize.rosen_hess_prod(x, p)


def rosen_clipped(x):
    """Overwrites what it is given."""
    COUNTER.tick()
    np.clip(x, -2.0, 2.0, out=x)
    return scipy.optimize.rosen(x)


def valley(x, steepness, *, offset=0.0):
    COUNTER.tick()
    return float((1.0 - x[0]) ** 2 + steepness * (x[1] - x[0] ** 2) ** 2 + offset)


def valley_gradient(x, steepness):
    COUNTER.tick()
    inner = 2.0 * steepness * (x[1] - x[0] ** 2)
    return np.array([-2.0 * (1.0 - x[0]) - 2.0 * x[0] * inner, inner])


def valley_hessian(x, steepness):
    COUNTER.tick()
    cross = -4.0 * steepness * x[0]
    corner = 2.0 - 4.0 * steepness * (x[1] - 3.0 * x[0] ** 2)
    return np.array([[corner, cross], [cross, 2.0 * steepness]])


def valley_hessp(x, p, steepness):
    COUNTER.tick()
    cross = -4.0 * steepness * x[0]
    corner = 2.0 - 4.0 * steepness * (x[1] - 3.0 * x[0] ** 2)
    return np.array([corner * p[0] + cross * p[1], cross * p[0] + 2.0 * steepness * p[1]])


_draws = np.random.default_rng(650)
FEATURES = _draws.normal(size=(40, 65))
LABELS = _draws.integers(10, size=40)


def softmax(w):
    """A ridge multinomial regression with 650 parameters: its value and its gradient."""
    COUNTER.tick()
    scores = FEATURES @ w.reshape(65, 10)
    scores -= scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    shares /= shares.sum(axis=1, keepdims=True)
    rows = np.arange(len(LABELS))
    value = -np.log(shares[rows, LABELS]).sum() + 0.05 * (w @ w)
    shares[rows, LABELS] -= 1.0
    return value, (FEATURES.T @ shares).ravel() + 0.1 * w


def softmax_value(w):
    return softmax(w)[0]


def softmax_gradient(w):
    return softmax(w)[1]


class ReusedBuffer:
    """A gradient that writes into the same array each time."""

    def __init__(self):
        self.buffer = np.empty(len(START))

    def __reduce__(self):
        return ReusedBuffer, ()

    def __call__(self, x):
        COUNTER.tick()
        self.buffer[:] = scipy.optimize.rosen_der(x)
        return self.buffer


X4, X2 = list(START), [-1.2, 1.0]
UNIT = [(-2.0, 0.9), (-1.0, 2.0), (None, 2.0), (-2.0, None)]
BOX = [(-3.0, 3.0)] * 3


def minimizers() -> None:
    def minimizer(name, *args, **kwargs):
        add(name, "minimize", lambda minimize: minimize(*args, **kwargs))

    minimizer("Nelder-Mead", rosen, X4, method="Nelder-Mead")
    minimizer(
        "Nelder-Mead adaptive+bounds",
        rosen_float,
        [-1.2, 0.5, 0.8, 1.1],
        method="Nelder-Mead",
        bounds=UNIT,
        options={"adaptive": True, "maxfev": 400},
    )
    minimizer("Powell", rosen, X4, method="Powell", options={"maxfev": 900})
    minimizer("Powell bounds", rosen_float, X2, method="Powell", bounds=[(-2, 2), (-2, 2)])
    for method in ("CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP"):
        minimizer(f"{method} jac", rosen, X4, method=method, jac=rosen_gradient)
        minimizer(f"{method} jac=True", rosen_pair, X4, method=method, jac=True)
        minimizer(f"{method} FD", rosen_float, X4, method=method)
        minimizer(f"{method} 3-point", rosen, X4, method=method, jac="3-point")
    minimizer("L-BFGS-B cs", rosen, X4, method="L-BFGS-B", jac="cs")
    minimizer("BFGS cs", rosen, X4, method="BFGS", jac="cs")
    minimizer(
        "L-BFGS-B bounds",
        rosen_pair,
        [-1.2, 0.5, 0.8, 1.1],
        method="L-BFGS-B",
        jac=True,
        bounds=UNIT,
    )
    wide, few = np.zeros(650), {"maxiter": 12}
    minimizer("L-BFGS-B n=650", softmax, wide, method="L-BFGS-B", jac=True)
    minimizer("BFGS n=650", softmax, wide, method="BFGS", jac=True, options={"maxiter": 4})
    minimizer("CG n=650", softmax_value, wide, method="CG", jac=softmax_gradient, options=few)
    minimizer("TNC n=650", softmax, wide, method="TNC", jac=True, options={"maxfun": 60})
    for method in ("BFGS", "L-BFGS-B", "SLSQP", "CG"):
        minimizer(f"{method} FD workers=map", rosen, X4, method=method, options={"workers": map})
    minimizer("Newton-CG jac", rosen, X2, method="Newton-CG", jac=rosen_gradient)
    minimizer("Newton-CG jac=True", rosen_pair, X4, method="Newton-CG", jac=True)
    derivatives = {"jac": rosen_gradient, "hess": rosen_hessian}
    for method in ("Newton-CG", "dogleg", "trust-ncg", "trust-krylov", "trust-exact"):
        # dogleg wants a Hessian that is positive definite everywhere
        start = [1.3, 1.6, 2.5] if method == "dogleg" else X4
        minimizer(f"{method} hess", rosen, start, method=method, **derivatives)
    for method in ("Newton-CG", "trust-ncg", "trust-krylov"):
        minimizer(
            f"{method} hessp", rosen, X4, method=method, jac=rosen_gradient, hessp=rosen_hessp
        )
    minimizer(
        "trust-exact hess Fortran order",
        rosen_pair,
        X4,
        method="trust-exact",
        jac=True,
        hess=rosen_hessian_fortran,
    )

    # Arguments, types and habits of users' functions.
    minimizer("BFGS args", valley, X2, (5.0,), method="BFGS", jac=valley_gradient)
    minimizer("Nelder-Mead args", valley, X2, args=5.0, method="Nelder-Mead")
    for method, second in (("trust-ncg", "hessp"), ("Newton-CG", "hess")):
        function = valley_hessp if second == "hessp" else valley_hessian
        minimizer(
            f"{method} {second} args",
            valley,
            X2,
            args=(5.0,),
            method=method,
            jac=valley_gradient,
            **{second: function},
        )
    minimizer("partial", functools.partial(valley, steepness=7.0, offset=1.0), X2)
    for method in ("Nelder-Mead", "Powell", "BFGS", "L-BFGS-B", "trust-constr"):
        minimizer(
            f"{method} float32",
            rosen_float32,
            X2,
            method=method,
            options={"maxiter": 15},
        )
    minimizer("BFGS float32 jac", rosen_float32, X2, method="BFGS", jac=rosen_gradient32)
    minimizer("Nelder-Mead array of one", rosen_vector, X2, method="Nelder-Mead")
    minimizer("Nelder-Mead overwrites x", rosen_clipped, X2, method="Nelder-Mead")
    minimizer("default", rosen, np.array([2, 0]))
    minimizer("default bounds", rosen, X2, bounds=Bounds([-2, -2], [0.5, 2]))
    minimizer("tol", rosen, X2, method="Powell", tol=1e-3)
    minimizer("stops early", rosen_pair, X4, jac=True, options={"maxiter": 5})
    for method in ("L-BFGS-B", "SLSQP"):
        add(
            f"{method} reused buffer",
            "minimize",
            lambda minimize, method=method: minimize(rosen, X4, method=method, jac=ReusedBuffer()),
        )
    add(
        "instance",
        "minimize",
        lambda minimize: minimize(Shifted(0.5).value, X2, jac=Shifted(0.5).gradient),
    )
    minimizer("custom method", rosen, X2, method=compass, options={"maxiter": 40})

    # Callbacks.
    for name, call in {"callback": watched, "callback result": watched_result}.items():
        for method in ("Nelder-Mead", "BFGS", "trust-constr"):
            add(
                f"{method} {name}",
                "minimize",
                lambda minimize, call=call, method=method: call(
                    minimize, rosen, X2, method=method, options={"maxiter": 25}
                ),
                callback=True,
                ignore=method == "trust-constr",
            )
    for method in ("Powell", "TNC", "SLSQP", "COBYLA", "COBYQA", "L-BFGS-B"):
        add(
            f"{method} callback",
            "minimize",
            lambda minimize, method=method: watched(
                minimize, rosen, X2, method=method, options={"maxiter": 25}
            ),
            callback=True,
        )
    add(
        "L-BFGS-B callback stops",
        "minimize",
        lambda minimize: stopped(minimize, 4, rosen, X4, method="L-BFGS-B"),
        callback=True,
    )


class Shifted:
    """An objective with data of its own."""

    def __init__(self, shift):
        self.shift = shift

    def value(self, x):
        COUNTER.tick()
        return float(np.sum((x - self.shift) ** 4))

    def gradient(self, x):
        COUNTER.tick()
        return 4.0 * (x - self.shift) ** 3


def compass(fun, x0, args=(), maxiter=100, **_options):
    """A method of a user's own: try a step each way, halve it where none helps."""
    x, best, step, calls = np.array(x0, float), fun(np.array(x0, float), *args), 0.5, 1
    for _ in range(maxiter):
        for move in (step * np.array(way) for way in ((1, 0), (-1, 0), (0, 1), (0, -1))):
            value, calls = fun(x + move, *args), calls + 1
            if value < best:
                x, best = x + move, value
                break
        else:
            step *= 0.5
    return OptimizeResult(x=x, fun=best, nfev=calls, success=True, message="compass")


# Constraints: a half plane, a disc, a curve.


def plane(x):
    COUNTER.tick()
    return 1.5 - x[0] - x[1]


def plane_gradient(x):
    COUNTER.tick()
    return np.array([-1.0, -1.0])


def disc(x):
    COUNTER.tick()
    return np.array([2.0 - x[0] ** 2 - x[1] ** 2])


def disc_jacobian(x):
    COUNTER.tick()
    return np.array([[-2.0 * x[0], -2.0 * x[1]]])


def curve(x):
    COUNTER.tick()
    return [x[0] ** 2 + x[1], x[0] ** 2 - x[1]]


def curve_jacobian(x):
    COUNTER.tick()
    return [[2 * x[0], 1.0], [2 * x[0], -1.0]]


def curve_jacobian_sparse(x):
    COUNTER.tick()
    return csr_array([[2 * x[0], 1.0], [2 * x[0], -1.0]])


def curve_hessian(x, v):
    COUNTER.tick()
    return (v[0] + v[1]) * np.array([[2.0, 0.0], [0.0, 0.0]])


def ring(x, radius):
    COUNTER.tick()
    return radius**2 - x[0] ** 2 - x[1] ** 2


def constrained() -> None:
    def minimizer(name, *args, ignore=False, **kwargs):
        add(name, "minimize", lambda minimize: minimize(*args, **kwargs), ignore=ignore)

    inside = ({"type": "ineq", "fun": plane}, {"type": "ineq", "fun": disc})
    with_jacobians = [
        {"type": "ineq", "fun": plane, "jac": plane_gradient},
        {"type": "ineq", "fun": disc, "jac": disc_jacobian},
    ]
    minimizer("COBYLA", rosen_float, X2, method="COBYLA", options={"maxiter": 100})
    minimizer(
        "COBYLA cons",
        rosen_float,
        X2,
        method="COBYLA",
        constraints=inside,
        options={"maxiter": 100},
    )
    minimizer("COBYQA", rosen_float, X2, method="COBYQA", options={"maxfev": 50})
    minimizer(
        "COBYQA cons", rosen_float, X2, method="COBYQA", constraints=inside, options={"maxfev": 30}
    )
    minimizer("SLSQP cons FD", rosen_float, X2, method="SLSQP", constraints=inside)
    minimizer(
        "SLSQP cons jac",
        rosen,
        X2,
        method="SLSQP",
        jac=rosen_gradient,
        constraints=with_jacobians,
        bounds=[(-1.5, 1.5), (None, 1.0)],
    )
    minimizer(
        "SLSQP equality args",
        valley,
        X2,
        args=(5.0,),
        method="SLSQP",
        constraints={"type": "eq", "fun": ring, "args": (1.2,)},
    )
    add(
        "SLSQP constraint objects",
        "minimize",
        lambda minimize: minimize(
            rosen,
            X2,
            method="SLSQP",
            constraints=[
                LinearConstraint([[1.0, 1.0]], -np.inf, 1.5),
                NonlinearConstraint(curve, -1.0, 1.0, jac=curve_jacobian),
            ],
        ),
    )
    few = {"maxiter": 30}
    minimizer(
        "trust-constr unc. BFGS", rosen, X2, method="trust-constr", jac=rosen_gradient, options=few
    )
    minimizer("trust-constr FD", rosen_float, X2, method="trust-constr", options=few)
    minimizer(
        "trust-constr hess=2-point",
        rosen,
        X2,
        method="trust-constr",
        jac=rosen_gradient,
        hess="2-point",
        options=few,
    )
    minimizer(
        "trust-constr hessp",
        rosen,
        X2,
        method="trust-constr",
        jac=rosen_gradient,
        hessp=rosen_hessp,
        options=few,
    )
    minimizer(
        "trust-constr hess sparse",
        rosen,
        X2,
        method="trust-constr",
        jac=rosen_gradient,
        hess=rosen_hessian_sparse,
        options=few,
    )
    add(
        "trust-constr hess=SR1",
        "minimize",
        lambda minimize: minimize(
            rosen_pair, X2, method="trust-constr", jac=True, hess=SR1(), options=few
        ),
    )
    matrix = [[1.0, 2.0], [2.0, 1.0]]
    for name, rows, jacobian in (
        ("", matrix, curve_jacobian),
        (" sparse", csr_array(matrix), curve_jacobian_sparse),
    ):
        add(
            f"trust-constr cons+hess{name}",
            "minimize",
            lambda minimize, rows=rows, jacobian=jacobian: minimize(
                rosen,
                [0.5, 0.0],
                method="trust-constr",
                jac=rosen_gradient,
                hess=rosen_hessian,
                constraints=[
                    LinearConstraint(rows, [-np.inf, 1.0], [1.0, 1.0]),
                    NonlinearConstraint(curve, -np.inf, 1.0, jac=jacobian, hess=curve_hessian),
                ],
                options=few,
            ),
        )
    add(
        "trust-constr cons FD bounds",
        "minimize",
        lambda minimize: minimize(
            rosen,
            [0.5, 0.0],
            method="trust-constr",
            bounds=Bounds([-1.0, -1.0], [2.0, 0.8]),
            constraints=NonlinearConstraint(curve, -np.inf, 1.0, jac="3-point", hess=BFGS()),
            options={"maxiter": 15},
        ),
    )


# One variable.


def cubic(x):
    COUNTER.tick()
    return x**3 - 2.0 * x - 5.0


def cubic_slope(x):
    COUNTER.tick()
    return 3.0 * x**2 - 2.0


def cubic_curvature(x):
    COUNTER.tick()
    return 6.0 * x


def cubic_pair(x):
    COUNTER.tick()
    return x**3 - 2.0 * x - 5.0, 3.0 * x**2 - 2.0


def cubic_triple(x):
    COUNTER.tick()
    return x**3 - 2.0 * x - 5.0, 3.0 * x**2 - 2.0, 6.0 * x


def shifted_cubic(x, shift):
    COUNTER.tick()
    return x**3 - 2.0 * x - shift


def shifted_slope(x, shift):
    COUNTER.tick()
    return 3.0 * x**2 - 2.0


def wave(x, tilt=0.1):
    COUNTER.tick()
    return np.cos(x) + tilt * x**2


def relaxed(x, a, b):
    COUNTER.tick()
    return np.sqrt(a / (x + b))


def ternary(fun, args=(), bracket=None, **_options):
    """A method of a user's own for one variable."""
    low, high = bracket
    for _ in range(30):
        a, b = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (low, b) if fun(a, *args) < fun(b, *args) else (a, high)
    return OptimizeResult(x=low, fun=fun(low, *args), success=True)


def scalars() -> None:
    def simple(name, function, *args, ignore=False, **kwargs):
        add(name, function, lambda call: call(*args, **kwargs), ignore=ignore)

    simple("minimize_scalar brent", "minimize_scalar", wave, bracket=(1.0, 2.0))
    simple("minimize_scalar golden", "minimize_scalar", wave, (0.0, 1.0), method="golden")
    simple("minimize_scalar bounded", "minimize_scalar", wave, bounds=(0, 6), method="bounded")
    simple("minimize_scalar args", "minimize_scalar", wave, args=(0.2,))
    simple("minimize_scalar custom", "minimize_scalar", wave, bracket=(0.5, 6.0), method=ternary)
    simple("fminbound", "fminbound", wave, 0.0, 6.0, args=(0.2,), full_output=True)
    simple("brent", "brent", wave, brack=(1.0, 2.0), full_output=True)
    simple("brent short", "brent", wave, (0.2,))
    simple("golden", "golden", wave, brack=(1.0, 2.0), full_output=True)

    for method in ("bisect", "brentq", "brenth", "ridder", "toms748"):
        simple(f"root_scalar {method}", "root_scalar", cubic, bracket=(1, 3), method=method)
        simple(f"{method} short", method, cubic, 1.0, 3.0)
        simple(method, method, shifted_cubic, 1.0, 3.0, args=(4.0,), full_output=True)
    simple(
        "root_scalar endpoint",
        "root_scalar",
        wave,
        bracket=(np.pi / 2, 3.0),
        args=(0.0,),
        xtol=1e-15,
    )
    simple("root_scalar default", "root_scalar", cubic, x0=2.5)
    simple("root_scalar secant", "root_scalar", cubic, x0=1.5, x1=3.0, method="secant")
    simple("root_scalar newton", "root_scalar", cubic, x0=2.5, fprime=cubic_slope, method="newton")
    simple(
        "root_scalar newton args",
        "root_scalar",
        shifted_cubic,
        args=4.0,
        x0=2.5,
        fprime=shifted_slope,
        method="newton",
    )
    simple(
        "root_scalar halley",
        "root_scalar",
        cubic,
        x0=2.5,
        fprime=cubic_slope,
        fprime2=cubic_curvature,
        method="halley",
    )
    simple("root_scalar newton fprime=True", "root_scalar", cubic_pair, x0=2.5, fprime=True)
    simple(
        "root_scalar halley fprime2=True",
        "root_scalar",
        cubic_triple,
        x0=2.5,
        fprime=True,
        fprime2=True,
    )
    simple("newton", "newton", cubic, 2.5, full_output=True)
    simple("newton fprime", "newton", shifted_cubic, 2.5, shifted_slope, (4.0,))
    simple("newton halley", "newton", cubic, 2.5, cubic_slope, fprime2=cubic_curvature)
    simple("newton array", "newton", cubic, np.array([2.5, 3.0, 9.0]), full_output=True)
    simple("newton array fprime", "newton", cubic, np.array([2.5, 3.0, 9.0]), cubic_slope)

    simple("fixed_point", "fixed_point", relaxed, [1.2, 1.3], args=(np.array([10.0, 12.0]), 3.0))
    simple("fixed_point iteration", "fixed_point", relaxed, 1.2, (10.0, 3.0), method="iteration")
    simple(
        "elementwise.find_root",
        "elementwise.find_root",
        shifted_cubic,
        (1.0, 3.0),
        args=(np.linspace(2.0, 6.0, 5),),
    )
    simple(
        "elementwise.find_minimum",
        "elementwise.find_minimum",
        wave,
        (1.0, 3.0, 5.0),
        args=(np.linspace(0.05, 0.1, 4),),
    )
    for name in ("root", "minimum"):
        init = (1.0, 3.0) if name == "root" else (1.0, 3.0, 5.0)
        add(
            f"elementwise.find_{name} callback",
            f"elementwise.find_{name}",
            lambda call, init=init, name=name: watched_elementwise(
                call, cubic if name == "root" else wave, init
            ),
            callback=True,
        )


def watched_elementwise(call, f, init):
    history = []

    def callback(result):
        history.append((np.array(result.nfev), np.array(result.x)))

    return call(f, init, callback=callback), history


# Equations: Broyden's tridiagonal system, which has the same Jacobian dense and sparse.


def tridiagonal(x):
    COUNTER.tick()
    y = (3.0 - 0.5 * x) * x + 1.0
    y[1:] -= x[:-1]
    y[:-1] -= 2.0 * x[1:]
    return y


def _tridiagonal_jacobian(x):
    n = len(x)
    return diags_array((-np.ones(n - 1), 3.0 - x, -2.0 * np.ones(n - 1)), offsets=(-1, 0, 1))


def tridiagonal_jacobian(x):
    COUNTER.tick()
    return _tridiagonal_jacobian(x).toarray()


def tridiagonal_jacobian_fortran(x):
    COUNTER.tick()
    return np.asfortranarray(_tridiagonal_jacobian(x).toarray())


def tridiagonal_jacobian_sparse(x):
    COUNTER.tick()
    return _tridiagonal_jacobian(x).tocsr()


def tridiagonal_jacobian_operator(x):
    COUNTER.tick()
    matrix = _tridiagonal_jacobian(x).tocsr()
    return LinearOperator(matrix.shape, matvec=matrix.dot, rmatvec=matrix.T.dot, dtype=float)


def tridiagonal_pair(x):
    COUNTER.tick()
    y = (3.0 - 0.5 * x) * x + 1.0
    y[1:] -= x[:-1]
    y[:-1] -= 2.0 * x[1:]
    return y, _tridiagonal_jacobian(x).toarray()


def tridiagonal_list(x):
    COUNTER.tick()
    return [(3.0 - 0.5 * x[0]) * x[0] - 2.0 * x[1] + 1.0, (3.0 - 0.5 * x[1]) * x[1] - x[0] + 1.0]


def tridiagonal_overwriting(x):
    COUNTER.tick()
    np.maximum(x, -3.0, out=x)
    y = (3.0 - 0.5 * x) * x + 1.0
    y[1:] -= x[:-1]
    y[:-1] -= 2.0 * x[1:]
    return y


def contraction(x, strength):
    COUNTER.tick()
    return strength * np.cos(x[::-1]) - x


def contraction_jacobian(x, strength):
    COUNTER.tick()
    return -np.eye(len(x)) - strength * np.fliplr(np.diag(np.sin(x[::-1])))


def equations() -> None:
    def solver(name, *args, **kwargs):
        add(name, "root", lambda root: root(*args, **kwargs))

    six = [-1.0] * 6
    for method in ("hybr", "lm"):
        solver(f"root {method} FD", tridiagonal, six, method=method)
        solver(f"root {method} jac", tridiagonal, six, method=method, jac=tridiagonal_jacobian)
        solver(f"root {method} jac=True", tridiagonal_pair, six, method=method, jac=True)
    solver(
        "root hybr jac Fortran order args",
        contraction,
        [0.1, 0.9],
        args=(0.5,),
        jac=contraction_jacobian,
        options={"col_deriv": False},
    )
    solver("root hybr list", tridiagonal_list, [-1.0, -1.0])
    solver("root hybr overwrites x", tridiagonal_overwriting, [-4.0, -4.0, 1.0])
    solver("root lm overwrites x", tridiagonal_overwriting, [-4.0, -4.0, 1.0], method="lm")
    mixing = ("broyden1", "broyden2", "anderson", "linearmixing", "diagbroyden", "excitingmixing")
    for method in (*mixing, "krylov", "df-sane"):
        solver(f"root {method}", contraction, [0.3, 0.5, 0.8], (0.4,), method=method)
    add(
        "root krylov callback",
        "root",
        lambda root: watched(root, tridiagonal, six, method="krylov"),
        callback=True,
    )
    add(
        "root df-sane callback",
        "root",
        lambda root: watched(root, contraction, [0.3, 0.5], args=(0.4,), method="df-sane"),
        callback=True,
    )
    for name in (*mixing, "newton_krylov"):
        add(
            name,
            name,
            lambda call: call(lambda x: contraction(x, 0.4), [0.3, 0.5, 0.8], f_tol=1e-8),
        )
    add("fsolve", "fsolve", lambda fsolve: fsolve(tridiagonal, six))
    add(
        "fsolve fprime",
        "fsolve",
        lambda fsolve: fsolve(
            contraction,
            [0.1, 0.9],
            args=(0.5,),
            fprime=contraction_jacobian,
            full_output=True,
        ),
    )


# Least squares: a decay, a rational function and a differential equation, with noise.

TIMES = np.linspace(0.0, 4.0, 25)
_noise = np.random.default_rng(25).normal(scale=0.01, size=25)
DECAY = 2.5 * np.exp(-1.3 * TIMES) + 0.5 + _noise
SPIKED = DECAY + np.where(np.arange(25) % 8 == 3, 1.0, 0.0)
GUESS = [1.0, 0.5, 0.0]
HAHN_X = np.linspace(0.1, 3.0, 40)
HAHN_Y = (1.0 + 0.5 * HAHN_X + 0.3 * HAHN_X**2) / (1.0 + 0.2 * HAHN_X + 0.1 * HAHN_X**2)
PREY = np.array([1.0, 1.35, 1.9, 2.1, 1.6, 0.9, 0.6, 0.55, 0.6])


def residuals(p):
    COUNTER.tick()
    return p[0] * np.exp(-p[1] * TIMES) + p[2] - DECAY


def residuals_spiked(p):
    COUNTER.tick()
    return p[0] * np.exp(-p[1] * TIMES) + p[2] - SPIKED


def residuals_float32(p):
    COUNTER.tick()
    return (p[0] * np.exp(-p[1] * TIMES) + p[2] - DECAY).astype(np.float32)


def residuals_of(p, y, *, scale=1.0):
    COUNTER.tick()
    return scale * (p[0] * np.exp(-p[1] * TIMES) + p[2] - y)


def jacobian_of(p, y, *, scale=1.0):
    COUNTER.tick()
    slope = np.exp(-p[1] * TIMES)
    return scale * np.array([slope, -p[0] * TIMES * slope, np.ones_like(TIMES)]).T


def residuals_overwriting(p):
    COUNTER.tick()
    np.abs(p, out=p)
    return p[0] * np.exp(-p[1] * TIMES) + p[2] - DECAY


def jacobian(p):
    """In Fortran order, as one writes it."""
    COUNTER.tick()
    slope = np.exp(-p[1] * TIMES)
    return np.array([slope, -p[0] * TIMES * slope, np.ones_like(TIMES)]).T


def jacobian_c(p):
    COUNTER.tick()
    slope = np.exp(-p[1] * TIMES)
    return np.ascontiguousarray(np.array([slope, -p[0] * TIMES * slope, np.ones_like(TIMES)]).T)


def jacobian_rows(p):
    """The derivatives along the rows, as ``col_deriv`` of leastsq wants them."""
    COUNTER.tick()
    slope = np.exp(-p[1] * TIMES)
    return np.array([slope, -p[0] * TIMES * slope, np.ones_like(TIMES)])


def hahn(p):
    COUNTER.tick()
    x = HAHN_X
    above = p[0] + x * (p[1] + x * (p[2] + x * p[3]))
    below = 1.0 + x * (p[4] + x * (p[5] + x * p[6]))
    return above / below - HAHN_Y


def predators(p):
    COUNTER.tick()
    solution = solve_ivp(
        lambda _, z: [z[0] * (p[0] - p[1] * z[1]), z[1] * (p[2] * z[0] - p[3])],
        (0.0, 4.0),
        [1.0, 0.5],
        t_eval=np.linspace(0.0, 4.0, 9),
        rtol=1e-4,
    )
    return solution.y[0] - PREY


def soft(z):
    """A loss of a user's own."""
    t = 1.0 + z
    return np.array([2.0 * (np.sqrt(t) - 1.0), t**-0.5, -0.5 * t**-1.5])


def decay(t, a, b, c):
    COUNTER.tick()
    return a * np.exp(-b * t) + c


def decay_jacobian(t, a, b, c):
    COUNTER.tick()
    slope = np.exp(-b * t)
    return np.array([slope, -a * t * slope, np.ones_like(t)]).T


def least_squares() -> None:
    def squares(name, *args, **kwargs):
        add(f"least_squares {name}", "least_squares", lambda call: call(*args, **kwargs))

    for method in ("trf", "dogbox", "lm"):
        for scheme in ("2-point", "3-point", "cs"):
            squares(f"{method} {scheme}", residuals, GUESS, method=method, jac=scheme)
        squares(f"{method} callable", residuals, GUESS, method=method, jac=jacobian)
        squares(f"{method} callable C-order", residuals, GUESS, method=method, jac=jacobian_c)
    for loss in ("soft_l1", "huber", "cauchy", "arctan"):
        squares(f"trf loss={loss}", residuals_spiked, GUESS, loss=loss, f_scale=0.1)
    bounds = ([0.0, 0.0, 0.0], [9.0, 1.2, 9.0])
    squares(
        "dogbox loss=soft_l1 bounds",
        residuals_spiked,
        GUESS,
        method="dogbox",
        loss="soft_l1",
        bounds=bounds,
    )
    squares("trf loss callable", residuals_spiked, GUESS, jac=jacobian, loss=soft)
    squares("trf bounds callable", residuals, [1.0, 0.5, 0.1], jac=jacobian, bounds=bounds)
    squares(
        "trf args kwargs",
        residuals_of,
        GUESS,
        jac=jacobian_of,
        args=(DECAY,),
        kwargs={"scale": 2.0},
    )
    squares("trf float32", residuals_float32, GUESS, max_nfev=20)
    squares("trf x_scale=jac", residuals, GUESS, x_scale="jac")
    twenty = [-1.0] * 20
    squares(
        "trf sparse lsmr", tridiagonal, twenty, jac=tridiagonal_jacobian_sparse, tr_solver="lsmr"
    )
    squares(
        "trf jac_sparsity",
        tridiagonal,
        twenty,
        jac_sparsity=csr_array(_tridiagonal_jacobian(np.ones(20)).toarray() != 0),
    )
    add(
        "least_squares trf LinearOperator",
        "least_squares",
        lambda call: call(tridiagonal, twenty, jac=tridiagonal_jacobian_operator),
        opaque=True,
    )
    squares("trf workers=map", residuals, GUESS, workers=map)
    squares("trf ODE", predators, [1.0, 1.0, 1.0, 1.0], max_nfev=6)
    squares("trf hahn", hahn, [1.0, 0.1, 0.1, 0.0, 0.1, 0.1, 0.0], max_nfev=40)
    add(
        "least_squares trf callback",
        "least_squares",
        lambda call: watched(call, residuals, GUESS, jac=jacobian),
        callback=True,
    )

    def curve_fitter(name, *args, **kwargs):
        add(f"curve_fit {name}", "curve_fit", lambda call: call(*args, **kwargs))

    curve_fitter("lm", decay, TIMES, DECAY)
    curve_fitter("trf bounds", decay, TIMES, DECAY, bounds=(0.0, [9.0, 9.0, 9.0]))
    curve_fitter(
        "lm jac sigma",
        decay,
        TIMES,
        DECAY,
        p0=GUESS,
        jac=decay_jacobian,
        sigma=np.linspace(0.1, 0.3, 25),
        absolute_sigma=True,
        full_output=True,
    )
    curve_fitter(
        "dogbox jac covariance",
        decay,
        TIMES,
        DECAY,
        p0=GUESS,
        jac=decay_jacobian,
        sigma=np.diag(np.linspace(0.1, 0.3, 25)) + 0.001,
        method="dogbox",
    )
    curve_fitter(
        "lm 3-point full", decay, TIMES, DECAY, GUESS, method="trf", jac="3-point", full_output=True
    )
    add("leastsq", "leastsq", lambda call: call(residuals, GUESS))
    add("leastsq full", "leastsq", lambda call: call(residuals_of, GUESS, DECAY, full_output=True))
    add(
        "leastsq Dfun",
        "leastsq",
        lambda call: call(residuals, GUESS, Dfun=jacobian_c, full_output=True),
    )
    add(
        "leastsq Dfun col_deriv",
        "leastsq",
        lambda call: call(residuals, GUESS, Dfun=jacobian_rows, col_deriv=True, full_output=True),
    )
    add("leastsq overwrites x", "leastsq", lambda call: call(residuals_overwriting, GUESS))


# Global optimization.


def waves(x):
    """Rastrigin's function: a bowl full of local minima."""
    COUNTER.tick()
    return float(10.0 * len(x) + np.sum(x**2 - 10.0 * np.cos(2.0 * np.pi * x)))


def waves_gradient(x):
    COUNTER.tick()
    return 2.0 * x + 20.0 * np.pi * np.sin(2.0 * np.pi * x)


def waves_of(x, depth):
    COUNTER.tick()
    return depth * len(x) + np.sum(x**2 - depth * np.cos(2.0 * np.pi * x))


def waves_columns(x):
    """All points of a generation at once."""
    COUNTER.tick()
    return 10.0 * x.shape[0] + np.sum(x**2 - 10.0 * np.cos(2.0 * np.pi * x), axis=0)


def cluster(x):
    """Four Lennard-Jones particles in the plane."""
    COUNTER.tick()
    places = x.reshape(4, 2)
    i, j = np.triu_indices(4, 1)
    square = np.maximum(np.sum((places[i] - places[j]) ** 2, axis=1), 1e-3)
    return float(np.sum(square**-6 - 2.0 * square**-3))


def ball(x):
    COUNTER.tick()
    return np.array([x[0] ** 2 + x[1] ** 2, x[0] * x[1]])


def above(x):
    COUNTER.tick()
    return x[0] + x[1] - 0.7


class Jump:
    """A step of a user's own, with a generator of its own."""

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def __call__(self, x):
        return x + self.rng.uniform(-0.7, 0.7, np.shape(x))


def accept(f_new, x_new, f_old, x_old):
    return bool(np.max(np.abs(x_new)) < 4.0)


def generator():
    """Somewhere in the middle of a stream."""
    rng = np.random.default_rng(11)
    rng.random(3)
    return rng


def from_global_state(call, *args, **kwargs):
    np.random.seed(3)
    return call(*args, **kwargs)


def global_optimizers() -> None:
    def de(name, function, bounds, make=dict, **kwargs):
        kwargs = {"maxiter": 12, "popsize": 6, **kwargs}
        add(
            f"DE {name}",
            "differential_evolution",
            lambda call: call(function, bounds, **kwargs, **make()),
        )

    two = [(-3.0, 3.0)] * 2
    for updating in ("immediate", "deferred"):
        de(f"{updating} rng=int", waves, two, rng=3, updating=updating)
        de(
            f"{updating} rng=Generator",
            waves,
            two,
            updating=updating,
            make=lambda: {"rng": generator()},
        )
    de("seed=RandomState", waves, two, make=lambda: {"seed": np.random.RandomState(3)})
    de("seed=int", waves, two, seed=3, polish=False)
    add(
        "DE global state",
        "differential_evolution",
        lambda call: from_global_state(call, waves, two, maxiter=8, popsize=6),
    )
    de("args", waves_of, two, args=(8.0,), rng=3)
    de("vectorized", waves_columns, two, rng=3, vectorized=True, updating="deferred", polish=False)
    de("vectorized polish", waves_columns, two, rng=3, vectorized=True, updating="deferred")
    de("workers=map", waves, two, rng=3, workers=map, updating="deferred")
    add(
        "DE workers=2",
        "differential_evolution",
        lambda call: call(
            waves, two, rng=3, workers=2, updating="deferred", maxiter=10, popsize=6, polish=False
        ),
        pool=True,
    )
    de(
        "constraints",
        waves,
        two,
        rng=3,
        polish=False,
        make=lambda: {
            "constraints": (
                NonlinearConstraint(ball, [0.5, -1.0], [4.0, 1.0]),
                LinearConstraint([[1.0, 1.0]], 0.5, np.inf),
            )
        },
    )
    de(
        "constraints polish",
        rosen_float,
        two,
        rng=3,
        maxiter=4,
        make=lambda: {"constraints": NonlinearConstraint(ball, [0.5, -1.0], [4.0, 1.0])},
    )
    de("cluster init=sobol", cluster, [(-1.5, 1.5)] * 8, rng=3, init="sobol", maxiter=8, popsize=4)
    de("integrality", waves_of, BOX, args=(3.0,), rng=3, integrality=[True, False, True])
    de(
        "x0 init=array",
        waves,
        two,
        rng=3,
        init=np.linspace(-2.9, 2.9, 20).reshape(10, 2),
        x0=[1.0, 0.1],
    )
    for name, call in {"callback": watched, "callback result": watched_result}.items():
        add(
            f"DE {name}",
            "differential_evolution",
            lambda de, call=call: call(de, waves, two, rng=3, maxiter=10, popsize=6),
            callback=True,
        )

    def annealing(name, *args, **kwargs):
        kwargs = {"maxiter": 40, "rng": 3, **kwargs}
        add(f"dual_annealing{name}", "dual_annealing", lambda call: call(*args, **kwargs))

    annealing("", waves, two)
    annealing(" no_local", waves, two, no_local_search=True, maxiter=100)
    annealing(
        " minimizer_kwargs jac",
        waves,
        two,
        minimizer_kwargs={"method": "L-BFGS-B", "jac": waves_gradient, "bounds": two},
    )
    annealing(" args x0", waves_of, two, args=(7.0,), x0=np.array([1.0, 2.0]))
    add(
        "dual_annealing rng=Generator",
        "dual_annealing",
        lambda call: call(waves, two, maxiter=30, rng=generator()),
    )
    add(
        "dual_annealing callback",
        "dual_annealing",
        lambda call: watched(call, waves, two, maxiter=30, rng=3),
        callback=True,
    )

    def hopping(name, *args, make=dict, **kwargs):
        kwargs = {"niter": 5, "rng": 3, **kwargs}
        add(f"basinhopping {name}", "basinhopping", lambda call: call(*args, **kwargs, **make()))

    hopping("L-BFGS-B FD", waves, X2, minimizer_kwargs={"method": "L-BFGS-B"})
    hopping(
        "L-BFGS-B jac", waves, X2, minimizer_kwargs={"method": "L-BFGS-B", "jac": waves_gradient}
    )
    hopping("Nelder-Mead", waves, X2, minimizer_kwargs={"method": "Nelder-Mead"}, niter=3)
    hopping("args", waves_of, X2, minimizer_kwargs={"args": (6.0,)})
    hopping(
        "jac=True",
        rosen_pair,
        X2,
        minimizer_kwargs={"jac": True, "method": "SLSQP", "bounds": [(-2, 2)] * 2},
    )
    hopping(
        "take_step accept_test", waves, X2, make=lambda: {"take_step": Jump()}, accept_test=accept
    )
    add(
        "basinhopping callback rng=Generator",
        "basinhopping",
        lambda call: watched(call, waves, X2, niter=3, rng=generator()),
        callback=True,
    )

    def homology(name, *args, **kwargs):
        add(f"shgo {name}", "shgo", lambda call: call(*args, **kwargs))

    homology("simplicial", waves, two, n=30, iters=1)
    homology("sobol", waves, two, n=32, sampling_method="sobol")
    homology("halton", waves, two, n=32, sampling_method="halton")
    homology(
        "constraints",
        rosen_float,
        two,
        n=32,
        sampling_method="sobol",
        constraints=({"type": "ineq", "fun": plane}, {"type": "ineq", "fun": disc}),
    )
    homology("workers=map", waves, two, n=30, workers=map)
    homology("args", waves_of, two, args=(7.0,), n=20)
    homology(
        "minimizer_kwargs jac",
        waves,
        two,
        n=30,
        minimizer_kwargs={"method": "L-BFGS-B", "jac": waves_gradient},
    )
    homology("options jac", waves, two, n=30, options={"jac": waves_gradient})
    add("shgo callback", "shgo", lambda call: watched(call, waves, two, n=30), callback=True)

    add("direct", "direct", lambda call: call(waves, two, maxfun=200))
    add(
        "direct locally_biased=False",
        "direct",
        lambda call: call(waves_of, two, args=(7.0,), locally_biased=False, maxfun=300),
    )
    add(
        "direct callback",
        "direct",
        lambda call: watched(call, waves, two, maxfun=200),
        callback=True,
    )
    grid = (slice(-2.0, 2.0, 0.5), slice(-2.0, 2.0, 0.5))
    add("brute+fmin", "brute", lambda call: call(waves, grid, full_output=True))
    add(
        "brute args Ns",
        "brute",
        lambda call: call(waves_of, two, (7.0,), Ns=7, finish=None),
    )
    add("brute workers=map", "brute", lambda call: call(waves, grid, workers=map, finish=None))


# The functions from before `minimize`.


def below(x):
    COUNTER.tick()
    return 2.0 - x[0] ** 2 - x[1] ** 2


def below_jacobian(x):
    COUNTER.tick()
    return np.array([[-2.0 * x[0], -2.0 * x[1]]])


def both(x):
    COUNTER.tick()
    return np.array([x[0] + 0.5, x[1] + 0.5])


def legacy() -> None:
    def old(name, function, *args, **kwargs):
        add(f"legacy {name}", function, lambda call: call(*args, **kwargs))

    quiet: dict[str, Any] = {"disp": False, "full_output": True}
    old("fmin", "fmin", rosen_float, X2, **quiet)
    old("fmin short", "fmin", valley, X2, (5.0,), disp=False)
    old("fmin_powell", "fmin_powell", rosen_float, X2, **quiet)
    old("fmin_cg", "fmin_cg", rosen_float, X2, **quiet, maxiter=20)
    old("fmin_cg fprime", "fmin_cg", rosen, X2, rosen_gradient, **quiet, maxiter=20)
    old("fmin_bfgs", "fmin_bfgs", rosen_float, X2, **quiet)
    old("fmin_bfgs fprime retall", "fmin_bfgs", rosen, X2, rosen_gradient, **quiet, retall=True)
    old("fmin_l_bfgs_b", "fmin_l_bfgs_b", rosen_float, X2, approx_grad=True)
    old("fmin_l_bfgs_b pair", "fmin_l_bfgs_b", rosen_pair, X2)
    old("fmin_l_bfgs_b fprime", "fmin_l_bfgs_b", rosen, X2, rosen_gradient, bounds=[(-2, 0.5)] * 2)
    old("fmin_tnc", "fmin_tnc", rosen_float, X2, approx_grad=True, disp=0)
    old("fmin_tnc pair", "fmin_tnc", rosen_pair, X2, bounds=[(-2, 0.5), (None, 2)], disp=0)
    old("fmin_cobyla", "fmin_cobyla", rosen_float, X2, [plane, below], maxfun=80, disp=0)
    old("fmin_cobyla one", "fmin_cobyla", rosen_float, X2, below, maxfun=50, disp=0)
    old("fmin_slsqp", "fmin_slsqp", rosen_float, X2, ieqcons=[plane], eqcons=[below], disp=0)
    old(
        "fmin_slsqp f_ieqcons",
        "fmin_slsqp",
        rosen,
        [0.5, 0.5],
        f_eqcons=below,
        f_ieqcons=both,
        fprime=rosen_gradient,
        fprime_eqcons=below_jacobian,
        full_output=True,
        disp=0,
    )
    old("fmin_ncg", "fmin_ncg", rosen, X2, rosen_gradient, **quiet)
    old("fmin_ncg fhess_p", "fmin_ncg", rosen, X2, rosen_gradient, fhess_p=rosen_hessp, **quiet)
    old("fmin_ncg fhess", "fmin_ncg", rosen, X2, rosen_gradient, fhess=rosen_hessian, **quiet)
    add(
        "legacy fmin callback",
        "fmin",
        lambda call: watched(call, rosen_float, X2, disp=False),
        callback=True,
    )


for _fill in (
    minimizers,
    constrained,
    scalars,
    equations,
    least_squares,
    global_optimizers,
    legacy,
):
    _fill()


# Comparison.


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same in every bit."""
    return not list(differences(one, other))


def differences(one: Any, other: Any, where: str = "result") -> Iterator[str]:
    """Yield the places where two results differ: in type, in dtype, or in a bit.

    Left out are the clock, and what scipy leaves uninitialised: the iterations of a root that
    was an end of the bracket (scipy#25955).
    """
    if isinstance(one, tuple) and isinstance(other, tuple):  # a tuple with a report is one, too
        pass
    elif type(one) is not type(other):
        yield f"{where}: {type(one).__name__} and {type(other).__name__}"
        return
    if isinstance(one, dict):
        if list(one) != list(other):
            yield f"{where}: {list(one)} and {list(other)}"
            return
        left_out = {"execution_time"}
        if isinstance(one, RootResults) and one["function_calls"] <= 2:
            left_out.add("iterations")
        for name in one.keys() - left_out:
            yield from differences(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (tuple, list)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} items"
            return
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(one, (np.ndarray, np.generic, float, complex)):
        a, b = np.asarray(one), np.asarray(other)
        if (a.dtype, a.shape) != (b.dtype, b.shape) or a.tobytes() != b.tobytes():
            yield f"{where}: {one!r:.200} and {other!r:.200}"
    elif isinstance(one, LbfgsInvHessProduct):
        yield from differences((one.sk, one.yk), (other.sk, other.yk), where)
    elif isinstance(one, LinearOperator):
        unit = np.eye(one.shape[1])
        yield from differences(one @ unit, other @ unit, where)
    elif issparse(one):
        yield from differences(one.toarray(), other.toarray(), where)
    elif one != other:
        yield f"{where}: {one!r:.200} and {other!r:.200}"
