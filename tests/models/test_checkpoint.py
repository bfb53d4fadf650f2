"""`models.save` and `models.load_checkpoint`: what survives the trip, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fastard import models

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def digits_model(**kwargs: object) -> nn.Module:
    torch.manual_seed(3)
    model = models.build("small_cnn", image_size=8, **kwargs)
    model(torch.rand(8, 1, 8, 8))
    return model.eval()


def save_digits(path: Path, model: nn.Module, **options: object) -> None:
    models.save(path, model, name="small_cnn", image_size=8, **options)


def test_a_saved_model_comes_back_from_its_path_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    model = digits_model(width=5).train()
    extra = {"epoch": 3, "history": [0.25, None, "x"], "nested": {"eps": 0.15}}
    save_digits(path, model, kwargs={"width": 5}, extra=extra)
    assert model.training
    loaded, meta = models.load_checkpoint(path)
    assert meta == {
        "architecture": "small_cnn",
        "num_classes": 10,
        "in_channels": 1,
        "image_size": 8,
        "kwargs": {"width": 5},
        "mean": None,
        "std": None,
        "extra": extra,
    }
    assert not loaded.training
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_load_returns_the_model_alone(tmp_path: Path) -> None:
    path, model, x = tmp_path / "a.safetensors", digits_model(), torch.rand(2, 1, 8, 8)
    save_digits(path, model)
    assert torch.equal(models.load(path)(x), model(x))


def test_a_normalised_model_keeps_its_mean_and_std(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = models.Normalized(models.build("resnet18", 7), MEAN, STD).eval()
    models.save(path, model, name="resnet18", num_classes=7)
    loaded, meta = models.load_checkpoint(path)
    assert meta["mean"] == list(MEAN)
    assert meta["std"] == list(STD)
    assert isinstance(loaded, models.Normalized)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert not torch.equal(loaded.model(x), loaded(x))


def test_mean_and_std_of_a_caller_who_normalises(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_digits(path, digits_model(), mean=(0.3,), std=(0.2,))
    loaded = models.load(path)
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded(x), digits_model()((x - 0.3) / 0.2))
    assert models.load_checkpoint(path, mean=[0.5], std=[0.1])[1]["mean"] == [0.5]


def test_metadata_are_json_strings_that_other_tools_can_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_digits(path, digits_model(), extra={"epoch": 1})
    with safe_open(path, framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["architecture"] == "small_cnn"
    assert metadata["extra"] == {"epoch": 1}


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", digits_model()
    save_digits(path, torch.compile(nn.DataParallel(model)))
    assert list(models.load(path).state_dict()) == list(model.state_dict())


def test_tied_and_channels_last_weights_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = models.build("wrn-10-1").to(memory_format=torch.channels_last).eval()
    model.sub_block1.layer[0].conv1.weight = model.block1.layer[0].conv1.weight
    models.save(path, model, name="wrn-10-1")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(models.load(path)(x), model(x))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    models.save(path, models.build("wrn-10-1"), name="wrn-10-1")
    before = torch.get_rng_state()
    models.load(path)
    assert torch.equal(torch.get_rng_state(), before)


TORCH_FILES = [
    (suffix, container)
    for suffix in (".pt", ".pth", ".th")
    for container in (None, "state_dict", "model", "net")
]


@pytest.mark.parametrize(("suffix", "container"), [*TORCH_FILES, (".safetensors", None)])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_checkpoints_of_other_code(
    tmp_path: Path, suffix: str, container: str | None, prefix: str
) -> None:
    model, path = digits_model(), tmp_path / f"theirs{suffix}"
    state = {prefix + key: value.clone() for key, value in model.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    elif container is None:
        torch.save(state, path)
    else:
        torch.save({container: state, "epoch": 9, "optimizer": {"lr": 1}}, path)
    loaded, meta = models.load_checkpoint(path, name="small_cnn", image_size=8)
    assert meta["extra"] == ({} if container is None else {"epoch": 9})
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))


def test_files_that_do_not_count_batches_or_are_in_half_precision(tmp_path: Path) -> None:
    model, path = digits_model(), tmp_path / "old.pt"
    state = {k: v.half() for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    loaded = models.load(path, name="small_cnn", image_size=8)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.features[0][1].num_batches_tracked == 0
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded(x), model(x), rtol=0.02, atol=0.02)


def test_weights_of_any_network_through_load_state(tmp_path: Path) -> None:
    mine, path = nn.Linear(3, 2), tmp_path / "mine.pt"
    torch.save({"net": nn.DataParallel(mine).state_dict(), "acc": 0.5}, path)
    state, stored = models.load_state(path)
    assert list(state) == ["weight", "bias"]
    assert stored == {"extra": {"acc": 0.5}}
    assert torch.equal(state["weight"], mine.weight)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*nothing.pt"):
        models.load(tmp_path / "nothing.pt", name="resnet18")
    with pytest.raises(FileNotFoundError):
        models.load(tmp_path, name="resnet18")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_damaged_file(tmp_path: Path, suffix: str, damage: str) -> None:
    path, model = tmp_path / f"a{suffix}", digits_model()
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_digits(path, model)
    whole = path.read_bytes()
    part = {"empty": b"", "garbage": b"\x17 no weights" * 99, "truncated": whole[: len(whole) // 2]}
    path.write_bytes(part[damage])
    with pytest.raises(ValueError, match="is damaged or not a checkpoint: .") as error:
        models.load(path, name="small_cnn", image_size=8)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(
        ValueError, match="is damaged or not a checkpoint: it holds a .*Linear"
    ) as e:
        models.load(path, name="resnet18")
    assert "weights_only" not in str(e.value)


def test_mean_and_std_need_one_value_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="mean has 3 values but must have one for each of the 1 "):
        save_digits(path, digits_model(), mean=MEAN, std=STD)
    assert list(tmp_path.iterdir()) == []
    save_digits(path, digits_model())
    with pytest.raises(ValueError, match="mean has 3 values but must have one for each of the 1 "):
        models.load(path, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list but must hold a non-empty state_dict"),
        ({}, "holds a dict but must hold a non-empty state_dict"),
        ({"epoch": 3}, "entry 'epoch' of .* is a int but must be a tensor"),
    ],
)
def test_file_without_weights(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        models.load(path, name="resnet18")


def test_architecture_must_be_known(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(digits_model().state_dict(), path)
    with pytest.raises(ValueError, match="does not say its architecture: give name="):
        models.load(path)
    with pytest.raises(ValueError, match="unknown model 'resnet19' "):
        models.load(path, name="resnet19")


def test_wrong_architecture_names_the_first_missing_key(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_digits(path, digits_model(width=4), kwargs={"width": 4})
    message = (
        "is not a resnet18 with num_classes=10: it lacks 'conv1.weight' .*, "
        "and it has 'features.0.0.weight'"
    )
    with pytest.raises(ValueError, match=message):
        models.load(path, name="resnet18")


def test_too_many_keys_name_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(models.build("wrn-10-1").state_dict(), path)
    with pytest.raises(ValueError, match="has 'sub_block1.layer.0.bn1.weight'"):
        models.load(path, name="wrn-10-1", sub_block=False)


def test_wrong_number_of_classes_names_the_key_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    models.save(path, models.build("wrn-10-1"), name="wrn-10-1")
    message = r"num_classes=100: its 'fc.weight' has shape \[10, 64\] but must have \[100, 64\]"
    with pytest.raises(ValueError, match=message):
        models.load(path, num_classes=100)


def test_a_file_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_digits(path, digits_model())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"the model to save is not a small_cnn .* has shape"):
        save_digits(path, digits_model(width=4))
    with pytest.raises(ValueError, match="unknown model .mine.; known: "):
        models.save(path, digits_model(), name="mine")
    with pytest.raises(TypeError, match="JSON serializable"):
        save_digits(path, digits_model(), extra={"a": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_save_refuses_what_it_cannot_honour(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="written as .safetensors but the path is .*a.pt"):
        save_digits(tmp_path / "a.pt", digits_model())
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"mean is \(0.1,\) and std is None"):
        save_digits(path, digits_model(), mean=(0.1,))
    normalised = models.Normalized(digits_model(), (0.1,), (0.2,))
    with pytest.raises(ValueError, match="Normalized already"):
        save_digits(path, normalised, mean=(0.1,), std=(0.2,))
    with pytest.raises(FileNotFoundError, match="the folder .*none does not exist"):
        save_digits(tmp_path / "none" / "a.safetensors", digits_model())
    assert list(tmp_path.iterdir()) == []
