"""`models.load_teacher`: every place a teacher can come from, and its refusals."""

from __future__ import annotations

import importlib.util
import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fastard import models
from fastard.models import deepmind_wrn

from .test_public_teachers import FILES

DATA = os.environ.get("FASTARD_DATA")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(num_classes: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return models.build("cnn_a", num_classes).eval()


def written(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("spelling", ["name", "spec"])
def test_a_state_dict_with_its_architecture(tmp_path: Path, spelling: str) -> None:
    inner = small()
    path = written(tmp_path / "t.pt", inner.state_dict())
    if spelling == "name":
        teacher = models.load_teacher(path, name="cnn_a", mean=MEAN, std=STD)
    else:
        teacher = models.load_teacher(f"cnn_a@{path}", mean=MEAN, std=STD)
    assert torch.equal(teacher(X), models.Normalized(inner, MEAN, STD)(X))
    assert not teacher.training


def test_a_checkpoint_that_names_itself(tmp_path: Path) -> None:
    inner = small()
    # A path may hold the sign that divides a name from a file.
    path = tmp_path / "a@b.safetensors"
    models.save(path, models.Normalized(inner, MEAN, STD), name="cnn_a")
    assert torch.equal(models.load_teacher(path)(X), models.Normalized(inner, MEAN, STD).eval()(X))


@pytest.mark.parametrize(
    ("layer", "prefix", "names"),
    [
        ("normalize.", "model.", ("mean", "std")),
        ("normalizer.", "model.", ("new_mean", "new_std")),
        ("", "model.", ("mu", "sigma")),
        ("0.", "1.", ("mean", "std")),
        ("", "", ("mean", "std")),
    ],
)
def test_a_normaliser_among_the_weights_goes_with_them(
    tmp_path: Path, layer: str, prefix: str, names: tuple[str, str]
) -> None:
    inner = small()
    state = {f"module.{prefix}{k}": v for k, v in inner.state_dict().items()}
    for name, values in zip(names, (MEAN, STD), strict=True):
        state[f"module.{layer}{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    if names[0] == "new_mean":
        state["module.attacker.model.0.weight"] = torch.zeros(1)
    teacher = models.load_teacher(f"cnn_a@{written(tmp_path / 't.pt', {'model': state})}")
    torch.testing.assert_close(teacher(X), models.Normalized(inner, MEAN, STD)(X))


def test_rslads_own_students_and_trades_teacher(tmp_path: Path) -> None:
    student = models.build("mobilenetv2").eval()
    state = {f"module.{k}": v for k, v in student.state_dict().items()}
    path = tmp_path / "resnet18-CIFAR10_RSLAD0.5.pth"
    torch.save({"student": state, "optimizer": {"lr": 0.1}}, path)
    assert torch.equal(models.load_teacher(f"mobilenetv2@{path}")(X), student(X))
    wrn = models.build("wrn-10-2").eval()
    assert any(key.startswith("sub_block1.") for key in wrn.state_dict())
    state = {f"module.{k}": v for k, v in wrn.state_dict().items()}
    path = written(tmp_path / "model_cifar_wrn.pt", state)
    assert torch.equal(models.load_teacher(f"wrn-10-2@{path}")(X), wrn(X))
    # Other code leaves out the stage that is never used.
    less = {k: v for k, v in state.items() if "sub_block1" not in k}
    path = written(tmp_path / "without.pt", less)
    assert torch.equal(models.load_teacher(f"wrn-10-2@{path}")(X), wrn(X))


def test_the_released_trades_network_has_its_keys_and_shapes() -> None:
    with torch.device("meta"):
        state = models.build("wrn-34-10").state_dict()
    assert len([k for k in state if k.startswith("sub_block1.layer.4.")]) == 12
    assert state["block1.layer.0.convShortcut.weight"].shape == (160, 16, 1, 1)
    assert state["block3.layer.4.conv2.weight"].shape == (640, 640, 3, 3)
    used = [v for k, v in state.items() if k.endswith(("weight", "bias")) and "sub_" not in k]
    assert sum(map(torch.Tensor.numel, used)) == 46_160_474


def deepmind_state(depth: int, width: int, classes: int) -> dict[str, torch.Tensor]:
    """The entries of google-deepmind's files, written down from their names."""
    shapes: dict[str, tuple[int, ...]] = {"init_conv.weight": (16, 3, 3, 3)}

    def norm(name: str, planes: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (planes,)
        shapes[f"{name}.num_batches_tracked"] = ()

    before = 16
    for stage, planes in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            at = f"layer.{stage}.block.{block}"
            norm(f"{at}.batchnorm_0", before)
            shapes[f"{at}.conv_0.weight"] = (planes, before, 3, 3)
            norm(f"{at}.batchnorm_1", planes)
            shapes[f"{at}.conv_1.weight"] = (planes, planes, 3, 3)
            if before != planes:
                shapes[f"{at}.shortcut.weight"] = (planes, before, 1, 1)
            before = planes
    norm("batchnorm", before)
    shapes |= {"logits.weight": (classes, before), "logits.bias": (classes,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith("tracked")
        else torch.rand(shape, generator=generator) / 8
        for name, shape in shapes.items()
    }


def test_deepmind_networks_have_the_published_names_and_shapes() -> None:
    expected = {k: v.shape for k, v in deepmind_state(70, 2, 100).items()}
    with torch.device("meta"):
        ours = models.build("deepmind-wrn-70-2", 100).state_dict()
        widest = models.build("deepmind-wrn-70-16", 100).state_dict()
    assert {k: v.shape for k, v in ours.items()} == expected
    assert widest.keys() == expected.keys()
    assert widest["layer.2.block.10.conv_1.weight"].shape == (1024, 1024, 3, 3)


@pytest.mark.parametrize("classes", [10, 100])
def test_a_deepmind_checkpoint_with_its_normaliser(tmp_path: Path, classes: int) -> None:
    state = deepmind_state(10, 1, classes)
    path = written(tmp_path / "linf.pt", state)
    teacher = models.load_teacher(f"deepmind-wrn-10-1@{path}", num_classes=classes)
    mean = deepmind_wrn.CIFAR100_MEAN if classes == 100 else (0.4914, 0.4822, 0.4465)
    assert teacher.mean.flatten().tolist() == pytest.approx(mean)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        entries = [state[f"{name}.{e}"] for e in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.silu(nn.functional.batch_norm(x, *entries))

    conv = nn.functional.conv2d
    out = conv((X - teacher.mean) / teacher.std, state["init_conv.weight"], padding=1)
    for stage in range(3):
        at = f"layer.{stage}.block.0"
        entered = norm(out, f"{at}.batchnorm_0")
        stride = 1 if stage == 0 else 2
        kwargs = {"stride": stride} if stage else {"padding": 1}
        padded = nn.functional.pad(entered, (0, 1, 0, 1)) if stage else entered
        inside = norm(conv(padded, state[f"{at}.conv_0.weight"], **kwargs), f"{at}.batchnorm_1")
        if f"{at}.shortcut.weight" in state:
            out = conv(entered, state[f"{at}.shortcut.weight"], stride=stride)
        out = out + conv(inside, state[f"{at}.conv_1.weight"], padding=1)
    pooled = norm(out, "batchnorm").mean((2, 3))
    expected = pooled @ state["logits.weight"].T + state["logits.bias"]
    torch.testing.assert_close(teacher(X), expected, rtol=1e-4, atol=1e-4)


def test_a_torchvision_network_with_weights_from_a_file(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=7).eval()
    path = written(tmp_path / "r.pt", {f"module.{k}": v for k, v in network.state_dict().items()})
    before = torch.get_rng_state()
    teacher = models.load_teacher(f"torchvision:resnet18@{path}", num_classes=7, mean=MEAN, std=STD)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(teacher(X), models.Normalized(network, MEAN, STD)(X))


def test_pretrained_torchvision_weights_carry_their_normaliser(monkeypatch) -> None:
    network = torchvision.models.resnet18(num_classes=1000).state_dict()
    seen = []

    def fetch(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        seen.append(self)
        return network

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fetch)
    teacher = models.load_teacher("torchvision:resnet18", num_classes=1000, image_size=64)
    assert seen == [torchvision.models.ResNet18_Weights.DEFAULT]
    assert teacher.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ValueError, match="has num_classes=1000, but the data needs 10"):
        models.load_teacher("torchvision:resnet18")

    def fail(self, *args: object, **kwargs: object) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(
        ValueError, match="torchvision:resnet18 could not be fetched .*: no network$"
    ):
        models.load_teacher("torchvision:resnet18")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_a_timm_network_with_weights_from_a_file(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm")
    sized = {"img_size": 32} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=10, **sized).eval()
    path = written(tmp_path / "v.pt", network.state_dict())
    assert torch.equal(models.load_teacher(f"timm:{name}@{path}")(X), network(X))
    with pytest.raises(ValueError, match=f"not a {name} with num_classes=11: .*has shape"):
        models.load_teacher(f"timm:{name}@{path}", num_classes=11)
    with pytest.raises(
        ValueError, match=r"unknown timm model 'vit_tinny.*did you mean 'vit_tiny_p"
    ):
        models.load_teacher("timm:vit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"unknown timm model 'zzzz'; known: .*, and \d+ more\.$"):
        models.load_teacher("timm:zzzz")


@pytest.fixture
def robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the layout of robustbench, whose one model lies in a file."""
    package = tmp_path / "site" / "robustbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .utils import load_model\n")
    path = written(tmp_path / "Zoo2021.pt", small().state_dict())
    (package / "utils.py").write_text(
        textwrap.dedent(f"""
        import torch
        from fastard import models

        ZOO = {{("cifar10", "Linf"): {{"Zoo2021": {str(path)!r}}}}}

        def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf",
                       custom_checkpoint="", norm=None):
            assert norm is None and custom_checkpoint == ""
            file = ZOO.get((dataset, threat_model), {{}})[model_name]
            model = models.build("cnn_a")
            model.load_state_dict(torch.load(file, weights_only=True))
            return model.eval()
        """)
    )
    monkeypatch.syspath_prepend(package.parent)
    for name in [n for n in sys.modules if n.split(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    yield path
    for name in [n for n in sys.modules if n.split(".")[0] == "robustbench"]:
        del sys.modules[name]


def test_robustbench(robustbench: Path) -> None:
    for spec in ("robustbench:Zoo2021", "robustbench:Linf/Zoo2021"):
        assert torch.equal(models.load_teacher(spec)(X), small()(X))
    cases = [
        ({"spec": "robustbench:Other"}, "RobustBench has no model 'Other' for cifar10 and Linf"),
        ({"spec": "robustbench:L2/Zoo2021"}, "no model 'Zoo2021' for cifar10 and L2"),
        ({"spec": "robustbench:Zoo2021", "num_classes": 100}, "'Zoo2021' for cifar100 and Linf"),
        ({"spec": "robustbench:Zoo2021", "num_classes": 7}, "num_classes is 7 but must be 10, 100"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            models.load_teacher(**options)
    robustbench.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="robustbench:Zoo2021 could not be fetched or read: "):
        models.load_teacher("robustbench:Zoo2021")


def test_robustbench_that_is_not_installed() -> None:
    if importlib.util.find_spec("robustbench"):
        pytest.skip("robustbench is installed")
    with pytest.raises(
        ValueError, match="needs the package robustbench, .*pip install robustbench"
    ):
        models.load_teacher("robustbench:Wang2023Better_WRN-28-10")


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("{dir}/none.pt", {"name": "cnn_a"}, FileNotFoundError, "no checkpoint at .*none.pt"),
        ("cnn_a@{dir}/none.pt", {}, FileNotFoundError, "no checkpoint at .*none.pt"),
        ("timm:resnet10t@{dir}/none.pt", {}, FileNotFoundError, "no checkpoint at .*none.pt"),
        ("{file}", {}, ValueError, "does not say its architecture"),
        ("cnn_b@{file}", {}, ValueError, r"unknown model 'cnn_b' \(did you mean 'cnn_a'\?\)"),
        ("resnet18@{file}", {}, ValueError, "is not a resnet18 .*lacks 'conv1.weight'"),
        ("cnn_a@{file}", {"num_classes": 9}, ValueError, r"shape \[10, 100\] but must have \[9"),
        ("cnn_a@{file}", {"mean": MEAN}, ValueError, "must be given together"),
        ("{own}", {"num_classes": 100}, ValueError, "num_classes=10, but the data needs 100"),
        ("{own}", {"image_size": 28}, ValueError, r"does not take images \[3, 28, 28\]"),
        ("torchvision:resnet19", {}, ValueError, r"unknown torchvision model 'resnet19' \(did you"),
        ("timmm:resnet18", {}, ValueError, r"unknown kind of teacher 'timmm' \(did you mean 'timm"),
        ("torchvision:fcn_resnet50@{file}", {}, ValueError, "unknown torchvision model 'fcn_"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, spec: str, options: dict, error, message: str) -> None:
    file = written(tmp_path / "t.pt", small().state_dict())
    own = tmp_path / "own.safetensors"
    models.save(own, small(), name="cnn_a")
    with pytest.raises(error, match=message) as raised:
        models.load_teacher(spec.format(dir=tmp_path, file=file, own=own), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(DATA is None, reason="FASTARD_DATA does not name the data folder")
@pytest.mark.parametrize(
    ("name", "published"), [("resnet56", 93.39), ("resnet4b", 77.20), ("cnn_a", 60.07)]
)
def test_public_teachers_by_their_spec(name: str, published: float) -> None:
    location = Path(DATA) / "unpack_cifar.py"
    spec = importlib.util.spec_from_file_location("unpack_cifar", location)
    unpack_cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack_cifar)
    x, labels = unpack_cifar.load([Path(DATA) / "mini" / "cifar10_mini_test.zip"])
    pick = torch.arange(0, 1000, 5)
    images = torch.from_numpy(x)[pick].permute(0, 3, 1, 2).float() / 255
    teacher = models.load_teacher(f"{name}@{Path(DATA) / 'teachers' / FILES[name]}")
    with torch.no_grad():
        right = teacher(images).argmax(1) == torch.from_numpy(labels["labels"])[pick].long()
    # One standard error of 200 images is 1.8 to 3.5 points.
    assert abs(100 * right.float().mean().item() - published) < 10
