"""Secrets are shown nowhere and written nowhere: not in messages, results, sweeps or notes of downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.faulty_server import Server, cut
from helpers.sweep_files import words
from helpers.tiny_data import Said, complete
from tta.data.obtain import get
from tta.redaction import hide, hide_in_values, hide_in_words

Command = Callable[..., Any]

OPEN = (
    "stream.root=/data/CIFAR-10-C",
    "stream.corruptions=[fog,snow]",
    "optimizer.lr=0.1",
    "https://zenodo.org/records/1/files/a.tar?download=1",
    "a user@machine, 3 keys: key in the middle",
    "search.space.objective.tau.low=0.1",
    "+method.monkey=banana",
    "{corruption:fog,keyboard:x}",
)


@pytest.mark.parametrize("text", OPEN)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert hide(text) == text
    assert hide_in_words([text]) == [text]
    assert hide_in_values({"stream": [text, 1, None, True, 0.5]}) == {"stream": [text, 1, None, True, 0.5]}


@pytest.mark.parametrize(
    ("text", "hidden"),
    {
        "login": ("see https://me:s3cret@host.org/a.tar now", "see https://***@host.org/a.tar now"),
        "user alone": ("http://s3cret@host/a", "http://***@host/a"),
        "password with an at sign": ("http://me:s3c@ret@host/a", "http://***@host/a"),
        "as a path": ("there is no https:/me:s3cret@host/a.npz", "there is no https:/***@host/a.npz"),
        "token": ("https://host/a?token=s3cret&x=1#part", "https://host/a?token=***&x=1#part"),
        "signed": (
            "https://b.s3.aws/a?x=1&X-Amz-Credential=s3cret&X-Amz-Signature=s3cret",
            "https://b.s3.aws/a?x=1&X-Amz-Credential=***&X-Amz-Signature=***",
        ),
    }.values(),
)
def test_logins_and_tokens_of_addresses(text: str, hidden: str) -> None:
    assert hide(text) == hidden
    assert hide_in_words([f"stream.source={text}"]) == [f"stream.source={hidden}"]
    assert hide_in_values({"stream": {"source": text}}) == {"stream": {"source": hidden}}


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ("+logger.wandb.key=s3cret", "+logger.wandb.key=***"),
        ("++logger.mine.api_key=s3cret,s3cret2", "++logger.mine.api_key=***"),
        ("WANDB_API_KEY=s3cret", "WANDB_API_KEY=***"),
        ("+logger.mine.auth-token=s3cret", "+logger.mine.auth-token=***"),
        ("+logger.mine={_target_:a.B,token:s3cret,name:x}", "+logger.mine={_target_:a.B,token:***,name:x}"),
    ],
)
def test_values_of_keys_that_are_secret_by_their_name(word: str, hidden: str) -> None:
    assert hide_in_words(["tta", word]) == ["tta", hidden]


def test_values_of_secret_keys_in_containers() -> None:
    node = {"logger": {"mine": {"token": "s3cret", "password": "", "names": ["a"], "keys": {"key": "s3cret"}}}}
    hidden = {"logger": {"mine": {"token": "***", "password": "", "names": ["a"], "keys": {"key": "***"}}}}
    assert hide_in_values(node) == hidden
    assert hide_in_values({"class_token": False, "key": 3}) == {"class_token": False, "key": 3}


LOGGER = """
class Mine:
    def __init__(self, token, address):
        assert token == "s3cret" and "s3cret" in address  # the logger itself gets them

    def __getattr__(self, name):
        return lambda *arguments, **options: None
"""


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_a_run_with_secrets_keeps_none_in_any_of_its_files(
    files: Path, tmp_path: Path, tta_command: Command, capfd: pytest.CaptureFixture[str], sweep: tuple[str, ...]
) -> None:
    name = f"own_logger{len(sweep)}"
    (tmp_path / f"{name}.py").write_text(LOGGER)
    mine = (f"+logger.mine._target_={name}.Mine", "+logger.mine.token=s3cret")
    address = "+logger.mine.address='https://me:s3cret@host/?token=s3cret'"
    tta_command(*sweep, *words(files), "method=source", *mine, address)
    left = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert any(file.name == "summary.json" for file in left)
    assert not [file for file in left if b"s3cret" in file.read_bytes()]
    assert "s3cret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "word",
    [
        "logger.wandb.key=s3cret",
        "+logger.wandb.key=s3cret",
        "stream.source=https://me:s3cret@host/images.npz",
        "+stream.token=s3cret",
    ],
)
def test_messages_of_errors_do_not_repeat_secrets(
    tta_command: Command, capfd: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as error:
        tta_command("stream=corrupted", "stream.source=there", "logger=wandb", "logger.wandb.mode=offline", word)
    assert "error: " in str(error.value)
    assert "s3cret" not in f"{error.value}" + "".join(capfd.readouterr())


@pytest.mark.usefixtures("unchecked")
def test_a_download_shows_and_keeps_neither_login_nor_token(tmp_path: Path, server: Server) -> None:
    address = server.url("TINY-C.tar").replace("http://", "http://me:s3cret@") + "?token=s3cret"
    said = Said()
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with pytest.raises(OSError, match=r"could not be downloaded from http://\*\*\*@127.0.0.1\S+token=\*\*\*") as error:
        get("tiny", tmp_path, url=address, say=said)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"s3cret" in file.read_bytes()]
    assert "s3cret" not in f"{error.value} {said}"
    # It goes on with another token, as addresses that are signed for an hour have one: the note tells that it may.
    get("tiny", tmp_path, url=address.replace("s3cret", "other"), say=said)
    assert server.ranges[-1] == "bytes=20000-"
    assert "s3cret" not in str(said)
    assert complete(tmp_path)


def test_an_address_that_cannot_be_asked_is_told_without_its_login(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        OSError, match=r"TINY-C.tar could not be downloaded from http://\*\*\*@h:x/a/TINY-C.tar: InvalidURL"
    ) as error:
        get("tiny", tmp_path, url="http://me:s3cret@h:x/a/")
    assert "s3cret" not in str(error.value)
