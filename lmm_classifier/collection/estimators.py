"""What can be fitted, by name; and the fitted thing as numbers or as a skops file, never as a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lmm_classifier.errors import ClassifierFileError, ConfigError
from lmm_classifier.registry import did_you_mean
from lmm_classifier.types import FloatArray
from lmm_classifier.yaml_settings import read_parameters

DoubleArray = npt.NDArray[np.float64]
SEED = 42
TRUSTED = frozenset({
    "sklearn.ensemble._forest.RandomForestClassifier",
    "sklearn.svm._classes.SVC",
    "sklearn.tree._classes.DecisionTreeClassifier",
    "sklearn.tree._tree.Tree",
})  # fmt: skip
"""The types beyond skops's own that a file of these estimators may name."""


class Model(Protocol):
    """A fitted classifier."""

    def scores(self, vectors: FloatArray) -> DoubleArray:
        """Float64 (n,) for vectors (n, d): higher is more like the collection; 0 is undecided."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """score = vector . weights + intercept; weights are float64 (d,)."""

    weights: DoubleArray
    intercept: float

    def scores(self, vectors: FloatArray) -> DoubleArray:
        return np.asarray(vectors @ self.weights + self.intercept, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class FittedEstimator:
    """Any other estimator of scikit-learn."""

    estimator: Any

    def scores(self, vectors: FloatArray) -> DoubleArray:
        return scores_of(self.estimator, vectors)


@dataclass(frozen=True, slots=True)
class Estimator:
    """What to fit.

    Attributes:
        name: one of `NAMES`.
        options: of the scikit-learn class, (name, value), sorted; they override the defaults below.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def make(self) -> Any:
        """A fresh scikit-learn estimator.

        Raises:
            ConfigError: it takes no such option.
        """
        made = _MAKERS[self.name]()
        known = tuple(sorted(made.get_params()))
        for key, _ in self.options:
            if key not in known:
                raise ConfigError(f"estimator {self.name!r} has no option {key!r}{did_you_mean(key, known)}")
        return made.set_params(**dict(self.options))


def parse_estimator(text: str) -> Estimator:
    """`NAME` or `NAME:option=value,option=value`, such as "svc:C=3".

    Raises:
        ConfigError: no such estimator or option.
    """
    name, _, given = text.partition(":")
    if name not in _MAKERS:
        raise ConfigError(f"unknown estimator {name!r}{did_you_mean(name, NAMES)}")
    options = read_parameters(given.split(",")) if given else {}
    estimator = Estimator(name, tuple(sorted(options.items())))
    estimator.make()
    return estimator


def to_model(estimator: Any) -> Model:
    """A fitted estimator as what is stored of it."""
    if getattr(estimator, "kernel", None) is None and hasattr(estimator, "coef_"):
        weights = np.ascontiguousarray(estimator.coef_[0], np.float64)
        return Linear(weights, float(estimator.intercept_[0]))
    return FittedEstimator(estimator)


def scores_of(estimator: Any, vectors: FloatArray | DoubleArray) -> DoubleArray:
    """As `Model.scores`; an estimator that only knows probabilities gives their log-odds."""
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(vectors), np.float64)
    p = np.clip(estimator.predict_proba(vectors)[:, 1], 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)), np.float64)


def probabilities(
    scores: DoubleArray, slope: float | DoubleArray, offset: float | DoubleArray
) -> DoubleArray:
    """sigmoid(slope x score + offset), float64 of the shape of `scores`."""
    x = np.clip(slope * scores + offset, -700, 700)  # exp overflows beyond
    return np.asarray(1 / (1 + np.exp(-x)), np.float64)


def to_skops(model: Model) -> bytes:
    """The file of a model that is not linear."""
    if not isinstance(model, FittedEstimator):
        raise TypeError(f"only what was fitted goes into a skops file, not {type(model).__name__}")
    content: bytes = _skops().dumps(model.estimator)
    return content


def from_skops(content: bytes, path: Path, d: int) -> FittedEstimator:
    """Read what `to_skops` wrote; the types in it are compared with a closed list before any is made.

    Raises:
        ClassifierFileError: no skops file, foreign types, no classifier, or one of another dimension.
    """
    skops = _skops()
    try:
        foreign = sorted(set(skops.get_untrusted_types(data=content)) - TRUSTED)
        if foreign:
            raise ClassifierFileError(
                f"{path} holds the type {foreign[0]}, which no classifier here is made of"
            )
        estimator = skops.loads(content, trusted=sorted(TRUSTED))
    except ClassifierFileError:
        raise
    except Exception as error:
        raise ClassifierFileError(f"{path} is no readable skops file ({type(error).__name__})") from error
    try:
        sound = _SOUND.get(type(estimator).__name__, _never)(estimator, d)
    except Exception as error:
        raise ClassifierFileError(f"{path} holds a classifier that is not whole") from error
    if not sound:
        raise ClassifierFileError(f"{path} holds no classifier of vectors with {d} dimensions")
    try:
        finite = np.isfinite(FittedEstimator(estimator).scores(np.full((1, d), d**-0.5, np.float32))).all()
    except Exception as error:
        raise ClassifierFileError(f"{path} holds a classifier that does not answer") from error
    if not finite:
        raise ClassifierFileError(f"{path} holds coefficients that are no finite numbers")
    return FittedEstimator(estimator)


def _sound_svc(svc: Any, d: int) -> bool:
    """Whether the arrays fit each other: libsvm would read beyond them."""
    n = len(svc.support_vectors_)
    one_row = all(array.shape == (1, n) for array in (svc.dual_coef_, svc._dual_coef_))
    counted = svc._n_support.shape == (2,) and svc._n_support.min() >= 0 and svc._n_support.sum() == n
    known = svc.kernel in ("linear", "rbf", "poly", "sigmoid") and len(svc._probA) == len(svc._probB) == 0
    shaped = svc.support_vectors_.shape == (n, d) and svc.support_.shape == (n,) and len(svc._intercept_) == 1
    return bool(one_row and counted and known and shaped and svc.n_features_in_ == d)


def _sound_forest(forest: Any, d: int) -> bool:
    """Whether every tree stays within its own nodes and the vector: they are not checked when it is asked."""
    return forest.n_features_in_ == d and forest.n_outputs_ == 1 and all(map(partial(_sound_tree, d), forest))


def _sound_tree(d: int, tree: Any) -> bool:
    nodes = tree.tree_
    n, own = nodes.node_count, np.arange(nodes.node_count)
    leaf = nodes.children_left == -1
    below = [side[~leaf] for side in (nodes.children_left, nodes.children_right)]
    inside = all(((side > own[~leaf]) & (side < n)).all() for side in below)  # downwards: no loop either
    read = nodes.feature[~leaf]
    return bool(
        n > 0 and inside and ((read >= 0) & (read < d)).all() and tree.n_features_in_ == nodes.n_features == d
    )


def _never(_estimator: Any, _d: int) -> bool:
    return False


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ConfigError(
            "this estimator is kept in a skops file; install the extra: pip install 'lmm-classifier[skops]'"
        ) from error
    return skops.io


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    # As documented but for C: on unit vectors 0.1 hardly learns. Mean average precision on the test photos of
    # flowers12 (MobileNet v1) is .952 with C = 0.1, .980 with 1, .989 with 10, .991 with 100.
    return LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear", random_state=SEED)


def _linear_svc() -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(class_weight="balanced", random_state=SEED)


def _lda() -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])


def _svc() -> Any:
    from sklearn.svm import SVC

    return SVC(C=10.0, class_weight="balanced", random_state=SEED)


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(200, class_weight="balanced", random_state=SEED)


_MAKERS: Mapping[str, Any] = {
    "logistic-regression": _logistic,
    "linear-svc": _linear_svc,
    "lda": _lda,
    "svc": _svc,
    "random-forest": _forest,
}
NAMES = tuple(_MAKERS)
_SOUND: Mapping[str, Any] = {"SVC": _sound_svc, "RandomForestClassifier": _sound_forest}
LOGISTIC_REGRESSION = Estimator("logistic-regression")
