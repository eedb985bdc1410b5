"""scikit-learn: an estimator whose fits are remembered, and start near.

What an estimator has learned is stored as typed values, never as a pickle; an estimator that holds
what cannot be stored is fitted as ever, and says so in ``warm_``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import sklearn
import sklearn.exceptions
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from warmstart import gaussian
from warmstart.errors import ArgumentError, CodecError, FingerprintError
from warmstart.fingerprint import FitSpec, environment
from warmstart.nearby import index, neighbours, place_of
from warmstart.packing import dumps
from warmstart.record import Entry, EntryKind
from warmstart.rewarn import overhear, rewarn
from warmstart.session import LoadedEntry, LoadSource
from warmstart.store import Store
from warmstart.warm import FitReport, options_of, store_of, tell

__all__ = ["WarmStarted"]

_NEAR = ("sklearn.linear_model.", "sklearn.neural_network.")
"""Where ``warm_start=True`` means: begin at ``coef_``. Elsewhere it may mean: add trees."""


def _binarizer(_estimator: Any, state: dict[str, Any]) -> LabelBinarizer:
    made = LabelBinarizer()
    vars(made).update(state)
    return made


class _Part(NamedTuple):
    """How an attribute that is an object is stored, and made again."""

    dump: Callable[[Any, Any], Any]
    """Returns its state, of an estimator and the attribute."""
    load: Callable[[Any, Any], Any]
    """Makes it, from an estimator and the state."""


def _nothing(_estimator: Any, _value: Any) -> None:
    """Return no state: the estimator's parameters are all that is needed."""


def _seed(estimator: Any, _state: None) -> Any:
    return check_random_state(estimator.random_state)


_PARTS = {
    "_base_loss": _Part(_nothing, lambda estimator, _: estimator._get_loss()),  # noqa: SLF001
    "_label_binarizer": _Part(lambda _, value: dict(vars(value)), _binarizer),
    "_random_state": _Part(_nothing, _seed),
    "_rng": _Part(_nothing, _seed),
    "kernel_": _Part(lambda _, kernel: kernel.theta, gaussian.load_kernel),
    "base_estimator_": _Part(gaussian.dump_classifier, gaussian.load_classifier),
}
_GAUSSIAN = {"kernel_", "base_estimator_"}
_LEFT_OUT = {"_loss_function_", "_optimizer"}
"""Attributes that only `fit` needs, which makes them anew."""


def _routing_enabled() -> bool:
    return bool(sklearn.get_config().get("enable_metadata_routing", False))


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _if_there(method: _Method) -> _Method:
    """Have a method where the wrapped estimator has it."""

    def check(self: WarmStarted) -> bool:
        getattr(vars(self).get("estimator_", self.estimator), method.__name__)
        return True

    return cast("_Method", available_if(check)(method))


class WarmStarted(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that is fitted once for the same data, and quickly for nearly the same.

    Parameters
    ----------
    estimator : estimator
        One of scikit-learn's, or made like them.
    store : Store or path-like, optional
        Where to remember; by default as `Warm` says.
    near : bool
        Whether a fit that was never done starts from the nearest one that was (other folds,
        windows, hyperparameters), where the estimator has ``warm_start`` in the sense of
        scikit-learn's linear models and neural networks.

    Attributes
    ----------
    estimator_ : estimator
        Fitted.
    warm_ : FitReport
        Whether it was remembered, where it started from, and why not.
    n_features_in_, classes_, coef_, ...
        Those of the fitted estimator.

    Notes
    -----
    The key is made of the estimator's class, all its parameters, the versions of scikit-learn,
    numpy and scipy, and every bit of the data. A fit with ``random_state=None`` returns the draw
    that was remembered. Clones and pickles as scikit-learn expects; processes share the store.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from warmstart import Store
    >>> from warmstart.sklearn import WarmStarted
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> model = WarmStarted(LogisticRegression(), store=Store(":memory:"))
    >>> model.fit(X, [0, 0, 1, 1]).warm_.source
    'cold'
    >>> model.fit(X, [0, 0, 1, 1]).warm_.source
    'final'
    """

    def __init__(self, estimator: Any, *, store: Any = None, near: bool = True) -> None:
        self.estimator = estimator
        self.store = store
        self.near = near

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> WarmStarted:  # noqa: N803
        """Fit, or load what an earlier fit to the same data has learned.

        Parameters
        ----------
        X, y : array-like
            As the estimator takes them.
        **fit_params
            For the estimator's ``fit``; with scikit-learn's metadata routing, those that it
            requests.
        """
        if not isinstance(self.near, bool):
            raise ArgumentError(f"near is True or False, not {self.near!r:.60}")
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        estimator = clone(self.estimator)
        store = self.store if isinstance(self.store, Store) else None
        if store is None:
            base = options_of(None)
            store = store_of(base if self.store is None else type(base)(store=self.store))
        try:
            spec = _identify(estimator, X, y, fit_params)
        except FingerprintError as error:
            self.estimator_ = estimator.fit(X, y, **fit_params)
            self.warm_ = FitReport(source="off", why=f"it has no key: {error}")
            return self
        producer = f"{environment()} scikit-learn {importlib.metadata.version('scikit-learn')}"
        session = store.session(spec, producer=producer)
        entry = store.attempt(lambda: store.best(spec.key, producer=producer), None)
        if entry is not None and entry.kind is EntryKind.FINAL and _load(estimator, entry):
            self.estimator_ = estimator
            rewarn(entry.payload.get("warnings", []), among=sklearn.exceptions)
            self.warm_ = FitReport(source="final", key=str(spec.key), run=entry.run, evaluations=0)
            tell(self.warm_)
            return self
        found, why = None, None
        place = place_of(spec)
        if self.near and _starts_near(estimator):
            found = store.attempt(lambda: _nearest(store, place, estimator, producer), None)
        if found is not None:
            session.start_from(found)
        with overhear(sklearn) as heard:
            self.estimator_ = _fitted(estimator, found, X, y, **fit_params)
        try:
            learned = _learned(self.estimator_)
        except CodecError as error:
            why = str(error)
        else:
            payload = {"learned": learned, "warnings": heard}
            if not session.finalize(payload, rows=index(spec.key, place)):
                why = "the result could not be kept"
        self.warm_ = FitReport(
            source="cold" if found is None else "near",
            key=str(spec.key),
            run=session.run_id,
            start_run=None if found is None else found.entry.run,
            why=why,
        )
        tell(self.warm_)
        return self

    def get_metadata_routing(self) -> MetadataRouter:
        """Say which metadata go to the estimator: all that it requests, method by method."""
        methods = MethodMapping()
        for method in ("fit", "predict", "score"):
            methods = methods.add(caller=method, callee=method)
        return MetadataRouter(owner=type(self).__name__).add(
            estimator=self.estimator, method_mapping=methods
        )

    def __getattr__(self, name: str) -> Any:
        # What was learned is asked of the fitted estimator, `n_features_in_` first of all.
        if name.endswith("_") and not name.startswith("__") and "estimator_" in vars(self):
            return getattr(self.estimator_, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return "estimator_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)

    def _ask(self, name: str, *args: Any, **params: Any) -> Any:
        check_is_fitted(self)
        return getattr(self.estimator_, name)(*args, **params)

    @_if_there
    def predict(self, X: Any, **params: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        if _routing_enabled():
            params = process_routing(self, "predict", **params).estimator.predict
        return self._ask("predict", X, **params)

    @_if_there
    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        return self._ask("predict_proba", X)

    @_if_there
    def predict_log_proba(self, X: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        return self._ask("predict_log_proba", X)

    @_if_there
    def decision_function(self, X: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        return self._ask("decision_function", X)

    @_if_there
    def transform(self, X: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        return self._ask("transform", X)

    @_if_there
    def score(self, X: Any, y: Any = None, **params: Any) -> Any:  # noqa: N803
        """Ask the fitted estimator."""
        if _routing_enabled():
            params = process_routing(self, "score", **params).estimator.score
        return self._ask("score", X, y, **params)


def _identify(estimator: Any, x: Any, y: Any, fit_params: dict[str, Any]) -> FitSpec:
    """Return which fit it is."""
    hyper: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in estimator.get_params(deep=False).items():
        plain = isinstance(value, (str, bool, int, float, type(None), np.number))
        (hyper if plain else settings)[name] = value
    hyper.pop("warm_start", None)
    hyper.pop("verbose", None)
    kind = type(estimator)
    model = {"name": f"{kind.__module__}.{kind.__qualname__}", "class": kind}
    if gaussian.is_gaussian(estimator):
        model["kernel"] = settings.pop("kernel", None)  # another one has other hyperparameters
    data = {name: _as_array(value) for name, value in ({"X": x, "y": y} | fit_params).items()}
    return FitSpec(model=model, data=data, hyper=hyper, settings=settings, parameters=_width(x))


def _as_array(value: Any) -> Any:
    """Return lists of numbers or labels as arrays: scikit-learn does not tell them apart."""
    if isinstance(value, (list, tuple)):
        try:
            return np.asarray(value)
        except ValueError:  # ragged: the estimator will say so
            pass
    return value


def _width(x: Any) -> int:
    shape = getattr(x, "shape", None)
    if shape is None:
        try:
            shape = np.asarray(x).shape
        except (TypeError, ValueError):  # ragged: the estimator will say so
            return 0
    return int(shape[1]) if len(shape) > 1 else 1


def _learned(estimator: Any) -> dict[str, Any]:
    """Return what an estimator has learned.

    Raises
    ------
    CodecError
        If some of it is of a type that cannot be stored.
    """
    given = estimator.get_params(deep=False)
    held = {name: value for name, value in vars(estimator).items() if name not in given}
    # Elsewhere than in a Gaussian process these names may stand for anything.
    parts = _PARTS if gaussian.is_gaussian(estimator) else _PARTS.keys() - _GAUSSIAN
    rebuilt = {name: _PARTS[name].dump(estimator, held.pop(name)) for name in parts & held.keys()}
    learned = {name: value for name, value in held.items() if name not in _LEFT_OUT}
    learned["rebuilt"] = rebuilt
    for name, value in (learned | rebuilt).items():
        try:
            dumps(value)
        except CodecError as error:
            raise CodecError(
                f"{type(estimator).__name__} is not remembered: its {name}, of type "
                f"{type(value).__name__}, is not made of numbers, arrays and text"
            ) from error
    return learned


def _load(estimator: Any, entry: Entry) -> bool:
    """Give an estimator what another one has learned; whether the entry had it."""
    learned = entry.payload.get("learned") if isinstance(entry.payload, dict) else None
    if not isinstance(learned, dict) or not isinstance(learned.get("rebuilt"), dict):
        return False
    rebuilt = learned["rebuilt"]
    if not rebuilt.keys() <= _PARTS.keys():
        return False
    vars(estimator).update({name: learned[name] for name in learned if name != "rebuilt"})
    for name, state in rebuilt.items():
        setattr(estimator, name, _PARTS[name].load(estimator, state))
    return True


def _starts_near(estimator: Any) -> bool:
    if gaussian.is_gaussian(estimator):
        return estimator.optimizer is not None
    kind = type(estimator)
    known = f"{kind.__module__}.".startswith(_NEAR)
    return known and "warm_start" in estimator.get_params(deep=False)


def _nearest(store: Store, place: Any, estimator: Any, producer: str) -> LoadedEntry | None:
    """Return the nearest fit that an estimator can start from."""
    for near in neighbours(store.backend, place):
        entry = store.best(near.key, producer=producer)
        final = entry is not None and entry.kind is EntryKind.FINAL
        if entry is not None and final and _load(clone(estimator), entry):
            return LoadedEntry(entry, LoadSource.PRELOADED, near.level, near.distance)
    return None


def _fitted(estimator: Any, found: LoadedEntry | None, x: Any, y: Any, **params: Any) -> Any:
    """Return an estimator fitted from another's solution, or as ever if that does not go."""
    near = clone(estimator)
    if found is not None and _load(near, found.entry):
        if gaussian.is_gaussian(near):
            return _fitted_from(estimator, gaussian.theta_of(near), x, y)
        before = near.get_params(deep=False)["warm_start"]
        try:
            return (
                near.set_params(warm_start=True).fit(x, y, **params).set_params(warm_start=before)
            )
        except ValueError:  # other classes, another number of outputs; or wrong input, as below
            pass
    return estimator.fit(x, y, **params)


def _fitted_from(estimator: Any, theta: Any, x: Any, y: Any) -> Any:
    """Return a Gaussian process whose optimizer began at given hyperparameters."""
    optimizer = estimator.optimizer
    if theta is not None:
        estimator.set_params(optimizer=gaussian.From(theta, optimizer))
    estimator.fit(x, y).set_params(optimizer=optimizer)
    if "base_estimator_" in vars(estimator):
        estimator.base_estimator_.optimizer = optimizer
    return estimator
