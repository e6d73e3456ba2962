"""The README and the guides in docs/: their code runs, and what they name is there."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from helpers.backbones import small_net, varied_images
from helpers.compositions import composed
from helpers.documents import PAGES, README, ROOT, blocks, commands, files, prose
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, classify, weights_of
from helpers.scripts import load_script
from tta import compare
from tta.cli import CONFIGS, dotted_keys
from tta.config.instantiate import plain
from tta.data import cli as data_cli
from tta.data.catalogue import DATASETS, find

GUIDES = [page for page in PAGES if page.read_text().startswith("# ")]
GROUPS = ("model", "stream", "scenario", "objective", "optimizer", "method", "logger", "search", "hydra/launcher")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_cache: Path) -> Path:
    """One folder for all pages, with the files that the README shows; a run that one has done is found by another."""
    folder = tmp_path_factory.mktemp("reader")
    for name, content in files(README).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


class TestBlocks:
    """Every block of commands runs, unless it needs what is not there."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "page",
        [page for page in GUIDES[1:] if any(block.runs for block in blocks("sh", page=page))],
        ids=lambda page: page.name,
    )
    def test_guide__blocks_run(self, folder: Path, page: Path) -> None:
        for block in blocks("sh", page=page):
            if block.runs:
                block.run(folder)
        begun = {config.parent for config in folder.glob("runs/**/config.yaml")}
        assert begun == {summary.parent for summary in folder.glob("runs/**/summary.json")} != set()

    @pytest.mark.slow
    def test_readme__blocks_run(self, folder: Path) -> None:
        def run(name: str) -> dict[str, Any]:
            return json.loads(next(folder.glob(f"runs/**/{name}_*/summary.json")).read_text())

        for block in blocks("sh", page=README):
            if block.runs:
                block.run(folder)
        sure, source = (run(f"demo_single_domain_demo_{method}") for method in ("sure_tent", "source"))
        assert sure["images"] == source["images"] == 100
        assert sure["accuracy"] > source["accuracy"] + 0.2  # what statistics of the batch alone give under fog and snow
        gini = run("turned_single_domain_demo_tent_gini")
        assert [(d["domain"], d["n"]) for d in gini["domains"]] == [(f"turned_{a}", 3000) for a in (90, 180, 270)]
        assert run("turned_single_domain_torchvision_tent_em")["weights"] == "torchvision:resnet18@None"
        left = {file.name for file in (folder / "runs" / "seeds").glob("comparison*")}
        assert left >= {"comparison.md", "comparison.tex", "comparison.csv", "comparison.html", "comparison.png"}

    def test_python__is_tent_by_hand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The block of the README on a network of one's own, which comes back as it was."""
        monkeypatch.chdir(tmp_path)
        (block,) = (block for block in blocks("python", page=README) if "Tent(net," in block.text)
        net = small_net("batch").double()
        images = [varied_images(8, seed).double() for seed in range(3)]
        before, predicted = copy.deepcopy(net.state_dict()), []

        def batches() -> Iterator[Tensor]:
            for batch in images:
                yield batch
                predicted.append(names["logits"])

        names: dict[str, Any] = {"net": net, "batches": batches()}
        exec(block.text, names)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

        steps, objective = PlainSGD(weights_of(net), NORM, lr=0.001, momentum=0.9), PlainAdaDEM()
        for batch, logits in zip(images, predicted, strict=True):
            leaves = steps.leaves()
            expected = classify(leaves, batch)
            torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-9)
            steps.step(objective(expected).mean(), leaves)
        # Restored: what three steps made of it, not what it was at first.
        adapted = classify(steps.weights, images[-1])
        torch.testing.assert_close(names["logits"], adapted, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(adapted, classify(weights_of(net), images[-1]), rtol=1e-6, atol=1e-6)

        names["method"].reset()
        for batch, logits in zip(images, predicted, strict=True):
            assert torch.equal(names["method"](batch), logits)


class TestCommands:
    """Commands that need data or devices are at least ones that there are."""

    def test_programs__are_known(self) -> None:
        programs = {words[words[0] == "python"] for block in blocks("sh") for words in block.commands}
        scripts = {program for program in programs if program.startswith("scripts/")}
        assert programs - scripts == {"tta", "tta-compare", "tta-search", "tta-data", "make"}
        assert all((ROOT / script).is_file() for script in scripts)

    def test_tta__composes(self) -> None:
        for words in commands("tta"):
            if "--config-dir" not in words:  # run above
                assert composed(*(first_of(word) for word in words if "=" in word)).seed is not None

    def test_tta_search__composes(self) -> None:
        for words in commands("tta-search"):
            overrides = [f"++{word}" if word.startswith("search.space.") else word for word in words]
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
                assert hydra.compose("search", overrides).search.space

    def test_tta_data__is_understood(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("get", "verify"):
            monkeypatch.setattr(data_cli, name, lambda name, root, parts, *_: find(name).choose(parts))
        found = commands("tta-data")
        for words in found:
            data_cli.main(words)
        assert {words[0] for words in found} == {"list", "get", "verify"}
        text = "".join(page.read_text() for page in GUIDES)
        assert all(f"`{name}`" in text for name in DATASETS)

    def test_tta_compare__is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for words in commands("tta-compare"):
            with pytest.raises(SystemExit) as error:  # there are no runs here
                compare.main(words)
            assert error.value.code != 2, words  # argparse's, for an option that it does not know

    def test_scripts__are_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for block in blocks("sh"):
            for words in block.commands:
                script = words[words[0] == "python"]
                if not script.startswith("scripts/"):
                    continue
                name, *study = Path(script).stem.split("_", 1) if script.endswith(".sh") else [Path(script).stem]
                arguments = [*study, *words[1 + (words[0] == "python") :]]
                monkeypatch.setattr(sys, "argv", [script, *arguments])
                with pytest.raises(SystemExit) as error:  # what they need is not here
                    load_script(name).main()
                assert error.value.code != 2, words

    def test_make__has_every_target(self) -> None:
        for target in {words[0] for words in commands("make")} | {"help", "check"}:
            done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def first_of(word: str) -> str:
    """The first of a list of values."""
    return re.sub(r"=([^,\[]*),.*", r"=\1", word)


class TestOptions:
    def test_options__in_the_text_compose(self) -> None:
        words = {word for page in GUIDES for word in options_in(page)}
        assert len(words) > 30
        apart: dict[tuple[str, ...], list[str]] = {}
        for word in sorted(words):
            key, _, value = word.partition("=")
            if (CONFIGS / key).is_dir():
                assert all((CONFIGS / key / f"{option}.yaml").is_file() for option in value.split(",")), word
            else:
                apart.setdefault(context(key), []).append(first_of(word))
        for needed, together in apart.items():
            if needed and needed[0].startswith("search"):
                with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
                    assert hydra.compose("search", together)
            else:
                assert composed(*needed, *together)

    def test_options__are_all_named(self) -> None:
        text = "".join(prose(page) for page in GUIDES)
        options = [file for group in GROUPS for file in (CONFIGS / group).glob("*.yaml")]
        assert len(options) > 50
        assert [file for file in options if not re.search(rf"`(\S+=)?{file.stem}`", text)] == []


def options_in(page: Path) -> Iterator[str]:
    """Words KEY=VALUE in the text of a page, of keys that the configuration has a beginning of."""
    known = {*composed(), "hydra", "hydra/launcher", "search", *GROUPS}
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        if "(" in span or "--config-dir" in span:  # Python, or with files of one's own
            continue
        for word in shlex.split(span):
            key, is_option, value = word.partition("=")
            if is_option and value and value not in ("...", "n") and "<" not in value and key.split(".")[0] in known:
                yield word


def context(key: str) -> tuple[str, ...]:
    """The choice of an option that has this key, if the defaults have not."""
    if key.startswith("search."):
        return ("search",)
    if OmegaConf.select(composed(), key, throw_on_missing=False, default="none") != "none":
        return ()
    parts = key.split(".")
    group, rest = ("hydra/launcher", parts[2:]) if parts[0] == "hydra" else (parts[0], parts[1:])
    for file in sorted((CONFIGS / group).glob("*.yaml")):
        config = OmegaConf.load(file)
        assert isinstance(config, DictConfig)
        keys = set(dotted_keys(plain(config, resolve=False), ""))
        if ".".join(rest) in keys:
            return (f"{group}={file.stem}",)
    raise AssertionError(f"no option of {group} has the key {key}")


class TestLinks:
    def test_links__lead_somewhere(self) -> None:
        for page in PAGES:
            for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
                if link.startswith("https://"):
                    continue
                name, _, anchor = link.partition("#")
                target = (page.parent / name).resolve() if name else page
                assert target.is_relative_to(ROOT), (page.name, link)
                assert target.is_file(), (page.name, link)
                assert not anchor or anchor in anchors(target), (page.name, link)

    def test_pages__are_reached_from_the_readme(self) -> None:
        reached, waiting = set(), [README]
        while waiting:
            page = waiting.pop()
            if page not in reached:
                reached.add(page)
                names = re.findall(r"\]\(([\w./-]+\.md)", page.read_text())
                waiting += [(page.parent / name).resolve() for name in names]
        assert set(PAGES) == reached

    def test_code__files_of_the_listing_are_there(self) -> None:
        listings = "".join(block.text for block in blocks("", page=README))
        named = re.findall(r"^(?:configs/|scripts/|docs/|tta/[\w./]+)", listings, re.MULTILINE)
        assert named
        assert [path for path in named if not (ROOT / path).exists()] == []


def anchors(page: Path) -> set[str]:
    """What headings can be linked to by, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
