"""Bring the tables and figures of the README and docs/ up to date with runs that were just made.

    tta-compare runs/demo --figures && python scripts/update_docs.py demo=runs/demo

takes comparison.md from runs/demo as docs/demo.md, with those of its figures that are in docs/ already or that a page
shows (docs/demo.png, docs/demo-lr.png), and puts the table (that by learning rate, if there is one) wherever the README
or a page of docs/ says `<!-- table:demo -->`.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Take over each `name=folder`."""
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        update(name, Path(folder))


def update(name: str, folder: Path) -> None:
    """Take over the comparison in a folder of runs."""
    docs = ROOT / "docs"
    pages = [ROOT / "README.md", *docs.glob("*.md")]
    for figure in ("", "-lr"):
        target = docs / f"{name}{figure}.png"
        link = re.compile(rf"\]\((docs/)?{re.escape(target.name)}\)")
        if target.is_file() or any(link.search(page.read_text()) for page in pages):
            shutil.copy(folder / f"comparison{figure}.png", target)
    (docs / f"{name}.md").write_text(without_places((folder / "comparison.md").read_text()))
    place = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", re.DOTALL)
    for page in pages:
        text = page.read_text()
        if place.search(text):
            page.write_text(place.sub(lambda found: found[1] + table(docs / f"{name}.md") + found[2], text))


def without_places(text: str) -> str:
    """Leave out of commands where files were on this machine: `=/some/where/file` becomes `=file`."""
    commands = re.compile(r"^Runs: (`[^`]+`(?:, )?)+", re.MULTILINE)
    text = commands.sub(lambda found: re.sub(r"=(/|\.\.?/)\S*?([^/\s`]+)(?=[\s`])", r"=\2", found[0]), text)
    return commands.sub(lambda found: "Runs: " + ", ".join(dict.fromkeys(re.findall(r"`[^`]+`", found[0]))), text)


def table(file: Path) -> str:
    """Lines of the last table in a Markdown file."""
    return re.findall(r"(?:^\|.*\n)+", file.read_text(), re.MULTILINE)[-1]


if __name__ == "__main__":
    main()
