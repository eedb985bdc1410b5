"""scikit-learn's Gaussian processes: what they have learned, and where their optimizer begins.

They hold objects, a kernel first of all. Of a kernel its hyperparameters are kept, ``theta``; the
kernel itself is made from the estimator's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state

__all__ = ["From", "dump_classifier", "is_gaussian", "load_classifier", "load_kernel", "theta_of"]

Vector = NDArray[np.float64]
_FIXED = ConstantKernel(1.0, "fixed") * RBF(1.0, "fixed")


def is_gaussian(estimator: Any) -> bool:
    """Whether an estimator is one of scikit-learn's Gaussian processes."""
    return isinstance(estimator, (GaussianProcessClassifier, GaussianProcessRegressor))


def load_kernel(estimator: Any, theta: Any) -> Any:
    """Return an estimator's kernel with fitted hyperparameters."""
    kernel, values = estimator.kernel, np.asarray(theta, float)
    if kernel is None:  # as scikit-learn does; its versions differ in whether that is fixed
        kernel = ConstantKernel() * RBF() if values.size else _FIXED
    return clone(kernel).clone_with_theta(values)


def theta_of(estimator: Any) -> Vector | None:
    """Return the fitted hyperparameters; None of several classes' kernels."""
    kernel = getattr(estimator, "kernel_", None)
    theta = None if kernel is None else np.asarray(kernel.theta, float)
    several = getattr(estimator, "n_classes_", 2) > 2
    return None if theta is None or several or not theta.size else theta


def dump_classifier(_estimator: Any, learned: Any) -> Any:
    """Return what a classifier holds: one two-class process, or several of them."""
    if isinstance(learned, (OneVsRestClassifier, OneVsOneClassifier)):
        state = {name: value for name, value in vars(learned).items() if name.endswith("_")}
        state["estimators_"] = [_dump_one(one) for one in learned.estimators_]
        if "label_binarizer_" in state:
            state["label_binarizer_"] = dict(vars(state["label_binarizer_"]))
        return state
    return _dump_one(learned)


def _dump_one(learned: Any) -> dict[str, Any]:
    given = learned.get_params(deep=False)
    state = {name: value for name, value in vars(learned).items() if name not in given}
    del state["rng"]
    return state | {"kernel_": np.asarray(learned.kernel_.theta)}


def load_classifier(estimator: Any, state: Any) -> Any:
    """Return what `dump_classifier` was given."""
    made = _two_classes()(
        **{
            name: getattr(estimator, name)
            for name in ("kernel", "optimizer", "n_restarts_optimizer", "max_iter_predict")
        },
        warm_start=estimator.warm_start,
        copy_X_train=estimator.copy_X_train,
        random_state=estimator.random_state,
    )
    if "estimators_" not in state:
        return _load_one(made, state)
    several = {"one_vs_rest": OneVsRestClassifier, "one_vs_one": OneVsOneClassifier}
    whole = several[estimator.multi_class](made, n_jobs=estimator.n_jobs)
    vars(whole).update(state)
    whole.estimators_ = [_load_one(clone(made), one) for one in state["estimators_"]]
    if "label_binarizer_" in state:
        whole.label_binarizer_ = LabelBinarizer(sparse_output=True)
        vars(whole.label_binarizer_).update(state["label_binarizer_"])
    return whole


def _two_classes() -> Any:
    """Return the class of a process of two classes, which scikit-learn keeps to itself."""
    from sklearn.gaussian_process import _gpc  # noqa: PLC0415

    return _gpc._BinaryGaussianProcessClassifierLaplace  # noqa: SLF001


def _load_one(made: Any, state: dict[str, Any]) -> Any:
    vars(made).update(state)
    made.kernel_ = load_kernel(made, state["kernel_"])
    made.rng = check_random_state(made.random_state)
    return made


class From:
    """An optimizer that begins at given hyperparameters, the first time it is called.

    Parameters
    ----------
    theta : (n,) array
        Where another fit ended.
    optimizer : "fmin_l_bfgs_b" or callable
        The estimator's own.
    """

    def __init__(self, theta: Vector, optimizer: Any) -> None:
        self.theta: Vector | None = theta
        self.optimizer = optimizer

    def __call__(
        self, objective: Callable[..., Any], begin: Vector, bounds: Sequence[Any]
    ) -> tuple[Vector, float]:
        """Minimize, as scikit-learn asks for it."""
        theta, self.theta = self.theta, None
        if theta is not None and theta.shape == np.shape(begin):
            theta = np.clip(theta, *np.transpose(bounds))
            if objective(theta, eval_gradient=False) < objective(begin, eval_gradient=False):
                begin = theta
        if callable(self.optimizer):
            x, value = self.optimizer(objective, begin, bounds=bounds)
            return x, value
        result = scipy.optimize.minimize(
            objective, begin, method="L-BFGS-B", jac=True, bounds=bounds
        )
        return result.x, result.fun
