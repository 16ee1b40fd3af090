"""Who may import whom, how long a file may be, what the base install needs, and that nothing unpickles."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: What ships, and beside it the scripts.
PACKAGES = ("featstore", "evaluation", "trainers", "diarizer", "cli")
SCRIPTS = ("nano", "benchmarks", "data_manifests", "examples")
#: A module may import from its own room and from the floors before. `featstore` stands for what is in no room of it.
FLOORS = (
    ("featstore.types", "featstore.files", "featstore.settings"),
    ("featstore.store", "featstore.corpora", "featstore.extractors"),
    ("featstore.upkeep", "featstore.remote", "featstore.jobs", "featstore.simulation", "featstore.exchange"),
    ("featstore",),
    ("evaluation",),
    ("trainers",),
    ("diarizer",),
    ("cli",),
    SCRIPTS,
)
MAX_LINES = 300

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in (*PACKAGES, *SCRIPTS)
    for path in sorted((ROOT / package).rglob("*.py"))
}
SHIPPED = [name for name in MODULES if name.split(".")[0] in PACKAGES]


def statements(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs, and whether only when a function does: not what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child, inside
        yield from statements(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


@cache
def imports(module: str) -> dict[str, bool]:
    """What a module imports, and whether only inside of functions."""
    found: dict[str, bool] = {}
    for node, inside in statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute here"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else str(node.module) for member in members]
        else:
            continue
        found |= {name: inside and found.get(name, True) for name in names}
    return found


def room(module: str) -> tuple[int, str]:
    """The floor of a module, and its room there."""
    pieces = module.split(".")
    names = (".".join(pieces[:2]), pieces[0])
    return next((floor, name) for name in names for floor, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("module", list(MODULES))
def test_imports_only_go_down(module: str) -> None:
    own = room(module)
    for name in imports(module):
        if name in MODULES:
            assert room(name) == own or room(name)[0] < own[0], f"{module} imports {name}"
        top = name.split(".")[0]
        if top in ("moshi", "nemo"):
            beside = module == "diarizer.serve.moshi"  # it starts Moshi's own server
            assert beside or own[1] == "featstore.extractors", f"{module} imports {name}: only encoders may"
        if top == "torch":
            assert own[1] != "evaluation", f"{module} imports torch: numbers must not need it"


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: [name for name in imports(module) if name in MODULES] for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


@pytest.mark.parametrize("module", list(MODULES))
def test_no_module_is_long(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{MODULES[module].relative_to(ROOT)} has {lines} lines: which two subjects are in it?"


def test_each_installed_package_tells_its_types() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []


# ---- what is installed


@cache
def requirements() -> tuple[set[str], set[str], set[str]]:
    """Names that pyproject.toml declares: the base install's, those of its extras, those of its groups."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    groups = [line for lines in project["dependency-groups"].values() for line in lines]
    named = [
        {normal(re.split(r"[\[<>=]", x)[0]) for x in lines}
        for lines in (project["project"]["dependencies"], extras, groups)
    ]
    return named[0], named[1], named[2]


distributions = cache(packages_distributions)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("module", MODULES)
def test_what_is_imported_is_declared(module: str) -> None:
    base, extras, groups = requirements()
    for name, inside in imports(module).items():
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in (*PACKAGES, *SCRIPTS):
            continue
        of = {normal(found) for found in distributions().get(top, [top])}
        allowed = base | extras | groups if module not in SHIPPED else base | extras if inside else base
        assert of & allowed, f"{module} imports {name}, which pyproject.toml does not name" + (
            "" if inside or not of & extras else " outside of its extras: import it inside of a function"
        )


def test_the_base_install_needs_neither_moshi_nor_nemo(tmp_path: Path) -> None:
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("moshi", "nemo", "datasets", "huggingface_hub", "lightning", "lhotse", "transformers"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib, pathlib
for package in ("featstore", "evaluation", "trainers", "diarizer", "cli"):
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
        "import sys, cli.featstore, cli.trainers, cli.evaluation, cli.whowhen\n"
        "heavy = {'torch', 'zarr', 'sklearn', 'matplotlib', 'moshi', 'nemo', 'pyarrow', 'pydantic', 'pyannote.core', 'scipy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported at start: {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


# ---- nothing unpickles: ruff sees it, by the rules and names in pyproject.toml

#: F403: behind a star, a name cannot be followed.
RULES = "S102,S301,S302,S307,S506,TID251,F403"
#: What ruff does not see: imports of what a text says (a variable may, if it comes from a table of ours), a setting.
UNSEEN = re.compile(r"__import__|allow_pickle|import_module\(\s*[\"']")
#: All that may stand where ruff finds a danger, whatever its line says to ruff.
ALLOWED = (
    r"from pickle import UnpicklingError$",  # it has to be caught
    r"torch\.load\([^*]*, weights_only=True\)$",
    r'getattr\(yaml, "CSafeLoader", yaml\.SafeLoader\)\)$',  # the safe loader, in C where there is one
    r"np\.load\([^,*]+(, mmap_mode=\"r\")?\)",  # refuses pickles unless told otherwise
)


def dangers(*folders: Path) -> list[tuple[str, str]]:
    """(File's name, the line from there on) of whatever could unpickle or run text and is not allowed."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--ignore-noqa", "--output-format", "json"]
    options = ["--config", str(ROOT / "pyproject.toml"), "--select", RULES]
    checked = subprocess.run([*command, *options, *map(str, folders)], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode in (0, 1), checked.stderr
    found = []
    for finding in json.loads(checked.stdout):
        path, at = Path(finding["filename"]), finding["location"]
        line = path.read_text(encoding="utf-8").splitlines()[at["row"] - 1][at["column"] - 1 :].split("  # noqa")[0]
        if not any(re.match(pattern, line) for pattern in ALLOWED):
            found.append((path.name, line))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        found += [(path.name, words) for words in UNSEEN.findall(path.read_text(encoding="utf-8"))]
    return found


def test_nothing_unpickles_or_runs_text() -> None:
    assert dangers(*(ROOT / package for package in (*PACKAGES, *SCRIPTS))) == []


WAYS = [
    "import pickle as p; p.loads(x)",
    "from pickle import loads",
    "from pickle import *",
    "from pickle import UnpicklingError, loads",
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
    "import torch; torch.load(x)  # noqa: TID251",
    "import torch; f = torch.load",
    "from torch import serialization as s; s.load(x)",
    "import numpy as np; np.load(x, allow_pickle=True)",
    "import numpy as np; np.load(x, **{'allow_pickle': True})",
    "import numpy as n; n.load(x, 'r', True)",
    "import numpy as np; np.load(x, 'r', True)",
    "import numpy as np; np.load(*x)",
    "import numpy as np; np.lib.format.read_array(x, allow_pickle=yes)",
    "import yaml; yaml.load(x, Loader=yaml.Loader)",
    "import yaml as y; y.unsafe_load(x)",
    "eval(x)",
    "exec(x)",
]


def test_each_way_to_unpickle_is_seen(tmp_path: Path) -> None:
    for number, source in enumerate(WAYS):
        (tmp_path / f"{number:02d}.py").write_text(source + "\n")
    seen = {name for name, _ in dangers(tmp_path)}
    assert [source for number, source in enumerate(WAYS) if f"{number:02d}.py" not in seen] == []


def test_what_only_looks_like_unpickling_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "harmless.py").write_text(
        "from pickle import UnpicklingError\nimport torch, numpy as np, json\n"
        'torch.load(x, weights_only=True)\nnp.load(x, mmap_mode="r"); np.load(x); json.load(x); import_module(name)\n'
    )
    assert dangers(tmp_path) == []
