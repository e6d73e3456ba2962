"""The README, word for word."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import hydra
import pytest

from tta.cli import CONFIGS
from tta.compare.cli import _parser as compare_parser
from tta.data.catalogue import DATASETS, find
from tta.data.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]
    assert found, f"the README has no {program} command"
    return found


def run(*words: str, cwd: Path) -> str:
    result = subprocess.run([str(BIN / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_method_of_ones_own_as_the_readme_has_it(tmp_path: Path, demo_cache: Path) -> None:
    (example,) = (block for block in blocks("python") if "class SureTent" in block)
    (config,) = (block for block in blocks("yaml") if "sure.SureTent" in block)
    assert len(example.splitlines()) < 30
    (tmp_path / "sure.py").write_text(example)
    (tmp_path / "my_configs" / "method").mkdir(parents=True)
    (tmp_path / "my_configs" / "method" / "sure_tent.yaml").write_text(config)
    (command,) = (words for words in commands("tta") if "method=sure_tent" in words)
    output = run("tta", *command, cwd=tmp_path)
    found = re.search(r"accuracy ([\d.]+) % over 15 domain\(s\), 45000 images", output)
    assert found is not None
    assert float(found[1]) > 90  # batch statistics alone give that much


def test_every_tta_command_composes() -> None:
    for words in commands("tta"):
        overrides = [word for word in words if "=" in word]
        if "--config-dir" in words:
            continue  # run above
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            # One job of a sweep: the first of each list of values.
            firsts = [re.sub(r"=([^,\[]*),.*", r"=\1", word) for word in overrides]
            assert hydra.compose("config", firsts).seed is not None


def test_every_tta_search_command_composes() -> None:
    for words in commands("tta-search"):
        overrides = [f"++{word}" if word.startswith("search.space.") else word for word in words]
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            assert hydra.compose("search", overrides).search.space


def test_every_tta_data_command_is_understood() -> None:
    found = [_parser().parse_args(words) for words in commands("tta-data")]
    assert {options.command for options in found} == {"list", "get", "verify"}
    for options in found:
        if options.command != "list":
            assert find(options.name).choose(options.parts)


def test_every_tta_compare_command_and_option_is_understood() -> None:
    assert [compare_parser().parse_args(words).runs for words in commands("tta-compare")]
    options = {word for action in compare_parser()._actions for word in action.option_strings} - {"-h", "--help"}
    named = set(re.findall(r"^\| `(--[a-z]+)[^|]*\|", README, re.MULTILINE))
    assert options == named


def test_every_data_set_is_in_its_table() -> None:
    (table,) = re.findall(r"^\| NAME \|.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    names = [
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(names) == sorted(DATASETS)


def test_every_option_of_every_group_is_in_the_table() -> None:
    for group in ("method", "objective", "optimizer", "scenario", "stream", "model", "logger", "search", "experiment"):
        (row,) = re.findall(rf"^\| `{group}` \|(.*)\|$", README, re.MULTILINE)
        options = {path.stem for path in (CONFIGS / group).glob("*.yaml")}
        assert set(re.findall(r"`([a-z0-9_]+)`", row)) >= options, group


def test_every_launcher_and_its_extra_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `pip install 'tta\[(\w+)\]'` \|$", README, re.MULTILINE))
    assert sorted(rows) == sorted(path.stem for path in (CONFIGS / "hydra" / "launcher").glob("*.yaml"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(extra in extras for extra in rows.values())


def test_every_method_is_in_its_document() -> None:
    document = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", document.partition("## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


def test_files_the_readme_names_are_there() -> None:
    parts = re.findall(r"^(?:configs/|tta/[\w./]+)", README, re.MULTILINE)
    documents = re.findall(r"\]\((docs/[^)]+)\)", README)
    assert parts
    assert documents
    for path in parts:
        assert (ROOT / path).exists(), path
    for path in documents:
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("target", ["help", "run", "test", "check"])
def test_make_knows_the_targets(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tables_are_those_of_the_documents() -> None:
    names = re.findall(r"^<!-- table:(\w+) -->$", README, re.MULTILINE)
    assert names
    for name in names:
        (shown,) = re.findall(rf"<!-- table:{name} -->\n(.*?)<!-- /table -->", README, re.DOTALL)
        made = (ROOT / "docs" / f"{name}.md").read_text()
        assert shown
        assert shown in made
        # The commands and their dates.
        assert re.search(r"^Runs: `tta .*`; (\d{4}-\d\d-\d\d(, )?)+; torch ", made, re.MULTILINE)
