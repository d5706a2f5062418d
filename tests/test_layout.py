"""The import direction, kept over the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vadtune"
# Later layers import earlier ones, never back.
LAYERS = [
    {"errors"},
    {"files", "workers"},
    {"domains", "table_files"},
    {"runs"},
    {"config"},
    {"search_file", "randomness", "optimiser", "default_space", "native"},
    {"data"},
    {"model", "import_config"},
    {"metrics", "shapes"},
    {"batches"},
    {"machine_code", "member"},
    {"inference", "compiled"},
    {"stack"},
    {"training"},
    {"evaluation"},
    {"checkpoint", "ensemble", "refit"},
    {"kernel_regression"},
    {"ensemble_folder"},
    {"tracking"},
    {"search"},
    {"baselines", "masks", "results"},
    {"impute", "predictions"},
    {"members"},
    {"export", "retest"},
    {"compare", "preview", "retest_clean"},
    {"report"},
    {"plots"},
    {"cli"},
]
# Heavy or external libraries and the only places that may import them.
ONLY_IN = {
    "numba": {"native"},
    "ray": {"search"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "pydantic": {"config", "search_file"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__"))


def layer_of(module: str) -> int:
    for index, layer in enumerate(LAYERS):
        if module in layer:
            return index
    raise AssertionError(f"vadtune.{module} has no place in LAYERS")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {f"vadtune.{alias.name}" for alias in node.names} if node.module == "vadtune" else {node.module}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "vadtune" and len(parts) > 1 and parts[1] not in {own, "__version__"}:
            assert layer_of(parts[1]) < layer_of(own), f"{path.name} imports {name}"
        if parts[0] in ONLY_IN:
            assert own in ONLY_IN[parts[0]], f"{path.name} imports {name}"


def test_help_pays_for_no_heavy_import() -> None:
    import subprocess
    import sys

    heavy = {"torch", "ray", "mlflow", "optuna", "sklearn", "pandas", "matplotlib", "pydantic"}
    code = f"import sys, vadtune.cli; vadtune.cli.build_parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
