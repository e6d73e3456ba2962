"""The README and its pages, word for word."""

from __future__ import annotations

import copy
import inspect
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import torchvision
from torch import Tensor, nn

from helpers.backbones import small_net, varied_images
from helpers.documents import MARK, PAGES, README, ROOT, blocks, commands, files
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, classify, weights_of
from tta import methods
from tta.cli import CONFIGS
from tta.compare.cli import _parser as compare_parser
from tta.data.catalogue import DATASETS, find
from tta.data.cli import _parser
from tta.methods import Tent
from tta.objectives import AdaDEM

TEXT = README.read_text()
TABLES = ("method", "objective", "stream", "scenario")
GROUPS = ("optimizer", "model", "logger", "search", "experiment")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_cache: Path) -> Path:
    """One folder for all pages, so that a run that one has done is found by the next."""
    return tmp_path_factory.mktemp("reader")


class TestCommands:
    @pytest.mark.parametrize(
        "path", [path for path in PAGES if any(b.runs for b in blocks("sh", page=path))], ids=lambda path: path.name
    )
    def test_every_block_runs_unless_it_needs_what_is_not_there(self, folder: Path, path: Path) -> None:
        for name, content in files(path).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        for block in blocks("sh", page=path):
            log = folder / f"{block.place}.log"
            assert not block.runs or block.run(folder, log) == 0, log.read_text()[-4000:]
        begun = {config.parent for config in folder.glob("runs/**/config.yaml")}
        assert begun
        assert begun >= {summary.parent for summary in folder.glob("runs/**/summary.json")} >= begun

    def test_parts_of_ones_own_did_what_the_readme_says(self, folder: Path) -> None:
        def run(name: str) -> dict[str, Any]:
            return json.loads(next(folder.glob(f"runs/**/{name}_*/summary.json")).read_text())

        sure, source = (run(f"demo_single_domain_demo_{method}") for method in ("sure_tent", "source"))
        assert sure["images"] == source["images"] == 100
        assert sure["accuracy"] > source["accuracy"] + 0.2  # what statistics of the batch alone give under fog and snow
        gini = run("turned_single_domain_demo_tent_gini")
        assert [(d["domain"], d["n"]) for d in gini["domains"]] == [(f"turned_{a}", 3000) for a in (90, 180, 270)]
        assert run("turned_single_domain_torchvision_tent_em")["weights"] == "torchvision:resnet18@None"

    def test_a_comparison_was_left(self, folder: Path) -> None:
        found = {file.name for file in (folder / "runs" / "seeds").glob("comparison*")}
        assert found >= {"comparison.md", "comparison.tex", "comparison.csv", "comparison.html", "comparison.png"}

    def test_every_program_is_one_that_is_checked(self) -> None:
        programs = {words[words[0] == "python"] for block in blocks("sh") for words in block.commands}
        scripts = {program for program in programs if program.startswith("scripts/")}
        assert scripts
        assert programs - scripts == {"tta", "tta-compare", "tta-search", "tta-data", "make"}

    def test_every_option_of_a_script_is_there(self) -> None:
        for block in blocks("sh"):
            for words in block.commands:
                script = ROOT / words[words[0] == "python"]
                if script.parent != ROOT / "scripts":
                    continue
                assert script.is_file(), block.place
                code = (script if script.suffix == ".py" else ROOT / "scripts" / "reproduce.py").read_text()
                assert all(f'"{word}"' in code for word in words if word.startswith("--")), block.place

    def test_every_target_of_make_is_there(self) -> None:
        targets = {words[0] for words in commands("make")} | {"help", "check"}
        assert {"run", "test"} <= targets
        for target in targets:
            done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

    def test_every_tta_command_composes(self) -> None:
        for words in commands("tta"):
            overrides = [word for word in words if "=" in word]
            if "--config-dir" in words:
                continue  # run above
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
                # One job of a sweep: the first of each list of values.
                firsts = [re.sub(r"=([^,\[]*),.*", r"=\1", word) for word in overrides]
                assert hydra.compose("config", firsts).seed is not None

    def test_every_tta_search_command_composes(self) -> None:
        for words in commands("tta-search"):
            overrides = [f"++{word}" if word.startswith("search.space.") else word for word in words]
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
                assert hydra.compose("search", overrides).search.space

    def test_every_tta_data_command_is_understood(self) -> None:
        found = [_parser().parse_args(words) for words in commands("tta-data")]
        assert {options.command for options in found} == {"list", "get", "verify"}
        for options in found:
            if options.command != "list":
                assert find(options.name).choose(options.parts)

    def test_every_tta_compare_command_and_option_is_understood(self) -> None:
        assert [compare_parser().parse_args(words).runs for words in commands("tta-compare")]
        options = {word for action in compare_parser()._actions for word in action.option_strings} - {"-h", "--help"}
        assert options == set(re.findall(r"^\| `(--[a-z]+)[^|]*\|", page("comparing.md"), re.MULTILINE))


class TestInYourOwnCode:
    """The block of the README on a network that is not from timm."""

    @pytest.fixture
    def code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        (block,) = (block.text for block in blocks("python", page=README) if "Tent(net," in block.text)
        loop = block[block.index("method =") : block.index("\n\ntorch.save")]
        assert len(loop.splitlines()) <= 5
        return block

    @staticmethod
    def run(code: str, net: nn.Module, images: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        """What the block's names are in the end, and what its method predicted."""
        predicted: list[Tensor] = []

        def batches() -> Iterator[Tensor]:
            for batch in images:
                yield batch
                predicted.append(names["logits"])

        before, training = copy.deepcopy(net.state_dict()), net.training
        names: dict[str, Any] = {"net": net, "batches": batches()}
        exec(code, names)
        assert net.training == training
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        return names, predicted

    def test_it_is_tent_by_hand_and_comes_back(self, code: str) -> None:
        net = small_net("batch").double()
        images = [varied_images(8, seed).double() for seed in range(3)]
        names, predicted = self.run(code, net, images)

        plain, objective = PlainSGD(weights_of(net), NORM, lr=0.001, momentum=0.9), PlainAdaDEM()
        for batch, logits in zip(images, predicted, strict=True):
            leaves = plain.leaves()
            expected = classify(leaves, batch)
            torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-9)
            plain.step(objective(expected).mean(), leaves)
        # Restored: what three steps made of it, not what it was at first.
        adapted = classify(plain.weights, images[-1])
        torch.testing.assert_close(names["logits"], adapted, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(adapted, classify(weights_of(net), images[-1]), rtol=1e-6, atol=1e-6)

        names["method"].reset()
        assert all(torch.equal(names["method"](batch), logits) for batch, logits in zip(images, predicted, strict=True))

    def test_a_model_of_torchvision_takes_the_steps_of_the_official_code(self, code: str) -> None:
        torch.manual_seed(0)
        net = torchvision.models.resnet18(num_classes=10)
        images = [torch.rand(6, 3, 32, 32) for _ in range(2)]
        _, predicted = self.run(code, net, images)

        other = copy.deepcopy(net).train().requires_grad_(False)
        adapted = [p for m in other.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
        optimizer, objective = torch.optim.SGD(adapted, lr=0.001, momentum=0.9), AdaDEM()
        for parameter in adapted:
            parameter.requires_grad_(True)
        for batch, logits in zip(images, predicted, strict=True):
            expected = other(batch)  # in training mode BatchNorm takes the statistics of the batch
            torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-5)
            objective(expected).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def test_methods_are_made_of_what_their_table_says(self) -> None:
        made = re.findall(r"^\| `\w+` \| `(\w+)\(net(.*?)\)` \|", TEXT, re.MULTILINE)
        assert {name for name, _ in made} == {
            name
            for name, value in vars(methods).items()
            if isinstance(value, type) and issubclass(value, methods.Method) and not inspect.isabstract(value)
        } - {"OnePass"}
        for name, arguments in made:
            parameters = list(inspect.signature(getattr(methods, name)).parameters.values())[1:]
            needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            given = re.findall(r"\w+", arguments.replace("AdaDEM()", "objective"))
            assert given == needed, name

    def test_a_pattern_leaves_the_last_layers_of_a_network_alone(self) -> None:
        (written,) = re.findall(r"`adapt=(ParameterChoice\(exclude=.*?\))`", TEXT)
        net = torchvision.models.convnext_tiny(num_classes=10)
        chosen = eval(written, {"ParameterChoice": methods.ParameterChoice})(net)
        assert chosen
        assert any(name.startswith("features.7.") for name in methods.norm_parameters(net))
        assert not any(name.startswith("features.7.") for name in chosen)

    def test_a_network_without_normalisation_layers_adapts_all_parameters(self) -> None:
        (written,) = re.findall(r'needs `adapt=(ParameterChoice\("all"\))`', TEXT)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
        method = Tent(net, AdaDEM(), sgd, adapt=eval(written, {"ParameterChoice": methods.ParameterChoice}))
        images = torch.rand(5, 3, 2, 2)
        assert torch.equal(method(images), net(images))
        assert not torch.equal(method(images), net(images))


class TestTables:
    def test_every_data_set(self) -> None:
        (table,) = re.findall(r"^\| NAME \|.*\n((?:\|.*\n)+)", page("data.md"), re.MULTILINE)
        cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(DATASETS)

    @pytest.mark.parametrize("group", TABLES)
    def test_every_option_with_a_table_of_its_own(self, group: str) -> None:
        (table,) = re.findall(rf"^\| `{group}=` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
        named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
        default = {"single_domain"} if group == "scenario" else set()  # what the others differ from
        assert sorted({*named, *default}) == sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))

    @pytest.mark.parametrize("group", GROUPS)
    def test_every_option_of_the_other_groups(self, group: str) -> None:
        (row,) = re.findall(rf"^\| `{group}` \|(.*)\|$", TEXT, re.MULTILINE)
        assert set(re.findall(r"`([a-z0-9_]+)`", row)) >= {path.stem for path in (CONFIGS / group).glob("*.yaml")}

    def test_every_launcher_and_its_extra(self) -> None:
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `pip install 'tta\[(\w+)\]'` \|$", page("running.md"), re.M))
        assert sorted(rows) == sorted(path.stem for path in (CONFIGS / "hydra" / "launcher").glob("*.yaml"))
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in extras for extra in rows.values())

    def test_every_method_says_what_it_matches(self) -> None:
        _, _, matched = page("methods.md").partition("## What is matched of the official code\n")
        rows = re.findall(r"^\| (`.*?) \|", matched.partition("\n## ")[0], re.MULTILINE)
        said = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        # The others are no more than a forward pass, or another method with an objective.
        methods_there = {path.stem for path in (CONFIGS / "method").glob("*.yaml")}
        assert said == methods_there - {"source", "bn_adapt", "adadem"}

    def test_tables_are_those_of_the_documents(self) -> None:
        shown = [
            (name, table)
            for path in PAGES
            for name, table in re.findall(
                r"^<!-- table:(\w+) -->\n(.*?)<!-- /table -->$", path.read_text(), re.MULTILINE | re.DOTALL
            )
        ]
        assert {"demo"} <= {name for name, _ in shown}
        for name, table in shown:
            made = page(f"{name}.md")
            assert table
            assert table in made
            # The commands and their dates.
            assert re.search(r"^Runs: `tta .*`; (\d{4}-\d\d-\d\d(, )?)+; torch ", made, re.MULTILINE)


class TestPages:
    def test_every_link_leads_somewhere(self) -> None:
        for path in PAGES:
            text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
            links = re.findall(r"\]\(([^)\s]+)\)", text)
            for link in links:
                if link.startswith("https://"):
                    continue
                name, _, anchor = link.partition("#")
                target = (path.parent / name).resolve() if name else path
                assert target.is_relative_to(ROOT), (path.name, link)
                assert target.is_file(), (path.name, link)
                assert not anchor or anchor in anchors(target), (path.name, link)

    def test_every_page_is_reached_from_the_readme(self) -> None:
        reached, waiting = set(), [README]
        while waiting:
            path = waiting.pop()
            if path not in reached:
                reached.add(path)
                names = re.findall(r"\]\(([\w./-]+\.md)", path.read_text())
                waiting += [(path.parent / name).resolve() for name in names]
        assert {path.name for path in PAGES} == {path.name for path in reached}

    def test_files_the_readme_names_are_there(self) -> None:
        named = re.findall(r"^(?:configs/|tta/[\w./]+)", TEXT, re.MULTILINE)
        assert named
        assert all((ROOT / path).exists() for path in named)

    def test_every_mark_stands_before_a_block_of_commands(self) -> None:
        for path in PAGES:
            text = path.read_text()
            comments = re.findall(r"<!--.*?-->", text, re.DOTALL)
            marked = re.findall(rf"^{MARK}```sh$", text, re.MULTILINE)
            tables = [comment for comment in comments if re.fullmatch(r"<!-- (table:\w+|/table) -->", comment)]
            assert len(comments) == len(marked) + len(tables), path.name

    def test_the_example_of_a_method_is_short(self) -> None:
        assert len(files(README)["sure.py"].splitlines()) < 30


def anchors(path: Path) -> set[str]:
    """What headings can be linked to by, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
