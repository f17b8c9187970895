"""What a server holds in memory without using it: modules, and what a load has freed. Each in a process of its own."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.covariance import MinCovDet
from sklearn.datasets import load_iris
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, SplineTransformer

from mlimg.runtime.server.seldom import _OF_SCIPY

ROOT = Path(__file__).parents[4]
IRIS = load_iris()
SERVER = """\
import builtins, json, sys
from pathlib import Path
import numpy as np
import mlimg.runtime.server.lifecycle, mlimg.runtime.server.serve
from mlimg.runtime.server.handler import import_handler

as_it_was = builtins.__import__
handler = import_handler(Path(sys.argv[1]))
model = handler.load(Path(sys.argv[2]), {})
answer = handler.predict(model, {"input": np.array(rows)}) if (rows := json.loads(sys.argv[3])) else {}
assert builtins.__import__ is as_it_was
print(json.dumps([[array.tolist() for array in answer.values()], list(sys.modules)]))
"""
FRAGMENTS = """\
import re, sys
from pathlib import Path
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.model import load_model

def resident_kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def load(folder, options):
    garbage = [bytes(1024) for _ in range(64 * 1024)]
    kept = garbage[::1024]  # the last among them: nothing is free at the heap's end
    garbage.clear()
    print(resident_kib())
    return kept

here = Path()
handler = Handler(here, load, lambda model, inputs: inputs, None, None)
model = load_model(handler, PreparedModel(here, None, "", 0, 0.0, True), ServerFacts("x", "1", (), (), {}))
settle()
print(resident_kib())
"""


def run(*command: object) -> str:
    told = subprocess.run([sys.executable, "-c", *map(str, command)], check=True, capture_output=True, cwd=ROOT)
    return told.stdout.decode()


def serve(
    model: Any, folder: Path, handler: Path = ROOT / "templates" / "sklearn", rows: Any = IRIS.data[:5]
) -> tuple[list[Any], set[str]]:
    """What a handler answers to `rows`, if there are any, and the modules that are there afterwards."""
    joblib.dump(model, folder / "model.joblib")
    sent = None if rows is None else rows.tolist()
    answer, modules = json.loads(run(SERVER, handler, folder, json.dumps(sent)))
    return answer, set(modules)


def test_a_server_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    model = LogisticRegression(max_iter=500).fit(IRIS.data, IRIS.target)
    (answer,), modules = serve(model, tmp_path)
    assert answer == model.predict(IRIS.data[:5]).tolist()
    assert {"sklearn.linear_model", "scipy.special", "uvicorn"} <= modules
    assert not modules & {"scipy.stats", "scipy.optimize", "scipy.integrate", "scipy.interpolate", "scipy.spatial"}
    assert not modules & {"numpy.testing", "numpy.f2py", "numpy.polynomial", "unittest", "pydoc", "pandas", "skops"}
    assert not modules & {"mlimg.runtime.fetch", "mlimg.runtime.oci", "urllib3", "grpc"}


def test_what_a_model_uses_is_imported(tmp_path: Path) -> None:
    normal = QuantileTransformer(n_quantiles=20, output_distribution="normal")  # of scipy.stats
    model = make_pipeline(normal, LogisticRegression()).fit(IRIS.data, IRIS.target)
    (answer,), modules = serve(model, tmp_path)
    assert answer == model.predict(IRIS.data[:5]).tolist()
    assert "scipy.stats" in modules
    assert "pandas" not in modules


def test_pandas_is_there_before_the_first_request_for_a_model_of_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0], "color": ["red", "green", "red"]})  # text: no warm-up asks for it
    model = make_pipeline(make_column_transformer((OneHotEncoder(), ["color"])), LinearRegression())
    assert "pandas" in serve(model.fit(frame, [1, 2, 3]), tmp_path, rows=None)[1]


def test_what_scikit_learn_takes_by_name_answers_as_ever(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(
        "import numpy as np\n"
        "from sklearn.covariance import MinCovDet\n"  # scipy.stats.chi2
        "from sklearn.metrics import label_ranking_average_precision_score\n"  # scipy.stats.rankdata
        "def load(folder, options): return MinCovDet(random_state=0)\n"
        "def predict(model, inputs):\n"
        "    rows = inputs['input']\n"
        "    np.testing.assert_array_equal(rows, rows)\n"
        "    score = label_ranking_average_precision_score(np.eye(5)[:, :4], rows)\n"
        "    return {'told': np.array([score, *model.fit(rows[:, :2]).location_])}\n"
    )
    rows = IRIS.data[:5]
    (answer,), modules = serve(None, tmp_path, tmp_path)
    score = label_ranking_average_precision_score(np.eye(5)[:, :4], rows)
    assert answer == [score, *MinCovDet(random_state=0).fit(rows[:, :2]).location_]
    assert {"scipy.stats", "numpy.testing"} <= modules


def test_a_handler_imports_all_of_it_as_anywhere_else(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(
        "import sklearn.utils.fixes\n"
        "import scipy.stats\n"
        "from numpy.testing import assert_allclose\n"
        "from scipy.stats import norm, rv_continuous\n"
        "from scipy.stats.mstats import gmean\n"
        "class Own(rv_continuous): pass\n"
        "def load(folder, options): return scipy.stats.norm\n"
        "def predict(model, inputs): return {'same': inputs['input'][0] * (model is norm)}\n"
    )
    (answer,), modules = serve(None, tmp_path, tmp_path)
    assert answer == IRIS.data[0].tolist()
    assert {"scipy.stats", "numpy.testing"} <= modules


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, and glibc's malloc_trim")
def test_what_a_load_has_freed_goes_back_to_the_kernel() -> None:
    before, after = map(int, run(FRAGMENTS).split())
    assert before - after > 40 * 1024


TAKER = """\
import sys
import scipy
from mlimg.runtime.server.seldom import imported_when_used

names = {"__name__": "sklearn.of_tomorrow"}
with imported_when_used():
    exec("from scipy.interpolate import BSpline", names)
stand_in = names["BSpline"]
print("scipy.interpolate" not in sys.modules)
exec("class Own(BSpline): pass", names)
from scipy.interpolate import BSpline
print(stand_in is not BSpline, names["Own"].__mro__[1] is BSpline)
print(isinstance(BSpline([0, 1], [1.0], 0), stand_in), isinstance(1, stand_in))
"""


def test_a_class_that_scikit_learn_takes_is_one_to_derive_from_and_to_ask_isinstance() -> None:
    assert run(TAKER).split() == ["True", "True", "True", "True", "False"]


STATEMENTS = """\
import json, sys
from mlimg.runtime.server.seldom import imported_when_used

names = {"__name__": "sklearn.of_tomorrow"}
with imported_when_used():
    exec(sys.argv[1], names)
there = "scipy." + sys.argv[2] in sys.modules
print(json.dumps([there, bool(eval(sys.argv[3], names))]))
"""


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("from scipy import linalg, optimize, sparse", "optimize.brent(abs) < 1e-6"),
        ("import scipy.optimize", "scipy.optimize.brent(abs) < 1e-6"),
        ("import scipy.optimize as part", "part.brent(abs) < 1e-6"),
        ("from scipy.optimize import minimize_scalar", "minimize_scalar(abs).fun < 1e-6"),
        (
            "from scipy.optimize._linesearch import line_search_wolfe2",
            "line_search_wolfe2.__name__[:11] == 'line_search'",
        ),
        ("from scipy.spatial import distance", "distance.cdist([[0]], [[3]]).tolist() == [[3.0]]"),
        ("from scipy.spatial.distance import cdist as far", "far([[0]], [[3]]).tolist() == [[3.0]]"),
        ("from scipy.integrate import trapezoid", "trapezoid([1, 1, 1]) == 2"),
        ("from scipy.stats.mstats import mquantiles", "mquantiles([1, 2, 3]).tolist()[1] == 2"),
    ],
)
def test_a_part_of_scipy_is_imported_when_what_was_taken_of_it_is_used(statement: str, use: str) -> None:
    part = re.search("optimize|spatial|integrate|stats", statement)
    assert json.loads(run(STATEMENTS, statement, part and part[0], use)) == [False, True]


def test_what_is_not_there_is_missed_at_once() -> None:
    statement = "try:\n from scipy.integrate import of_tomorrow\nexcept ImportError:\n of_tomorrow = None"
    assert json.loads(run(STATEMENTS, statement, "integrate", "of_tomorrow is None")) == [True, True]


LIBRARY = """\
import sys
from mlimg.runtime.server.seldom import imported_when_used

with imported_when_used():
    import joblib.memory
print("asyncio" in sys.modules)
async def told(): return 5
print(joblib.memory.asyncio.run(told()))
"""


def test_what_is_taken_of_the_standard_library_answers_as_ever() -> None:
    assert run(LIBRARY).split() == ["False", "5"]


@pytest.mark.parametrize("part", _OF_SCIPY)
def test_all_that_is_not_imported_for_scikit_learn_is_there(part: str) -> None:
    module = importlib.import_module(part)
    assert not [name for name in _OF_SCIPY[part] if not hasattr(module, name)]


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (GaussianProcessRegressor(), "spatial"),
        (make_pipeline(SplineTransformer(), LinearRegression()), "interpolate"),
        (IsotonicRegression(), "interpolate"),
    ],
)
def test_models_that_use_parts_of_scipy_answer_as_ever(model: Any, part: str, tmp_path: Path) -> None:
    rows = IRIS.data[:, :1]
    model.fit(rows, IRIS.target)
    (answer,), modules = serve(model, tmp_path, rows=rows[:5])
    assert answer == model.predict(rows[:5]).tolist()
    assert f"scipy.{part}" in modules
    assert "scipy.stats" not in modules


COPIED = """\
import builtins, copy, pickle
import numpy
from mlimg.runtime.server.seldom import imported_when_used

before = builtins.__import__
hook = lambda *args, **kwargs: before(*args, **kwargs)
names = {"__name__": "sklearn.of_tomorrow", "__package__": "sklearn"}
with imported_when_used():
    exec("from scipy.stats import rankdata", names)
    try:
        exec("from .scipy.stats import rankdata", dict(names))
    except ModuleNotFoundError:
        print("no such module")
    testing = vars(numpy)["testing"]
    builtins.__import__ = hook
taken = names["rankdata"]
for copied in (copy.copy(taken), copy.deepcopy(taken), pickle.loads(pickle.dumps(taken))):
    print(copied([3, 1, 2]).tolist() == [3, 1, 2])
print(builtins.__import__ is hook)
print("assert_allclose" in dir(testing))
"""


def test_a_stand_in_can_be_copied_and_a_hook_of_the_handlers_stays() -> None:
    assert run(COPIED).splitlines() == ["no such module", *["True"] * 5]
