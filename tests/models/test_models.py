"""Backbones: normalisation, checkpoints, names of timm, repositories of the hub, RobustBench's zoo."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.backbones import accuracy
from helpers.errors import raises_naming
from helpers.timm_nets import (
    CIFAR_RESNET,
    MEAN,
    NO_NORMALIZATION,
    PAGE,
    SMALL,
    STD,
    cifar_resnet,
    normalised,
    put_in_hub,
    save,
    timm_net,
)
from tta.models import Backbone, import_robustbench, robustbench_backbone, timm_backbone

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save(timm_net(), tmp_path / "net.safetensors")


# Normalisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_normalization__works_in_any_memory_format(dtype: torch.dtype) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    backbone = Backbone(nn.Identity(), 3, mean, std, "none")
    for n in (1, 3):
        images = IMAGES[:n].to(dtype)
        expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for given in (images, images.to(memory_format=torch.channels_last), images.flip(3).flip(3)[:, :, :, ::1]):
            before = given.clone()
            found = backbone(given)
            torch.testing.assert_close(found, expected)
            assert found.stride() == given.stride()
            assert torch.equal(given, before)
        repeated = images[:, :1].expand(-1, 3, -1, -1)  # one channel shown three times
        torch.testing.assert_close(backbone(repeated), backbone(repeated.contiguous()))


def test_normalization__comes_with_the_weights(checkpoint: str) -> None:
    backbone = timm_backbone(SMALL, checkpoint=checkpoint).eval()
    settings = timm.get_pretrained_cfg(SMALL)
    assert backbone.normalization == {"mean": list(settings.mean), "std": list(settings.std)}
    torch.testing.assert_close(backbone(IMAGES), timm_net()(normalised(IMAGES, settings.mean, settings.std)))


def test_normalization__can_be_given(checkpoint: str) -> None:
    backbone = timm_backbone(SMALL, checkpoint=checkpoint, mean=MEAN, std=STD).eval()
    assert backbone.normalization == {"mean": list(MEAN), "std": list(STD)}
    torch.testing.assert_close(backbone(IMAGES), timm_net()(normalised(IMAGES, MEAN, STD)))
    neutral = timm_backbone(SMALL, checkpoint=checkpoint, **NO_NORMALIZATION).eval()  # a mean of 0 is not "no mean"
    torch.testing.assert_close(neutral(IMAGES), timm_net()(IMAGES))


def test_normalization__can_be_left_to_the_network() -> None:
    backbone = Backbone(timm_net(), 10, None, None, "own")
    assert backbone.normalization is None
    torch.testing.assert_close(backbone(IMAGES), timm_net()(IMAGES))


def test_normalization__is_not_in_the_state_dict(checkpoint: str) -> None:
    backbone = timm_backbone(SMALL, checkpoint=checkpoint)
    assert not {"mean", "std"} & set(backbone.state_dict())
    backbone.double()
    assert backbone.mean is not None
    assert backbone.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [
        ([0.5] * 3, None, ("model.mean", "model.std", "std=None")),
        (None, [0.5] * 3, ("model.mean", "model.std", "mean=None")),
        ([0.5], [0.5] * 3, ("model.mean", "[0.5]")),
        ([0.5] * 3, [0.5] * 4, ("model.std", [0.5] * 4)),
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], ("model.mean", "[0, 1]", 123.7)),
        ([0.5] * 3, [0.5, 0.5, 0], ("model.std", [0.5, 0.5, 0])),
    ],
)
def test_normalization__rejects_wrong_values(checkpoint: str, mean: Any, std: Any, named: tuple[object, ...]) -> None:
    with raises_naming(ValueError, *named):
        timm_backbone(SMALL, checkpoint=checkpoint, mean=mean, std=std)


# Checkpoints


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [("", dict), ("module.", lambda state: {"state_dict": state, "epoch": 3})],
    ids=["bare", "wrapped"],
)
def test_checkpoint__may_be_a_torch_file(tmp_path: Path, prefix: str, wrap: Callable[[Any], Any]) -> None:
    state = {prefix + name: value for name, value in timm_net().state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pt")
    backbone = timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"), **NO_NORMALIZATION).eval()
    torch.testing.assert_close(backbone(IMAGES), timm_net()(IMAGES))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", CIFAR_RESNET),
        # In these the classifier is not the last matrix of the file.
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("levit_128s", {}),
    ],
)
def test_checkpoint__determines_the_classes(tmp_path: Path, name: str, kwargs: dict[str, Any]) -> None:
    path = save(timm_net(7, name, **kwargs), tmp_path / "net.safetensors")
    assert timm_backbone(name, checkpoint=path, kwargs=kwargs).num_classes == 7


@pytest.mark.usefixtures("checkpoint")
def test_checkpoint__is_found_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert timm_backbone(SMALL, checkpoint="~/net.safetensors").num_classes == 10


def test_checkpoint__is_tagged_by_its_content(tmp_path: Path, checkpoint: str) -> None:
    before = timm_backbone(SMALL, checkpoint=checkpoint).weights_id
    assert before == f"{SMALL}@sha256:{hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:12]}"
    copied = shutil.copy(checkpoint, tmp_path / "copy.safetensors")
    assert timm_backbone(SMALL, checkpoint=str(copied)).weights_id == before
    state = load_file(checkpoint)
    next(value for value in state.values() if value.is_floating_point()).flatten()[0] += 1e-3
    save_file(state, checkpoint)
    assert timm_backbone(SMALL, checkpoint=checkpoint).weights_id != before


def test_checkpoint__must_exist() -> None:
    with raises_naming(FileNotFoundError, "model.checkpoint", "nowhere.pt"):
        timm_backbone(SMALL, checkpoint="nowhere.pt")


def test_checkpoint__may_begin_like_a_web_page(tmp_path: Path) -> None:
    """A header of 0x3c20 bytes starts the file with b" <" and six zeros."""
    state = {name: value.contiguous() for name, value in timm_net().state_dict().items()}
    path = tmp_path / "net.safetensors"
    save_file(state, str(path), {"note": ""})
    save_file(state, str(path), {"note": " " * (0x13C20 - struct.unpack("<Q", path.read_bytes()[:8])[0])})
    assert path.read_bytes().startswith(b" <")
    assert timm_backbone(SMALL, checkpoint=str(path)).num_classes == 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.safetensors", PAGE),
        ("empty.pt", b""),
        ("random.pt", bytes(range(256)) * 8),
        ("random.safetensors", bytes(range(256)) * 8),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checkpoint__rejects_other_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with raises_naming(ValueError, tmp_path / name, *(["web page"] if content == PAGE else [])):
        timm_backbone(SMALL, checkpoint=str(tmp_path / name))


def test_checkpoint__rejects_a_truncated_file(tmp_path: Path, checkpoint: str) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Path(checkpoint).read_bytes()[:-100])
    with raises_naming(ValueError, "model.checkpoint", path):
        timm_backbone(SMALL, checkpoint=str(path))


class Code:
    """Runs ``os.mkdir`` when it is unpickled without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_checkpoint__does_not_run_code(tmp_path: Path) -> None:
    """The error leaves out torch's advice to load the file unsafely."""
    proof = tmp_path / "proof"
    torch.save({"weight": Code(str(proof))}, tmp_path / "net.pt")
    with raises_naming(ValueError, "model.checkpoint", tmp_path / "net.pt", "mkdir") as error:
        timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"))
    assert not proof.exists()
    assert "torch.load" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}], ids=str)
def test_checkpoint__must_hold_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pt")
    with raises_naming(ValueError, "model.checkpoint", tmp_path / "net.pt", "state dict"):
        timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"))


def test_checkpoint__rejects_other_classes(checkpoint: str) -> None:
    with raises_naming(ValueError, checkpoint, 10, "model.num_classes", 100):
        timm_backbone(SMALL, checkpoint=checkpoint, num_classes=100)


def test_checkpoint__rejects_another_architecture(checkpoint: str) -> None:
    with raises_naming(ValueError, checkpoint, "ResNet", "conv1.weight", "model.name", "model.stem"):
        timm_backbone("resnet18", checkpoint=checkpoint, num_classes=10)


def test_checkpoint__rejects_another_width(tmp_path: Path) -> None:
    path = save(cifar_resnet(), tmp_path / "net.safetensors")
    wider = {**CIFAR_RESNET, "channels": (8, 8, 8, 16)}
    with raises_naming(ValueError, "layer4.0.conv1.weight", "(8, 8, 3, 3)", "(16, 8, 3, 3)"):
        timm_backbone("resnet18", checkpoint=path, stem="cifar", kwargs=wider)


def test_checkpoint__of_cifar_is_accurate(shared: Path, cifar_resnet18: Backbone) -> None:
    with np.load(shared / "data" / "cifar10_test.npz") as file:
        images, labels = torch.from_numpy(file["images"][:1000]), torch.from_numpy(file["labels"][:1000]).long()
    assert cifar_resnet18.num_classes == 10
    assert accuracy(cifar_resnet18, images.permute(0, 3, 1, 2), labels) > 0.84


# The stem


def test_stem__of_cifar_keeps_the_resolution(tmp_path: Path) -> None:
    path = save(cifar_resnet(), tmp_path / "net.safetensors")
    backbone = timm_backbone("resnet18", checkpoint=path, stem="cifar", kwargs=CIFAR_RESNET, **NO_NORMALIZATION)
    torch.testing.assert_close(backbone.eval()(IMAGES), cifar_resnet().eval()(IMAGES))


def test_stem__rejects_what_it_does_not_fit(checkpoint: str) -> None:
    with raises_naming(ValueError, "stem=cifar", "EfficientNet"):
        timm_backbone(SMALL, checkpoint=checkpoint, stem="cifar")
    with raises_naming(ValueError, "model.stem", "cifar", "'imagenet'"):
        timm_backbone("resnet18", checkpoint=checkpoint, stem="imagenet")
    with raises_naming(ValueError, "model.stem", "resnet18.a1_in1k", "model.checkpoint"):
        timm_backbone("resnet18.a1_in1k", stem="cifar")


# Names of timm, and the hub behind them


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that is all there is: offline, with what ``put_in_hub`` puts there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnt50", ["resnet50"]),
        ("resnt50.a1_in1k", ["resnet50.a1_in1k"]),
        ("resnet18.nonsense", ["resnet18.tv_in1k"]),
        ("unheard_of", []),
    ],
)
def test_timm_name__unknown_ones_are_rejected(name: str, near: list[str]) -> None:
    with raises_naming(ValueError, repr(name), *near):
        timm_backbone(name)


def test_timm_name__rejects_unknown_keywords(checkpoint: str) -> None:
    with raises_naming(ValueError, SMALL, "'chanels'", "model.kwargs"):
        timm_backbone(SMALL, checkpoint=checkpoint, kwargs={"chanels": 3})


def test_timm_name__warns_of_random_weights() -> None:
    with pytest.warns(UserWarning, match=r"test_efficientnet.*model\.pretrained=false"):
        backbone = timm_backbone(SMALL, pretrained=False, num_classes=4)
    assert backbone.weights_id == f"{SMALL}@random"
    assert backbone.num_classes == 4


def test_timm_name__is_tagged_with_its_weights(hub: Path) -> None:
    put_in_hub(hub, f"timm/{SMALL}.r160_in1k", timm_net(1000))
    backbone = timm_backbone(SMALL, **NO_NORMALIZATION)
    assert backbone.weights_id == f"{SMALL}.r160_in1k"
    torch.testing.assert_close(backbone.eval()(IMAGES), timm_net(1000)(IMAGES))
    assert timm_backbone(f"{SMALL}.r160_in1k").weights_id == f"{SMALL}.r160_in1k"


def test_timm_name__warns_of_a_random_classifier(hub: Path) -> None:
    put_in_hub(hub, f"timm/{SMALL}.r160_in1k", timm_net(1000))
    with pytest.warns(UserWarning, match=r"model\.num_classes=10.* 1000 "):
        backbone = timm_backbone(SMALL, num_classes=10)
    assert backbone.weights_id == f"{SMALL}.r160_in1k@random-classifier"


def test_timm_name__weights_must_fit_the_keywords(hub: Path) -> None:
    put_in_hub(hub, f"timm/{SMALL}.r160_in1k", timm_net(1000))
    with raises_naming(ValueError, SMALL, "conv_stem.weight", "model.kwargs"):
        timm_backbone(SMALL, kwargs={"channel_multiplier": 2.0})


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "stem"), [(f"{SMALL}.r160_in1k", None), ("hf_hub:owner/net", None), ("hf_hub:owner/net", "cifar")]
)
def test_hub__without_a_connection(name: str, stem: str | None) -> None:
    with raises_naming(OSError, repr(name), "model.checkpoint"):
        timm_backbone(name, stem=stem)


@pytest.mark.parametrize("scheme", ["hf_hub:", "hf-hub:"])
def test_hub__takes_weights_of_another_stem(hub: Path, scheme: str) -> None:
    put_in_hub(hub, "owner/net", cifar_resnet(), "resnet18")
    backbone = timm_backbone(f"{scheme}owner/net", num_classes=10, stem="cifar").eval()
    assert backbone.weights_id == f"{scheme}owner/net"
    assert backbone.normalization == {"mean": list(MEAN), "std": list(STD)}
    torch.testing.assert_close(backbone(IMAGES), cifar_resnet().eval()(normalised(IMAGES, MEAN, STD)))


def test_hub__determines_the_classes(hub: Path) -> None:
    put_in_hub(hub, "owner/net", timm_net(10, "resnet18", **CIFAR_RESNET), "resnet18")
    assert timm_backbone("hf_hub:owner/net").num_classes == 10


# RobustBench


@pytest.fixture
def standard_file(tmp_path: Path) -> Path:
    """Where RobustBench looks for the weights of its network "Standard"."""
    path = tmp_path / "cifar10" / "corruptions" / "Standard.pt"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def robustbench_download(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """Make RobustBench's download fail, or end without a file."""

    def put(error: Exception | None) -> None:
        def download(*_: Any, **__: Any) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(import_robustbench("utils"), "download_gdrive_new", download)

    return put


def test_robustbench__loads_its_own_file(standard_file: Path, tmp_path: Path) -> None:
    """The 3D corruptions have the same models."""
    utils = import_robustbench("utils")
    group = utils.all_models[utils.BenchmarkDataset.cifar_10][utils.ThreatModel.corruptions]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        standard: nn.Module = group["Standard"]["model"]().eval()
    torch.save(standard.state_dict(), standard_file)
    for threat_model in ("corruptions", "corruptions_3d"):
        backbone = robustbench_backbone("Standard", "cifar10", threat_model, str(tmp_path))
        with torch.inference_mode():
            torch.testing.assert_close(backbone.eval()(IMAGES[:1]), standard(IMAGES[:1]))
        assert backbone.num_classes == 10
        assert backbone.normalization is None
        assert backbone.weights_id == "robustbench:cifar10/corruptions/Standard"
    standard_file.unlink()  # 146 MB


def test_robustbench__keeps_weights_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robustbench_download: Any
) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))
    robustbench_download(OSError("no route"))
    with raises_naming(OSError, tmp_path / "robustbench" / "cifar10" / "corruptions" / "Standard.pt"):
        robustbench_backbone("Standard")


@pytest.mark.parametrize("content", [PAGE, b"no weights"], ids=["page", "text"])
def test_robustbench__rejects_other_files(standard_file: Path, tmp_path: Path, content: bytes) -> None:
    standard_file.write_bytes(content)
    with raises_naming(ValueError, standard_file, *(["web page"] if content == PAGE else ["'Standard'"])):
        robustbench_backbone("Standard", model_dir=str(tmp_path))


def test_robustbench__rejects_other_weights(standard_file: Path, tmp_path: Path) -> None:
    torch.save(timm_net().state_dict(), standard_file)
    with raises_naming(ValueError, "'Standard'", standard_file, "Missing key"):
        robustbench_backbone("Standard", model_dir=str(tmp_path))


@pytest.mark.parametrize("error", [RuntimeError("quota exceeded"), None])
def test_robustbench__failed_download(
    standard_file: Path, tmp_path: Path, robustbench_download: Any, error: Exception | None
) -> None:
    robustbench_download(error)
    with raises_naming(OSError, "'Standard'", error or "", standard_file):
        robustbench_backbone("Standard", model_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "dataset", "threat", "named"),
    [
        ("Standart", "cifar10", "corruptions", ("'Standart'", "cifar10", "corruptions", "Standard")),
        ("Standard", "cifar100", "L2", ("'Standard'", "cifar100", "L2", "none")),
        ("Standard", "mnist", "L2", ("model.dataset", "'mnist'", "cifar10", "cifar100", "imagenet")),
        ("Standard", "cifar10", "l2", ("model.threat_model", "'l2'", "Linf", "L2", "corruptions")),
    ],
)
def test_robustbench__rejects_unknown_names(
    tmp_path: Path, name: str, dataset: str, threat: str, named: tuple[str, ...]
) -> None:
    with raises_naming(ValueError, *named):
        robustbench_backbone(name, dataset, threat, str(tmp_path))
