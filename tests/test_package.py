"""The wheel works without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.mark.slow
def test_wheel__holds_modules_and_configurations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "tta").rglob("*.py"):
        assert file.relative_to(ROOT).as_posix() in names
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert f"tta/{file.relative_to(ROOT).as_posix()}" in names
    assert {"tta/py.typed", "tta/models/demo.safetensors", "tta/compare/published.yaml"} <= names
    assert not any(name.startswith(("tests/", "configs/", "scripts/")) for name in names)


@pytest.mark.slow
def test_wheel__composes_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv = ['tta', '--cfg', 'job', 'method=adadem']; "
        "import tta.cli; assert tta.cli.__file__.startswith(sys.path[0]), tta.cli.__file__; tta.cli.main()"
    )
    work = tmp_path / "elsewhere"
    work.mkdir()
    result = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "tta.methods.Tent" in result.stdout


def test_imports__have_no_cycle() -> None:
    """Neither of modules within a package, nor of packages; what is imported for its type alone does not count."""
    graph = grimp.build_graph("tta", exclude_type_checking_imports=True, cache_dir=None)
    packages = {module.rpartition(".")[0] for module in graph.modules} - {""}
    assert {"tta", "tta.methods", "tta.streams", "tta.runs"} <= packages
    assert {package: found for package in packages if (found := graph.nominate_cycle_breakers(package))} == {}


HEAVY = {"torch", "torchvision", "timm", "wandb", "robustbench", "optuna", "matplotlib", "plotly", "ray", "pandas"}
HEAVY |= {"scipy", "numpy", "torchmetrics", "PIL", "rich", "mlxtend", "safetensors", "requests"}


def test_help__imports_nothing_heavy() -> None:
    """Neither does importing the package; both commands in one process, which begins once."""
    code = (
        "import sys, tta, tta.cli, tta.search.cli; sys.argv = ['tta', '--help']; tta.cli.main(); "
        f"tta.search.cli.main(); print(*sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert done.stdout
