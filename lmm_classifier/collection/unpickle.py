"""Opens one pickled logistic regression and prints its numbers: a program, never imported by the package.

    python -m lmm_classifier.collection.unpickle FILE

The pickle machine may make only what such a classifier consists of; any other name in the file is an error
before it is looked up. Even so: `collections convert` runs this only for files that somebody trusts.
"""

from __future__ import annotations

import inspect
import json
import pickle
import sys
from pathlib import Path
from typing import Any

from joblib.numpy_pickle import NumpyUnpickler

_ALLOWED = {
    ("sklearn.linear_model._logistic", "LogisticRegression"),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _Closed(NumpyUnpickler):  # type: ignore[misc]
    """Joblib's unpickler, which also reads plain pickles, with a closed list of names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which no logistic regression consists of"
            )
        return super().find_class(module, name)


def main(path: Path) -> int:
    """Print `{"weights": [...], "intercept": ...}`, or what is wrong on standard error."""
    try:
        with path.open("rb") as file:
            native = "ensure_native_byte_order"  # since joblib 1.5
            known = inspect.signature(NumpyUnpickler.__init__).parameters
            model = _Closed(str(path), file, **({native: True} if native in known else {})).load()
        classes, weights = model.classes_.tolist(), model.coef_
        if len(classes) != 2 or weights.shape[0] != 1 or bool(classes[1]) is not True:
            raise ValueError(f"it tells {classes} apart, not whether something belongs")
        body = {"weights": weights[0].tolist(), "intercept": float(model.intercept_[0])}
    except Exception as error:  # noqa: BLE001 -- the edge of a process that opens anything
        sys.stderr.write(f"it cannot be converted: {' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    sys.stdout.write(json.dumps(body))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
