"""EATA's regulariser and its Fisher information, against their formulas."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import SmallNet, small_net, varied_images
from helpers.errors import assert_names, raises_naming
from helpers.plain import NORM, adapted_of, assert_adapted, weights_of
from helpers.plain_eta import PlainETA, plain_fisher
from tta.methods import EATA, ETA, Method, ParameterChoice
from tta.objectives import EM
from tta.streams.datasets.source_images import CleanImages, clean_images

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def clean(folder: Path, count: int = 20, seed: int = 100, **options: Any) -> CleanImages:
    """Images alone, without labels."""
    pixels = (varied_images(count, seed).permute(0, 2, 3, 1) * 255).byte().numpy()
    file = folder / f"{count}-{seed}.npz"
    np.savez(file, images=pixels)
    return clean_images(str(file), **{"batch_size": 8, **options})


def eata(net: nn.Module, images: CleanImages, **options: Any) -> EATA:
    return EATA(net, EM(), sgd, images, **{"margin": 0.6, "diversity": 0.8, "fisher_alpha": 50.0, **options})


def logits_of(method: Method) -> Tensor:
    """What it predicts for a few batches; from the second on, the regulariser has a part in it."""
    return torch.cat([method(varied_images(seed=seed)) for seed in range(4)])


def distance(method: Method, net: nn.Module) -> float:
    """How far adapted parameters are from those of the source, squared."""
    found, source = adapted_of(method), weights_of(net)
    return sum(float((found[name] - source[name]).square().sum()) for name in NORM)


def test_eata__follows_plain_formulas(tmp_path: Path) -> None:
    """The Fisher information is of means over batches, on the model's own predictions."""
    net, images = small_net("batch").double(), clean(tmp_path)
    assert [len(batch) for batch in images] == [8, 8, 4]
    ours = eata(net, images)
    fisher = plain_fisher(net, [batch.double() / 255 for batch in images])
    plain = PlainETA(net, 0.6, 0.8, fisher=fisher, alpha=50.0)
    free = ETA(net, EM(), sgd, margin=0.6, diversity=0.8)
    batches = [varied_images(seed=seed).double() for seed in range(8)]
    batches.insert(3, batches[0].mean((0, 2, 3), keepdim=True).expand_as(batches[0]) + 1e-3 * batches[0])
    for batch in batches:
        torch.testing.assert_close(ours(batch), plain.step(batch), rtol=1e-6, atol=1e-9)
        assert_adapted(ours, plain.weights)
        if plain.dropped[-1][2]:
            assert float(ours.diagnostics["loss"]) == pytest.approx(plain.loss, rel=1e-6)
        free(batch)
    kept = [kept for _, _, kept in plain.dropped]
    assert 0 in kept  # where the regulariser does not act either
    assert sum(map(bool, kept)) >= 4
    assert distance(ours, net) < 0.9 * distance(free, net)  # the regulariser counts for something here


def test_eata__is_eta_without_weight(tmp_path: Path) -> None:
    eta = ETA(small_net("batch"), EM(), sgd, margin=0.6, diversity=0.8)
    torch.testing.assert_close(logits_of(eata(small_net("batch"), clean(tmp_path), fisher_alpha=0)), logits_of(eta))


def test_eata__unused_parameters_have_no_information(tmp_path: Path) -> None:
    net = small_net("layer")
    net.register_module("unused", nn.LayerNorm(3))
    method = eata(net, clean(tmp_path))
    assert logits_of(method).isfinite().all()
    assert torch.equal(adapted_of(method)["unused.weight"], torch.ones(3))


def test_fisher__is_computed_once_and_tells(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = eata(small_net("batch"), clean(tmp_path))
    (file,) = cache.iterdir()
    assert_names(capsys.readouterr().err, "EATA", 20, file)
    again = eata(small_net("batch"), clean(tmp_path))
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [file]
    assert torch.equal(logits_of(first), logits_of(again))


def other_weights() -> SmallNet:
    net = small_net("batch")
    with torch.no_grad():
        net.get_parameter("head.bias")[0] += 1e-3  # not adapted, but the information depends on it
    return net


def other_network() -> SmallNet:
    net = small_net("batch")
    net.body[2] = nn.LeakyReLU(0.1)
    return net


def test_fisher__file_is_named_by_all_it_follows_from(tmp_path: Path, cache: Path) -> None:
    for count, make in enumerate(
        [
            lambda: eata(small_net("batch"), clean(tmp_path)),
            lambda: eata(other_weights(), clean(tmp_path)),
            lambda: eata(other_network(), clean(tmp_path)),
            lambda: eata(small_net("batch"), clean(tmp_path, seed=7)),
            lambda: eata(small_net("batch"), clean(tmp_path, limit=19)),
            lambda: eata(small_net("batch"), clean(tmp_path, batch_size=5)),
            lambda: eata(small_net("batch"), clean(tmp_path), adapt=ParameterChoice(include=["body.1.*"])),
        ],
        start=1,
    ):
        make()
        assert len(list(cache.iterdir())) == count
    # Not in it: what it does not follow from.
    eata(small_net("batch"), clean(tmp_path), fisher_alpha=1.0, margin=0.3)
    assert len(list(cache.iterdir())) == count


@pytest.mark.parametrize("broken", ["empty", "half", "another"])
def test_fisher__broken_file_is_made_again(tmp_path: Path, cache: Path, broken: str) -> None:
    expected = logits_of(eata(small_net("batch"), clean(tmp_path)))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if broken == "another":  # whole, but of another choice of parameters
        eata(small_net("batch"), clean(tmp_path), adapt=ParameterChoice(include=["body.1.*"]))
        (other,) = set(cache.iterdir()) - {file}
        shutil.copy(other, file)
    else:
        file.write_bytes(whole[: len(whole) // 2] if broken == "half" else b"")
    assert torch.equal(logits_of(eata(small_net("batch"), clean(tmp_path))), expected)
    assert file.read_bytes() == whole


class Interrupted:
    """Images of which not one is read before Ctrl-C."""

    def __len__(self) -> int:
        return 20

    def read(self, index: Tensor) -> Tensor:
        raise KeyboardInterrupt

    def cache_key(self, sample: int) -> bytes:
        return bytes([sample])


def test_fisher__interruption_leaves_no_file(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        eata(small_net("batch"), CleanImages(Interrupted()))
    assert not cache.exists() or not list(cache.iterdir())


def test_fisher__callers_modes_do_not_matter(tmp_path: Path, cache: Path) -> None:
    expected = logits_of(eata(small_net("batch"), clean(tmp_path)))
    shutil.rmtree(cache)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        method = eata(small_net("batch"), clean(tmp_path))
    assert torch.equal(logits_of(method), expected)


def test_eata__images_name_its_data(tmp_path: Path) -> None:
    assert (
        eata(small_net("batch"), clean(tmp_path)).data_digest
        == clean(tmp_path).digest
        != clean(tmp_path, seed=7).digest
    )
    assert ETA(small_net("batch"), EM(), sgd).data_digest == ""


def test_eata__refuses_negative_weight_before_the_work(tmp_path: Path, cache: Path) -> None:
    with raises_naming(ValueError, "fisher_alpha", -1):
        eata(small_net("batch"), clean(tmp_path), fisher_alpha=-1)
    assert not cache.exists()
