"""Secrets are shown nowhere and written nowhere: not in errors, results or notes of downloads."""

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
from tta.redaction import hide, hide_in_values, hide_in_words

Command = Callable[..., Any]

OPEN = (
    "stream.root=/data/CIFAR-10-C",
    "optimizer.lr=0.1",
    "https://zenodo.org/records/1/files/a.tar?download=1",
    "a user@machine, 3 keys: key in the middle",
    "+method.monkey=banana",
    "{corruption:fog,keyboard:x}",
)
URLS = {
    "https://me:s3cret@host.org/a.tar": "https://***@host.org/a.tar",
    "http://s3cret@host/a": "http://***@host/a",
    "http://me:s3c@ret@host/a": "http://***@host/a",
    "https:/me:s3cret@host/a.npz": "https:/***@host/a.npz",  # a URL taken for a path
    "https://host/a?token=s3cret&x=1#part": "https://host/a?token=***&x=1#part",
    "https://host/a?x=1&X-Amz-Signature=s3cret": "https://host/a?x=1&X-Amz-Signature=***",
}
WORDS = {
    "+logger.wandb.key=s3cret": "+logger.wandb.key=***",
    "++logger.mine.api_key=s3cret,s3cret2": "++logger.mine.api_key=***",
    "WANDB_API_KEY=s3cret": "WANDB_API_KEY=***",
    "+logger.mine.auth-token=s3cret": "+logger.mine.auth-token=***",
    "+logger.mine={_target_:a.B,token:s3cret,name:x}": "+logger.mine={_target_:a.B,token:***,name:x}",
}
LOGGER = """
class Mine:
    def __init__(self, token, address):
        assert token == "s3cret" and "s3cret" in address  # the logger itself gets them

    def __getattr__(self, name):
        return lambda *arguments, **options: None
"""


def test_hide__keeps_what_is_no_secret() -> None:
    for text in OPEN:
        assert hide(text) == text
        assert hide_in_words([text]) == [text]
        assert hide_in_values({"stream": [text, 1, None, True, 0.5]}) == {"stream": [text, 1, None, True, 0.5]}


def test_hide__replaces_logins_and_tokens_of_urls() -> None:
    for url, hidden in URLS.items():
        assert hide(f"see {url} now") == f"see {hidden} now"
        assert hide_in_words([f"stream.source={url}"]) == [f"stream.source={hidden}"]
        assert hide_in_values({"stream": {"source": url}}) == {"stream": {"source": hidden}}


def test_hide__replaces_values_of_secret_keys() -> None:
    assert hide_in_words(list(WORDS)) == list(WORDS.values())
    node = {"logger": {"mine": {"token": "s3cret", "password": "", "names": ["a"], "keys": {"key": "s3cret"}}}}
    hidden = {"logger": {"mine": {"token": "***", "password": "", "names": ["a"], "keys": {"key": "***"}}}}
    assert hide_in_values(node) == hidden
    assert hide_in_values({"class_token": False, "key": 3}) == {"class_token": False, "key": 3}


@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["run", "sweep"])
def test_run__keeps_no_secret_in_its_files(
    files: Path, tmp_path: Path, tta_command: Command, capfd: pytest.CaptureFixture[str], sweep: tuple[str, ...]
) -> None:
    name = f"own_logger{len(sweep)}"
    (tmp_path / f"{name}.py").write_text(LOGGER)
    mine = (f"+logger.mine._target_={name}.Mine", "+logger.mine.token=s3cret")
    url = "+logger.mine.address='https://me:s3cret@host/?token=s3cret'"
    tta_command(*sweep, *words(files), "method=source", *mine, url)
    left = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert any(file.name == "summary.json" for file in left)
    assert not [file for file in left if b"s3cret" in file.read_bytes()]
    assert "s3cret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("word", ["+logger.wandb.key=s3cret", "stream.source=https://me:s3cret@host/images.npz"])
def test_error__repeats_no_secret(tta_command: Command, capfd: pytest.CaptureFixture[str], word: str) -> None:
    with pytest.raises(SystemExit) as error:
        tta_command("stream=corrupted", "stream.source=there", "logger=wandb", "logger.wandb.mode=offline", word)
    assert "error: " in str(error.value)
    assert "s3cret" not in f"{error.value}" + "".join(capfd.readouterr())


@pytest.mark.usefixtures("unchecked")
def test_download__shows_neither_login_nor_token(tmp_path: Path, server: Server) -> None:
    """It resumes with another token, as URLs that are signed for an hour have one."""
    url = server.url("TINY-C.tar").replace("http://", "http://me:s3cret@") + "?token=s3cret"
    said = Said()
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with raises_naming(OSError, "http://***@127.0.0.1", "token=***") as error:
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
