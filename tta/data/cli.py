"""The command ``tta-data``: which data sets can be fetched, fetch one, check one."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from tta.data.catalogue import DATASETS, DataSet, Part
from tta.data.obtain import get
from tta.data.progress import in_bytes
from tta.data.verify import verify

EPILOG = """examples
  tta-data list
  tta-data get cifar10_c --root data
  tta-data get imagenet_c --root data --parts noise,blur
  tta-data verify cifar10_c --root data
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``tta-data``; exits with 1 after an error or if ``verify`` finds one, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            _list()
        elif options.command == "get":
            get(options.name, options.root, options.parts, options.url, options.keep_archive, _say)
        elif not verify(options.name, options.root, options.parts, _say):
            parts = f" --parts {options.parts}" if options.parts else ""
            command = f"tta-data get {options.name} --root {options.root}{parts}"
            raise SystemExit(f"tta-data: not as it should be; what is missing is fetched with `{command}`")
    except KeyboardInterrupt:
        print("tta-data: interrupted; what is downloaded is kept: the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"tta-data: error: {error}") from None


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="tta-data", description="Fetch and check data sets.", epilog=EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|get|verify")
    commands.add_parser("list", help="the data sets, their parts and sizes")
    fetch = commands.add_parser("get", help="fetch a data set: resumed when cut off, checked, unpacked")
    check = commands.add_parser("verify", help="check a data set that is there")
    for command in (fetch, check):
        command.add_argument("name", metavar="NAME", help=", ".join(DATASETS))
        command.add_argument("--root", required=True, help="folder that holds the data set's folder, or is to hold it")
        command.add_argument("--parts", help="some of its parts, separated by commas, or all; see tta-data list")
    fetch.add_argument("--url", help="take the file from this address; one that ends in / is of a folder of files")
    fetch.add_argument("--keep-archive", action="store_true", help="keep the archive beside what is unpacked")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


def _list() -> None:
    for dataset in DATASETS.values():
        print(f"{dataset.name:<15}{dataset.title}\n{'':<15}{_facts(dataset)}")
        if len(dataset.parts) > 1:
            text = "parts: " + ", ".join(map(_part, dataset.parts))
            print(textwrap.fill(text, 80, initial_indent=" " * 15, subsequent_indent=" " * 15))


def _facts(dataset: DataSet) -> str:
    files = [file for part in dataset.choose(None) for file in part.files]
    size = in_bytes(sum(file.size or 0 for file in files)) if all(file.size for file in files) else "size not known"
    md5 = "md5 known" if all(file.md5 for file in files) else "no checksum known: its layout alone is checked"
    return f"{size}, {md5}"


def _part(part: Part) -> str:
    size = sum(file.size or 0 for file in part.files)
    notes = [in_bytes(size)] * bool(size) + ["only when named"] * part.optional
    return part.name + (f" ({', '.join(notes)})" if notes else "")
