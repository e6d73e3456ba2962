"""Logins in URLs are shown nowhere and written nowhere: not in errors, results or notes of downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import raises_naming
from helpers.faulty_server import Server, cut
from helpers.sweep_files import words
from helpers.tiny_data import Said, complete
from tta.data.obtain import get
from tta.utils.urls import redact

Command = Callable[..., Any]

OPEN = (
    "stream.root=/data/CIFAR-10-C",
    "optimizer.lr=0.1",
    "https://zenodo.org/records/1/a.tar",
    "a user@machine, 3 keys",
)
URLS = {
    "https://me:s3cret@host.org/a.tar": "https://***@host.org/a.tar",
    "http://s3cret@host/a": "http://***@host/a",
    "http://me:s3c@ret@host/a": "http://***@host/a",
    "https:/me:s3cret@host/a.npz": "https:/***@host/a.npz",  # a URL taken for a path
}
LOGGER = """
class Mine:
    def __init__(self, address):
        assert "s3cret" in address  # the logger itself gets it

    def __getattr__(self, name):
        return lambda *arguments, **options: None
"""


def test_redact__keeps_what_is_no_login() -> None:
    for text in OPEN:
        assert redact(text) == text


def test_redact__replaces_logins_of_urls() -> None:
    for url, redacted in URLS.items():
        assert redact(f"see {url} now") == f"see {redacted} now"
        assert redact(f"stream.source={url}") == f"stream.source={redacted}"
        assert redact(f'{{"source": "{url}"}}') == f'{{"source": "{redacted}"}}'


@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["run", "sweep"])
def test_run__keeps_no_login_in_its_files(
    files: Path, tmp_path: Path, tta_command: Command, capfd: pytest.CaptureFixture[str], sweep: tuple[str, ...]
) -> None:
    name = f"own_logger{len(sweep)}"
    (tmp_path / f"{name}.py").write_text(LOGGER)
    mine = f"+logger.mine._target_={name}.Mine"
    url = "+logger.mine.address='https://me:s3cret@host/'"
    tta_command(*sweep, *words(files), "method=source", mine, url)
    left = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert any(file.name == "summary.json" for file in left)
    assert not [file for file in left if b"s3cret" in file.read_bytes()]
    assert "s3cret" not in "".join(capfd.readouterr())


def test_error__repeats_no_login(tta_command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        tta_command("stream=corrupted", "stream.source=https://me:s3cret@host/images.npz")
    assert "error: " in str(error.value)
    assert "s3cret" not in f"{error.value}" + "".join(capfd.readouterr())


@pytest.mark.usefixtures("unchecked")
def test_download__shows_neither_login_nor_token(tmp_path: Path, server: Server) -> None:
    """It resumes with another token, as URLs that are signed for an hour have one."""
    url = server.url("TINY-C.tar").replace("http://", "http://me:s3cret@") + "?token=s3cret"
    said = Said()
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with raises_naming(OSError, "http://***@127.0.0.1") as error:
        get("tiny", tmp_path, url=url, say=said)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"s3cret" in file.read_bytes()]
    assert "s3cret" not in f"{error.value} {said}"
    get("tiny", tmp_path, url=url.replace("s3cret", "other"), say=said)
    assert server.ranges[-1] == "bytes=20000-"
    assert "s3cret" not in str(said)
    assert complete(tmp_path)


@pytest.mark.usefixtures("server")
def test_download__rejects_an_invalid_url(tmp_path: Path) -> None:
    with raises_naming(OSError, "http://***@h:x/a/TINY-C.tar") as error:
        get("tiny", tmp_path, url="http://me:s3cret@h:x/a/")
    assert "s3cret" not in str(error.value)
