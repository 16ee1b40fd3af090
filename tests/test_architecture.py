"""Who may import whom, what the base install needs, and that nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
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
        assert top not in ("dill", "cloudpickle", "joblib", "shelve", "marshal"), f"{path} imports {module}"
        if top in ("moshi", "nemo"):
            assert path.parent.name == "extractors", f"{path} imports {module}: only encoders may"
        if top == "torch" and path.relative_to(ROOT).parts[0] == "evaluation":
            raise AssertionError(f"{path} imports torch: numbers must not need it")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_runs_text(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError", f"{path}:{node.lineno} uses pickle.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            assert [a.name for a in node.names] == ["UnpicklingError"], f"{path}:{node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in ("eval", "exec", "yaml.unsafe_load"), f"{path}:{node.lineno} calls {name}"
        if name == "yaml.load":  # the safe loader, in C where there is one
            assert settings.get("Loader") == "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)", f"{path}:{node.lineno}"
        if name == "torch.load":
            assert settings.get("weights_only") == "True", f"{path}:{node.lineno}"
        assert settings.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"


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
        assert "pip install 'whowhen[extract]'" in str(error), error
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
