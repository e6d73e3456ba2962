"""The README and the pages of docs/: their blocks of code, what these need, and the commands in them.

A comment on the line before a block of commands says how tests treat it; without one a shell runs it as it stands.

    <!-- long -->             its commands run on the images of ``FEW``
    <!-- needs: ImageNet -->  not run, for want of this; only its words are checked
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

from helpers.forks import forked

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MARK = r"<!-- (?P<mark>long|needs: [^\n]+?) -->\n"
BLOCK = re.compile(rf"(?:^{MARK})?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
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

    def run(self, folder: Path, log: Path) -> int:
        """Run it in a folder, and return the exit code of the first command that fails, or 0."""
        if self.mark == "long":
            return next(filter(None, (run_on_few(words, folder, log) for words in self.commands)), 0)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        shell = ["bash", "-euo", "pipefail", "-c", self.text]
        with log.open("a") as file:
            return subprocess.run(shell, cwd=folder, env=environment, stdout=file, stderr=file, check=False).returncode


def run_on_few(words: list[str], folder: Path, log: Path) -> int:
    """Run a command on few images, without the seconds that each of a shell takes to begin; return its exit code."""
    main = importlib.import_module(MAINS[words[0]]).main
    with log.open("a") as file:
        return forked(main, *words, *SHRUNKEN[words[0]], cwd=folder, stdout=file, stderr=file).wait()


def blocks(*languages: str, page: Path | None = None) -> list[Block]:
    """Blocks in these languages, of one page or all."""
    return [
        Block(path, text.count("\n", 0, found.start("text")), found["language"], found["mark"] or "", found["text"])
        for path in ([page] if page else PAGES)
        for text in [path.read_text()]
        for found in BLOCK.finditer(text)
        if found["language"] in languages
    ]


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
