"""EATA's regulariser and its Fisher information, against their formulas."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.backbones import SmallNet, small_net, varied_images
from helpers.plain import NORM, weights_of
from helpers.plain_eta import PlainETA, plain_fisher
from tta.methods import EATA, ETA, Method, ParameterChoice
from tta.methods.fisher import fisher_information
from tta.objectives import EM
from tta.streams.clean import CleanImages, clean_images

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


def distance(method: Method, net: nn.Module) -> float:
    """How far adapted parameters are from those of the source, squared."""
    return sum(float((method.backbone.get_parameter(n) - net.get_parameter(n)).detach().square().sum()) for n in NORM)


def model() -> SmallNet:
    """With gradients for scales and shifts, and BatchNorm in the mode that adaptation has."""
    net = small_net("batch").double().train()
    net.dropout.eval()
    for name, p in net.named_parameters():
        p.requires_grad_(name in NORM)
    return net


def test_follows_the_plain_formulas(tmp_path: Path) -> None:
    net, images = small_net("batch").double(), clean(tmp_path)
    ours = eata(net, images)
    fisher = plain_fisher(net, [batch.double() / 255 for batch in images])
    plain = PlainETA(net, 0.6, 0.8, fisher=fisher, alpha=50.0)
    free = ETA(net, EM(), sgd, margin=0.6, diversity=0.8)
    batches = [varied_images(seed=seed).double() for seed in range(8)]
    batches.insert(3, batches[0].mean((0, 2, 3), keepdim=True).expand_as(batches[0]) + 1e-3 * batches[0])
    for batch in batches:
        np.testing.assert_allclose(ours(batch).numpy(), plain.step(batch).numpy(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(ours.backbone), plain.weights, rtol=1e-6, atol=1e-9)
        free(batch)
    kept = [kept for _, _, kept in plain.dropped]
    assert 0 in kept
    assert sum(map(bool, kept)) >= 4
    assert distance(ours, net) < 0.9 * distance(free, net)  # the regulariser counts for something here


def test_the_fisher_information_is_of_batch_means_on_the_models_own_predictions(tmp_path: Path) -> None:
    images = clean(tmp_path, count=20)
    assert [len(batch) for batch in images] == [8, 8, 4]
    found = fisher_information(model(), images)
    expected = plain_fisher(small_net("batch").double(), [batch.double() / 255 for batch in images])
    assert list(found) == NORM
    for name, ours in found.items():
        np.testing.assert_allclose(ours.numpy(), expected[name].numpy(), rtol=1e-6)
    # A squared gradient of each sample, as a Fisher information would have it, is another thing.
    for_samples = plain_fisher(small_net("batch").double(), [batch.double()[None, 0] / 255 for batch in images])
    assert not np.allclose(for_samples[NORM[0]].numpy(), expected[NORM[0]].numpy(), rtol=0.1)


def test_with_nothing_selected_the_regulariser_does_not_act(tmp_path: Path) -> None:
    method = eata(small_net("batch"), clean(tmp_path))
    method(varied_images())
    before = {name: p.detach().clone() for name, p in method.backbone.named_parameters()}
    method.margin = 1e-9
    method(varied_images(seed=1))
    assert method.diagnostics["used"] == 0
    assert method.diagnostics["loss"] > 0  # of the regulariser
    assert all(torch.equal(p, before[name]) for name, p in method.backbone.named_parameters())


def test_without_weight_it_is_eta(tmp_path: Path) -> None:
    ours = eata(small_net("batch"), clean(tmp_path), fisher_alpha=0)
    eta = ETA(small_net("batch"), EM(), sgd, margin=0.6, diversity=0.8)
    for seed in range(4):
        assert torch.equal(ours(varied_images(seed=seed)), eta(varied_images(seed=seed)))


def test_only_adapted_parameters_are_held(tmp_path: Path) -> None:
    choice = ParameterChoice(include=["body.4.*"])
    found = fisher_information(eata(small_net("batch"), clean(tmp_path), adapt=choice).backbone, clean(tmp_path))
    assert list(found) == ["body.4.weight", "body.4.bias"]


def test_parameters_that_predictions_do_not_depend_on_have_no_information(tmp_path: Path) -> None:
    net = small_net("layer")
    net.register_module("unused", nn.LayerNorm(3))
    assert float(fisher_information(eata(net, clean(tmp_path)).backbone, clean(tmp_path))["unused.weight"].sum()) == 0


def test_the_information_is_computed_once_and_says_so(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = eata(small_net("batch"), clean(tmp_path))
    (file,) = cache.iterdir()
    assert capsys.readouterr().err == (f"EATA, once: Fisher information of 20 clean images, to be kept at {file}\n")
    again = eata(small_net("batch"), clean(tmp_path))
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [file]
    for seed in range(3):
        assert torch.equal(first(varied_images(seed=seed)), again(varied_images(seed=seed)))


def other_weights() -> SmallNet:
    net = small_net("batch")
    with torch.no_grad():
        net.get_parameter("head.bias")[0] += 1e-3  # not adapted, but the information depends on it
    return net


def other_network() -> SmallNet:
    net = small_net("batch")
    net.body[2] = nn.LeakyReLU(0.1)
    return net


def test_whatever_it_follows_from_is_in_its_name(tmp_path: Path, cache: Path) -> None:
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


@pytest.mark.parametrize("broken", [b"", b"<html>", "half", "another"], ids=str)
def test_a_broken_cache_file_is_made_again(
    tmp_path: Path, cache: Path, broken: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = clean(tmp_path)
    expected = fisher_information(model(), images)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if broken == "another":
        fisher_information(model(), clean(tmp_path, seed=8))
        from safetensors.torch import save_file

        save_file({"body.1.weight": torch.zeros(3)}, str(file))
    else:
        file.write_bytes(whole[: len(whole) // 2] if isinstance(broken, str) else broken)
    capsys.readouterr()
    found = fisher_information(model(), images)
    assert "Fisher information" in capsys.readouterr().err
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert file.read_bytes() == whole


def test_an_interruption_leaves_no_file_behind(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, index: Any) -> Any:
        raise KeyboardInterrupt

    images = clean(tmp_path)
    monkeypatch.setattr(type(images.source), "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fisher_information(model(), images)
    assert not cache.exists() or not list(cache.iterdir())


def test_the_callers_gradient_mode_and_precision_do_not_matter(tmp_path: Path, cache: Path) -> None:
    expected = fisher_information(model().float(), clean(tmp_path))
    shutil.rmtree(cache)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = fisher_information(model().float(), clean(tmp_path))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_images_name_the_result(tmp_path: Path) -> None:
    assert eata(small_net("batch"), clean(tmp_path)).data == clean(tmp_path).digest
    assert ETA(small_net("batch"), EM(), sgd).data == ""


def test_wrong_weight(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"method.fisher_alpha must be a number of at least 0, got -1"):
        eata(small_net("batch"), clean(tmp_path), fisher_alpha=-1)
    assert not cache.exists()  # said before the work begins
