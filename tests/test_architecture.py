"""Who may import whom, what the base install needs, and that nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Lower may not import higher.
ORDER = ("featstore", "evaluation", "trainers", "cli")
FILES = sorted(p for package in ORDER for p in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    rank = ORDER.index(path.relative_to(ROOT).parts[0])
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in ORDER[rank + 1 :], f"{path} imports {module}"
        if top in ("moshi", "nemo"):
            assert path.parent.name == "extractors", f"{path} imports {module}: only encoders may"
        if top == "torch" and path.relative_to(ROOT).parts[0] == "evaluation":
            raise AssertionError(f"{path} imports torch: numbers must not need it")


#: All code but the tests, which make pickles to attack with.
CODE = sorted(p for package in (*ORDER, "benchmarks", "data_manifests", "nano") for p in (ROOT / package).rglob("*.py"))
#: pandas has read_pickle, joblib and the rest are made of pickle.
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "pandas", "shelve"}
#: Exceptions have to be caught.
HARMLESS = "pickle.UnpicklingError"
LOADERS = ("torch.load", "torch.serialization.load", "numpy.load")


def dangers(source: str) -> Iterator[str]:
    """What in a module could unpickle or run text, by line."""
    nodes = list(ast.walk(ast.parse(source)))
    names: dict[str, str] = {}  # what a local name stands for: an alias hides nothing
    for node in nodes:
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {alias.asname or alias.name: name for alias, name in zip(node.names, found, strict=True)}
        else:
            continue
        for name in found:
            unpickles = name.split(".")[0] in UNPICKLERS and name != HARMLESS
            if unpickles or name in LOADERS or name in ("torch.*", "numpy.*"):
                yield f"{node.lineno}: imports {name}"
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and node not in called and _meant(node, names) in LOADERS:
            yield f"{node.lineno}: hands on {_meant(node, names)}"
        if isinstance(node, ast.Call) and (problem := _problem(node, _meant(node.func, names))):
            yield f"{node.lineno}: {problem}"


def _meant(node: ast.AST, names: dict[str, str]) -> str:
    head, dot, rest = ast.unparse(node).partition(".")
    return names.get(head, head) + dot + rest


def _problem(call: ast.Call, name: str) -> str:
    settings = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in ("eval", "exec", "__import__", "yaml.unsafe_load"):
        return f"calls {name}"
    what = ast.unparse(call.args[0]).strip("'") if call.args else ""
    if name == "importlib.import_module" and what.split(".")[0] in UNPICKLERS:
        return f"imports {what}"
    if name == "yaml.load" and settings.get("Loader") != "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)":
        return "yaml.load without the safe loader (in C where there is one)"
    if name in LOADERS and (
        None in settings or len(call.args) > 1 or any(isinstance(a, ast.Starred) for a in call.args)
    ):
        return f"{name} with settings that cannot be seen"
    if name in LOADERS[:2] and settings.get("weights_only") != "True":
        return f"{name} without weights_only=True"
    return "" if settings.get("allow_pickle", "False") == "False" else "allow_pickle"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_runs_text(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle as p; p.loads(x)",
        "from pickle import loads",
        "import _pickle; _pickle.loads(x)",
        "import dill",
        "import os, joblib.numpy_pickle",
        "import shelve",
        "from marshal import loads as f",
        "def f():\n    import pandas as pd\n    pd.read_pickle(x)",
        "__import__('pickle').loads(x)",
        "import importlib; importlib.import_module('pickle')",
        "from importlib import import_module; import_module('_pickle')",
        "from torch import load",
        "from torch import *",
        "from numpy import load as safe",
        "import torch; torch.load(x)",
        "import torch as t; t.load(x)",
        "import torch; torch.load(x, weights_only=False)",
        "import torch; torch.load(x, **settings)",
        "import torch; f = torch.load",
        "from torch import serialization as s; s.load(x)",
        "import numpy as np; np.load(x, allow_pickle=True)",
        "import numpy as np; np.load(x, **{'allow_pickle': True})",
        "import numpy as n; n.load(x, 'r', True)",
        "import numpy as np; np.load(*x)",
        "import numpy as np; np.lib.format.read_array(x, allow_pickle=yes)",
        "import yaml; yaml.load(x, Loader=yaml.Loader)",
        "import yaml as y; y.unsafe_load(x)",
        "eval(x)",
    ],
)
def test_each_way_to_unpickle_is_seen(source: str) -> None:
    assert list(dangers(source))


def test_what_only_looks_like_unpickling_is_allowed() -> None:
    source = (
        "from pickle import UnpicklingError\nimport torch as t, numpy as np, json\n"
        "t.load(x, weights_only=True); np.load(x, mmap_mode='r'); np.load(x, allow_pickle=False); json.load(x)"
    )
    assert list(dangers(source)) == []


def test_the_base_install_needs_neither_moshi_nor_nemo(tmp_path: Path) -> None:
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("moshi", "nemo", "datasets", "huggingface_hub", "lightning", "lhotse", "transformers"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib, pathlib
for package in ("featstore", "evaluation", "trainers", "cli"):
    for path in sorted(pathlib.Path(package).rglob("*.py")):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(module)
from featstore import extractors
for name in ("mimi", "titanet"):
    try:
        extractors.create(name, weights="random:0")
        raise SystemExit(f"{name} was made without its package")
    except ValueError as error:
        assert "pip install -e '.[extract]'" in str(error), error
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


def test_commands_start_without_heavy_imports() -> None:
    script = (
        "import sys, cli.featstore, cli.trainers, cli.evaluation\n"
        "heavy = {'torch', 'zarr', 'sklearn', 'matplotlib', 'moshi', 'nemo', 'pyarrow', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported at start: {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
