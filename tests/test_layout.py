"""The order of the packages, checked on the syntax trees: each may import those before it, never those after it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vadtune"
ORDER = (
    *("core", "tables", "data", "config", "native", "models", "training", "artifacts", "tracking", "search"),
    *("ensemble", "evaluation", "reports", "compat", "cli"),
)
# Heavy or external libraries, and the only packages that may import them.
ONLY_IN = {
    "numba": {"native"},
    "ray": {"search"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "pydantic": {"core", "data", "config"},
    "h5py": {"data", "evaluation"},
    "torchvision": {"data"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imported(path: Path) -> set[str]:
    """Returns the dotted names of the modules a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {f"vadtune.{alias.name}" for alias in node.names} if node.module == "vadtune" else {node.module}
    return names


def test_every_package_has_its_place_in_the_order() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(PACKAGE).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "vadtune" and len(parts) > 1 and parts[1] != "__version__":
            assert ORDER.index(parts[1]) <= ORDER.index(package), f"{path.name} imports {name}"
        if parts[0] in ONLY_IN:
            assert package in ONLY_IN[parts[0]], f"{path.name} imports {name}"


def test_help_pays_for_no_heavy_import() -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "sklearn", "pandas", "matplotlib", "pydantic"}
    code = f"import sys, vadtune.cli; vadtune.cli.build_parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checking_a_file_imports_no_library_that_computes() -> None:
    heavy = {"torch", "sklearn", "scipy", "pandas", "pyarrow", "h5py", "torchvision", "numba", "ray", "mlflow"}
    code = (
        "import sys; from vadtune.config import load_search; "
        f"load_search('search_spaces/digits.yaml').trial_config({{}}); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"
