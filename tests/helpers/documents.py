"""The README and the pages of docs/: their blocks of code, what these need, and the commands in them.

A comment on the line before a block of commands says how tests treat it; without one a shell runs it as it stands.

    <!-- long -->             its commands run in this process, on few images
    <!-- needs: ImageNet -->  not run, for want of this; that its options are there is checked
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (long|needs: [^\n]+?) -->\n\Z")
FEW = ["stream.limit=50", "stream.corruptions=[fog,snow]"]
SHRUNKEN = {"tta": FEW, "tta-search": [*FEW, "search.trials=2"], "tta-compare": []}
MAINS = {"tta": "tta.cli", "tta-search": "tta.search.cli", "tta-compare": "tta.compare"}


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, as in ``README.md:18``."""
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Its commands in words, without the variables set before them."""
        lines = (shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines())
        return [words[sum("=" in word for word in words[:1]) :] for words in lines if words]

    @property
    def runs(self) -> bool:
        """Whether tests run it: it needs nothing that is not there, and is no call of ``make``, which sets up all."""
        return not self.mark.startswith("needs") and all(words[0] != "make" for words in self.commands)

    def run(self, folder: Path) -> None:
        """Run it in a folder; a command that fails is an error."""
        if self.mark == "long":
            for words in self.commands:
                run_on_few(words, folder)
            return
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        shell = ["bash", "-euo", "pipefail", "-c", self.text]
        environment = {**os.environ, "PATH": path}
        done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.place}: {done.stdout}{done.stderr}"


def run_on_few(words: list[str], folder: Path) -> None:
    """Run a command in this process, on few images, seeds and learning rates."""
    main = importlib.import_module(MAINS[words[0]]).main
    fewer = [re.sub(r"^((?:seed|optimizer\.lr)=[^,]+,[^,]+),.*", r"\1", word) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", [*fewer, *SHRUNKEN[words[0]]])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        main()


def blocks(*languages: str, page: Path | None = None) -> list[Block]:
    """Blocks in these languages, of one page or all."""
    found = []
    for path in [page] if page else PAGES:
        text = path.read_text()
        for block in FENCED.finditer(text):
            mark = MARK.search(text[: block.start()])
            if block["language"] in languages:
                line = text.count("\n", 0, block.start("text"))
                found.append(Block(path, line, block["language"], mark[1] if mark else "", block["text"]))
    return found


def prose(page: Path) -> str:
    """Text of a page, without its blocks of code."""
    return FENCED.sub("", page.read_text())


def commands(program: str) -> list[list[str]]:
    """Words that follow the program, of each of its commands on all pages."""
    found = [words[1:] for block in blocks("sh") for words in block.commands if words[0] == program]
    assert found, f"no page has a command of {program}"
    return found


def files(page: Path) -> dict[str, str]:
    """Files that a page shows, by the name on the line ``# name`` above their content."""
    shown = "".join(block.text for block in blocks("python", "yaml", page=page))
    _, *parts = re.split(r"^# ([\w./]+\.(?:py|yaml))\n", shown, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))
