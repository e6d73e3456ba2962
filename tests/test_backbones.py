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
from tta.backbones import Backbone, import_robustbench, robustbench_backbone, timm_backbone

SMALL = "test_efficientnet"
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PAGE = b"\n<!DOCTYPE html><html><title>Too many requests</title></html>"


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_normalisation_is_the_same_in_any_memory(n: int, dtype: torch.dtype) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    backbone = Backbone(nn.Identity(), 3, mean, std, "none")
    images = IMAGES[:n].to(dtype)
    expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for given in (images, images.to(memory_format=torch.channels_last), images.flip(3).flip(3)[:, :, :, ::1]):
        before = given.clone()
        found = backbone(given)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert found.stride() == given.stride()
        assert torch.equal(given, before)
    repeated = images[:, :1].expand(-1, 3, -1, -1)  # one channel shown three times
    assert torch.equal(backbone(repeated), backbone(repeated.contiguous()))


def small_net(classes: int = 10, name: str = SMALL, **kwargs: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net: nn.Module = timm.create_model(name, num_classes=classes, **kwargs)
    return net.eval()


def cifar_resnet(classes: int = 10) -> nn.Module:
    """ResNet with the stem for 32-pixel images, built here by hand."""
    net: Any = small_net(classes, "resnet18", channels=(8, 8, 8, 8), layers=(1, 1, 1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


CIFAR_RESNET = {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}


def save(net: nn.Module, path: Path) -> str:
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, str(path))
    return str(path)


def normalised(images: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    channels = [(images[:, k] - mean[k]) / std[k] for k in range(3)]
    return torch.stack(channels, 1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save(small_net(), tmp_path / "net.safetensors")


class TestNormalisation:
    def test_comes_from_the_metadata_of_the_weights(self, checkpoint: str) -> None:
        backbone = timm_backbone(SMALL, checkpoint=checkpoint).eval()
        settings = timm.get_pretrained_cfg(SMALL)
        assert backbone.normalization == {"mean": list(settings.mean), "std": list(settings.std)}
        expected = small_net()(normalised(IMAGES, settings.mean, settings.std))
        torch.testing.assert_close(backbone(IMAGES), expected)

    def test_can_be_given(self, checkpoint: str) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        backbone = timm_backbone(SMALL, checkpoint=checkpoint, mean=mean, std=std).eval()
        assert backbone.normalization == {"mean": list(mean), "std": list(std)}
        torch.testing.assert_close(backbone(IMAGES), small_net()(normalised(IMAGES, mean, std)))

    def test_of_zero_mean_is_not_taken_for_none(self, checkpoint: str) -> None:
        backbone = timm_backbone(SMALL, checkpoint=checkpoint, mean=[0, 0, 0], std=[1, 1, 1]).eval()
        torch.testing.assert_close(backbone(IMAGES), small_net()(IMAGES))

    def test_is_left_to_a_network_that_does_it_itself(self) -> None:
        backbone = Backbone(small_net(), 10, None, None, "own")
        assert backbone.normalization is None
        assert torch.equal(backbone(IMAGES), small_net()(IMAGES))

    def test_goes_with_the_backbone_but_not_into_its_state(self, checkpoint: str) -> None:
        backbone = timm_backbone(SMALL, checkpoint=checkpoint)
        assert not {"mean", "std"} & set(backbone.state_dict())
        assert backbone.double().mean is not None
        assert backbone.mean is not None
        assert backbone.mean.dtype == torch.float64

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ([0.5] * 3, None, r"model.mean and model.std go together, got mean=\[0.5, 0.5, 0.5\] and std=None"),
            (None, [0.5] * 3, "model.mean and model.std go together, got mean=None"),
            ([0.5], [0.5] * 3, r"model.mean needs one value for each of the 3 channels, got \[0.5\]"),
            ([0.5] * 3, [0.5] * 4, "model.std needs one value for each of the 3 channels"),
            ([], [], r"model.mean needs one value .* got \[\]"),
            ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], r"model.mean is that of images in \[0, 1\], not of bytes"),
            ([0.5] * 3, [0.5, 0.5, 0], "model.std is that of images .* cannot be"),
        ],
    )
    def test_that_is_wrong(self, checkpoint: str, mean: Any, std: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            timm_backbone(SMALL, checkpoint=checkpoint, mean=mean, std=std)


class TestCheckpoint:
    @pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}], ids=["bare", "wrapped"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_of_torch(self, tmp_path: Path, wrap: Callable[[Any], Any], prefix: str) -> None:
        state = {prefix + name: value for name, value in small_net().state_dict().items()}
        torch.save(wrap(state), tmp_path / "net.pt")
        backbone = timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"), mean=[0] * 3, std=[1] * 3).eval()
        assert torch.equal(backbone(IMAGES), small_net()(IMAGES))

    @pytest.mark.parametrize(
        ("name", "kwargs"),
        [
            (SMALL, {}),
            ("resnet18", CIFAR_RESNET),
            ("test_vit", {}),
            # In these the classifier is not the last matrix of the file.
            ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
            ("levit_128s", {}),
        ],
    )
    def test_says_the_number_of_classes(self, tmp_path: Path, name: str, kwargs: dict[str, Any]) -> None:
        path = save(small_net(7, name, **kwargs), tmp_path / "net.safetensors")
        assert timm_backbone(name, checkpoint=path, kwargs=kwargs).num_classes == 7

    def test_is_found_in_the_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert timm_backbone(SMALL, checkpoint="~/net.safetensors").num_classes == 10

    def test_tag_has_the_digest_of_the_file(self, tmp_path: Path, checkpoint: str) -> None:
        tags = {timm_backbone(SMALL, checkpoint=checkpoint).tag for _ in range(2)}
        tags.add(timm_backbone(SMALL, checkpoint=save(small_net(9), tmp_path / "other.safetensors")).tag)
        assert len(tags) == 2
        assert all(tag.startswith(f"{SMALL}@sha256:") for tag in tags)

    def test_tag_is_of_the_content_and_not_of_the_name(self, tmp_path: Path, checkpoint: str) -> None:
        before = timm_backbone(SMALL, checkpoint=checkpoint).tag
        assert before == f"{SMALL}@sha256:{hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:12]}"
        copied = shutil.copy(checkpoint, tmp_path / "copy.safetensors")
        assert timm_backbone(SMALL, checkpoint=str(copied)).tag == before
        state = load_file(checkpoint)
        next(value for value in state.values() if value.is_floating_point()).flatten()[0] += 1e-3
        save_file(state, checkpoint)
        assert timm_backbone(SMALL, checkpoint=checkpoint).tag != before

    def test_that_is_missing(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"model.checkpoint: there is no file nowhere.pt"):
            timm_backbone(SMALL, checkpoint="nowhere.pt")

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_that_is_a_web_page(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"net.{suffix}"
        path.write_bytes(PAGE)
        with pytest.raises(ValueError, match=r"not a checkpoint but a web page .*Delete it and download it again"):
            timm_backbone(SMALL, checkpoint=str(path))

    def test_header_that_begins_like_a_web_page_is_read(self, tmp_path: Path) -> None:
        # The header's length comes first: 0x3c20 bytes are b" <" and six zeros.
        state = {name: value.contiguous() for name, value in small_net().state_dict().items()}
        path = tmp_path / "net.safetensors"
        save_file(state, str(path), {"note": ""})
        save_file(state, str(path), {"note": " " * (0x13C20 - struct.unpack("<Q", path.read_bytes()[:8])[0])})
        assert path.read_bytes().startswith(b" <")
        assert timm_backbone(SMALL, checkpoint=str(path)).num_classes == 10

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    @pytest.mark.parametrize("content", [b"", bytes(range(256)) * 8], ids=["empty", "random"])
    def test_that_is_no_checkpoint(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"net.{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a state dict that can be loaded safely .*Save the model's state"):
            timm_backbone(SMALL, checkpoint=str(path))

    def test_that_is_truncated(self, tmp_path: Path, checkpoint: str) -> None:
        path = tmp_path / "cut.safetensors"
        path.write_bytes(Path(checkpoint).read_bytes()[:-100])
        with pytest.raises(ValueError, match="is not a state dict that can be loaded safely"):
            timm_backbone(SMALL, checkpoint=str(path))

    def test_with_code_is_refused_and_the_code_is_not_run(self, tmp_path: Path) -> None:
        proof = tmp_path / "proof"
        torch.save({"weight": Code(str(proof))}, tmp_path / "net.pt")
        with pytest.raises(ValueError, match=r"loaded safely \(weights only; .*mkdir") as error:
            timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"))
        assert not proof.exists()
        assert "will likely succeed" not in str(error.value)  # torch's advice to load it all the same

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {}}, torch.zeros(2)], ids=str)
    def test_without_a_state_dict(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(ValueError, match="state dict"):
            timm_backbone(SMALL, checkpoint=str(tmp_path / "net.pt"))

    def test_of_another_number_of_classes(self, checkpoint: str) -> None:
        with pytest.raises(ValueError, match=r"has 10 classes, but model.num_classes is 100: they must agree"):
            timm_backbone(SMALL, checkpoint=checkpoint, num_classes=100)

    def test_of_another_architecture(self, checkpoint: str) -> None:
        message = (
            r"does not fit ResNet with 10 classes: missing: conv1.weight.*unexpected: .*Check model.name, model.stem"
        )
        with pytest.raises(ValueError, match=message):
            timm_backbone("resnet18", checkpoint=checkpoint, num_classes=10)

    def test_of_another_width(self, tmp_path: Path) -> None:
        path = save(cifar_resnet(), tmp_path / "net.safetensors")
        wider = {**CIFAR_RESNET, "channels": (8, 8, 8, 16)}
        message = r"of another shape: layer4.0.conv1.weight \(8, 8, 3, 3\) instead of \(16, 8, 3, 3\)"
        with pytest.raises(ValueError, match=message):
            timm_backbone("resnet18", checkpoint=path, stem="cifar", kwargs=wider)

    def test_of_cifar_scores_as_it_should(self, shared: Path, cifar_resnet18: Backbone) -> None:
        with np.load(shared / "data" / "cifar10_test.npz") as file:
            images, labels = torch.from_numpy(file["images"][:1000]), torch.from_numpy(file["labels"][:1000]).long()
        assert cifar_resnet18.num_classes == 10
        assert accuracy(cifar_resnet18, images.permute(0, 3, 1, 2), labels) > 0.84


class Code:
    """Runs ``os.mkdir`` when it is unpickled without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class TestStem:
    def test_of_cifar_keeps_the_resolution(self, tmp_path: Path) -> None:
        path = save(cifar_resnet(), tmp_path / "net.safetensors")
        backbone = timm_backbone(
            "resnet18", checkpoint=path, stem="cifar", kwargs=CIFAR_RESNET, mean=[0] * 3, std=[1] * 3
        )
        assert torch.equal(backbone.eval()(IMAGES), cifar_resnet().eval()(IMAGES))

    def test_on_another_network(self, checkpoint: str) -> None:
        with pytest.raises(ValueError, match=r"stem=cifar is for ResNets .* not for EfficientNet"):
            timm_backbone(SMALL, checkpoint=checkpoint, stem="cifar")

    def test_of_another_name(self, checkpoint: str) -> None:
        with pytest.raises(ValueError, match=r"model.stem must be null or cifar, got 'imagenet'"):
            timm_backbone("resnet18", checkpoint=checkpoint, stem="imagenet")

    def test_does_not_fit_pretrained_weights_of_timm(self) -> None:
        with pytest.raises(
            ValueError, match=r"model.stem changes the network .*resnet18.a1_in1k are for: .*checkpoint"
        ):
            timm_backbone("resnet18.a1_in1k", stem="cifar")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnt50", r"timm .* has no model 'resnt50'; did you mean resnet50"),
            ("resnt50.a1_in1k", r"has no model 'resnt50.a1_in1k'; did you mean resnet50.a1_in1k"),
            ("resnet18.nonsense", r"has no weights 'resnet18.nonsense'; it has: .*resnet18.tv_in1k"),
            ("resnet26s_unheard_of", "has no model"),
        ],
    )
    def test_that_timm_does_not_know(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            timm_backbone(name)

    def test_wrong_keyword(self, checkpoint: str) -> None:
        with pytest.raises(ValueError, match=r"timm cannot make 'test_efficientnet': TypeError.*'chanels'"):
            timm_backbone(SMALL, checkpoint=checkpoint, kwargs={"chanels": 3})

    def test_random_weights_are_announced_and_tagged(self) -> None:
        with pytest.warns(UserWarning, match=r"test_efficientnet: random weights \(model.pretrained=false"):
            backbone = timm_backbone(SMALL, pretrained=False, num_classes=4)
        assert backbone.tag == f"{SMALL}@random"
        assert backbone.num_classes == 4

    def test_tag_of_a_bare_name_says_which_weights_it_means(self, timm_download: Any) -> None:
        timm_download(small_net(1000).state_dict())
        backbone = timm_backbone(SMALL, mean=[0] * 3, std=[1] * 3)
        assert backbone.tag == f"{SMALL}.r160_in1k"
        assert torch.equal(backbone.eval()(IMAGES), small_net(1000)(IMAGES))
        timm_download(small_net(1000).state_dict())
        assert timm_backbone(f"{SMALL}.r160_in1k").tag == f"{SMALL}.r160_in1k"

    def test_classifier_that_pretrained_weights_do_not_have_is_announced(self, timm_download: Any) -> None:
        timm_download(small_net(1000).state_dict())
        with pytest.warns(UserWarning, match=r"random weights in the classifier .*=10, but .* are for 1000 classes"):
            backbone = timm_backbone(SMALL, num_classes=10)
        assert backbone.tag == f"{SMALL}.r160_in1k@random-classifier"

    def test_pretrained_weights_without_a_connection(self, timm_download: Any) -> None:
        timm_download(ConnectionError("no route"))
        with pytest.raises(
            OSError, match=r"could not be loaded \(ConnectionError: no route\).*model.checkpoint=<file>"
        ):
            timm_backbone(f"{SMALL}.r160_in1k")

    def test_pretrained_weights_in_a_changed_network(self, timm_download: Any) -> None:
        timm_download(small_net(1000).state_dict())
        with pytest.raises(ValueError, match=r"timm cannot make .*size mismatch.*Check model.name and model.kwargs"):
            timm_backbone(SMALL, kwargs={"channel_multiplier": 2.0})


@pytest.fixture
def timm_download(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a state dict, or an error, in the place of what timm would download."""

    def put(result: Any) -> None:
        def download(*_: Any, **__: Any) -> Any:
            if isinstance(result, Exception):
                raise result
            return dict(result)

        monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda necessary=False: True)
        for function in ("load_state_dict_from_hf", "load_state_dict_from_url"):
            monkeypatch.setattr(f"timm.models._builder.{function}", download)
        monkeypatch.setattr("timm.models.load_state_dict_from_hf", download)

    return put


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, timm_download: Any) -> Any:
    """A repository on the hub: its configuration, and its weights or an error."""

    def put(weights: Any, architecture: str = "resnet18") -> None:
        mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
        settings = {"mean": mean, "std": std, "num_classes": 10, "classifier": "fc", "first_conv": "conv1"}
        settings |= {"input_size": [3, 32, 32], "pool_size": [1, 1]}
        monkeypatch.setattr(
            "timm.models._factory.load_model_config_from_hf",
            lambda _: ({**settings, "hf_hub_id": "owner/net", "source": "hf-hub"}, architecture, CIFAR_RESNET),
        )
        timm_download(weights)

    return put


class TestHub:
    def test_timm_finds_a_package_for_the_hub_that_it_can_use(self) -> None:
        from timm.models._hub import has_hf_hub

        # timm 1.0.9 takes huggingface_hub 2 for missing, and then loads no pretrained weights at all.
        assert has_hf_hub(necessary=True)

    @pytest.mark.parametrize("scheme", ["hf_hub:", "hf-hub:"])
    def test_weights_with_another_stem(self, hub: Any, scheme: str) -> None:
        hub(cifar_resnet().state_dict())
        backbone = timm_backbone(f"{scheme}owner/net", num_classes=10, stem="cifar").eval()
        assert backbone.tag == f"{scheme}owner/net"
        assert backbone.normalization == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        expected = cifar_resnet().eval()(normalised(IMAGES, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        torch.testing.assert_close(backbone(IMAGES), expected)

    def test_number_of_classes_is_that_of_the_repository(self, hub: Any) -> None:
        hub(small_net(10, "resnet18", **CIFAR_RESNET).state_dict())
        assert timm_backbone("hf_hub:owner/net").num_classes == 10

    @pytest.mark.parametrize("stem", [None, "cifar"])
    def test_without_a_connection(self, hub: Any, stem: str | None) -> None:
        hub(ConnectionError("no route"))
        with pytest.raises(OSError, match=r"'hf_hub:owner/net' could not be loaded \(ConnectionError: no route"):
            timm_backbone("hf_hub:owner/net", stem=stem)


@pytest.fixture(scope="session")
def standard() -> nn.Module:
    """RobustBench's own network "Standard" for CIFAR-10, with random weights."""
    utils = import_robustbench("utils")
    group = utils.all_models[utils.BenchmarkDataset.cifar_10][utils.ThreatModel.corruptions]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = group["Standard"]["model"]()
    return net.eval()


@pytest.fixture
def standard_file(tmp_path: Path) -> Path:
    """Where RobustBench looks for the weights."""
    path = tmp_path / "cifar10" / "corruptions" / "Standard.pt"
    path.parent.mkdir(parents=True)
    return path


class TestRobustbench:
    @pytest.mark.parametrize("threat_model", ["corruptions", "corruptions_3d"])
    def test_weights_in_their_place(
        self, standard: nn.Module, standard_file: Path, tmp_path: Path, threat_model: str
    ) -> None:
        torch.save(standard.state_dict(), standard_file)
        backbone = robustbench_backbone("Standard", "cifar10", threat_model, str(tmp_path))
        standard_file.unlink()  # 146 MB
        with torch.inference_mode():
            assert torch.equal(backbone.eval()(IMAGES[:1]), standard(IMAGES[:1]))
        assert backbone.num_classes == 10
        assert backbone.normalization is None
        assert backbone.tag == "robustbench:cifar10/corruptions/Standard"

    def test_place_is_in_the_cache_by_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robustbench_download: Any
    ) -> None:
        monkeypatch.setenv("TTA_CACHE", str(tmp_path))
        robustbench_download(OSError("no route"))
        with pytest.raises(OSError, match=str(tmp_path / "robustbench" / "cifar10" / "corruptions" / "Standard.pt")):
            robustbench_backbone("Standard")

    def test_web_page_in_the_place_of_weights(self, standard_file: Path, tmp_path: Path) -> None:
        standard_file.write_bytes(PAGE)
        with pytest.raises(ValueError, match=r"Standard.pt is not a checkpoint but a web page .*Delete it"):
            robustbench_backbone("Standard", model_dir=str(tmp_path))

    @pytest.mark.parametrize("content", [b"no weights", b""], ids=["text", "empty"])
    def test_no_weights_in_their_place(self, standard_file: Path, tmp_path: Path, content: bytes) -> None:
        standard_file.write_bytes(content)
        with pytest.raises(ValueError, match=r"could not load 'Standard' .*Standard.pt are not its weights, delete"):
            robustbench_backbone("Standard", model_dir=str(tmp_path))

    def test_weights_of_another_network_in_their_place(self, standard_file: Path, tmp_path: Path) -> None:
        torch.save(small_net().state_dict(), standard_file)
        with pytest.raises(ValueError, match=r"could not load 'Standard' \(RuntimeError: Missing key.*delete the file"):
            robustbench_backbone("Standard", model_dir=str(tmp_path))

    @pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("quota exceeded"), None])
    def test_failed_download(self, tmp_path: Path, robustbench_download: Any, error: Exception | None) -> None:
        robustbench_download(error)
        with pytest.raises(OSError, match=r"could not download 'Standard' \(.*put its weights at .*Standard.pt"):
            robustbench_backbone("Standard", model_dir=str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "dataset", "threat", "message"),
        [
            (
                "Standart",
                "cifar10",
                "corruptions",
                "no model 'Standart' for cifar10 and corruptions; it has: .*Standard",
            ),
            ("Standard", "cifar100", "L2", "no model 'Standard' for cifar100 and L2; it has: none"),
            ("Standard", "mnist", "L2", r"model.dataset must be one of cifar10, cifar100, imagenet; got 'mnist'"),
            ("Standard", "cifar10", "l2", r"model.threat_model must be one of Linf, L2, corruptions.*; got 'l2'"),
        ],
    )
    def test_unknown_names(self, tmp_path: Path, name: str, dataset: str, threat: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            robustbench_backbone(name, dataset, threat, str(tmp_path))


@pytest.fixture
def robustbench_download(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """Let RobustBench's download fail, or end without a file."""

    def put(error: Exception | None) -> None:
        def download(*_: Any, **__: Any) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(import_robustbench("utils"), "download_gdrive_new", download)

    return put
