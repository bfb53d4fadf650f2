"""RSLAD with a cache of its teacher's logits: equal bits, right counts, a bound that holds."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from fastard import data, methods
from fastard.methods import LogitCache
from fastard.methods.logit_cache import VIEWS
from fastard.methods.rslad import RSLAD

from .loops import network

IMAGES, CLASSES = 30, 5
TABLE = 4 * VIEWS * IMAGES


class Counted(nn.Module):
    """A teacher that counts the images it has seen."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.inner(x)


def images(augment: str) -> data.Images:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return data.Images(x, torch.arange(IMAGES) % CLASSES, augment)


def trained(cache: LogitCache | None, augment: str, passes: int, name: str = "rslad"):
    student, teacher = network(0).float(), Counted(network(1).float().eval())
    method = methods.build(name, student, teacher, steps=2)
    method.cache = cache
    torch.manual_seed(7)
    generator, seen = torch.Generator().manual_seed(1), set()
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.1, momentum=0.9)
    asked = 0
    for _ in range(passes):
        for batch in images(augment).batches(8, shuffle=True, generator=generator):
            keys = set(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
            asked += len(keys - seen)
            seen |= keys
            student.train()
            loss, _ = method(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student, teacher.seen, asked, len(seen)


def assert_same_bits(ours: nn.Module, expected: nn.Module) -> None:
    for (name, a), (_, b) in zip(
        ours.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_same_bits_with_and_without(augment: str, on_disk: bool, tmp_path) -> None:
    cache = LogitCache(IMAGES, folder=tmp_path if on_disk else None)
    passes = 3 if augment == "none" else 15
    ours, seen, asked, distinct = trained(cache, augment, passes)
    expected, seen_without, *_ = trained(None, augment, passes)
    assert_same_bits(ours, expected)
    assert seen_without == passes * IMAGES
    assert seen == asked == distinct == cache.misses == cache.stored < passes * IMAGES
    assert cache.hits == passes * IMAGES - distinct
    assert cache.hit_rate == pytest.approx(cache.hits / (passes * IMAGES))
    if augment == "none":
        assert seen == IMAGES
    assert list(tmp_path.iterdir()) == []


def test_the_bound_holds_and_the_rest_is_asked_anew() -> None:
    bound = TABLE + 12 * CLASSES * 4 + 3
    cache = LogitCache(IMAGES, max_bytes=bound)
    ours, seen, *_ = trained(cache, "none", 3)
    expected, *_ = trained(None, "none", 3)
    assert_same_bits(ours, expected)
    assert (cache.stored, cache.capacity, cache.bytes) == (12, 12, bound - 3)
    # The first twelve images of the first pass are known in the others.
    assert (cache.hits, cache.misses, seen) == (2 * 12, 3 * IMAGES - 24, 3 * IMAGES - 24)


def test_half_precision_takes_half_the_room_and_rounds() -> None:
    x, index = torch.randn(6, 1, 8, 8), torch.arange(6)
    view = torch.tensor([0, 161, 3, 3, 80, 80])
    teacher = network(1).float().eval()
    with torch.no_grad():
        expected = teacher(x)
        for dtype, size in ((torch.float16, 2), (torch.bfloat16, 2), (None, 4)):
            cache = LogitCache(6, dtype=dtype)
            assert (cache.bytes, cache.capacity) == (0, 0)
            assert torch.equal(cache.logits(x, index, view, teacher), expected)
            again = cache.logits(x, index, view, lambda _: pytest.fail("asked again"))
            rounded = expected.to(dtype or torch.float32).float()
            assert torch.equal(again, rounded)
            assert again.dtype == torch.float32
            assert cache.bytes == 4 * VIEWS * 6 + 6 * VIEWS * CLASSES * size


CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("on_disk", [False, True])
def test_only_what_is_missing_is_asked_for(device: str, on_disk: bool, tmp_path) -> None:
    cache, asked = LogitCache(4, folder=tmp_path if on_disk else None), []

    def ask(x: torch.Tensor) -> torch.Tensor:
        asked.append(x.flatten().tolist())
        return x.view(-1, 1) * torch.ones(3, device=device)

    def get(index: list[int], view: list[int]) -> list[float]:
        x = torch.tensor(index)[:, None] * 1000.0 + torch.tensor(view)[:, None]
        x, *keys = (t.to(device) for t in (x, torch.tensor(index), torch.tensor(view)))
        found = cache.logits(x, *keys, ask)
        assert found.device.type == device
        return found[:, 2].tolist()

    assert get([0, 1], [5, 6]) == [5, 1006]
    assert get([1, 0, 3], [6, 6, 161]) == [1006, 6, 3161]
    assert get([3, 0, 0], [161, 5, 6]) == [3161, 5, 6]
    assert asked == [[5, 1006], [6, 3161]]
    assert (cache.hits, cache.misses, cache.stored) == (4, 4, 4)


def test_a_method_whose_teacher_sees_attacked_images_refuses() -> None:
    for name, message in (
        ("trades", "method 'trades' cannot use a logit cache: it has no teacher"),
        ("natural", "method 'natural' cannot use a logit cache: it has no teacher"),
    ):
        method = methods.build(name, network(0))
        method.cache = None
        with pytest.raises(ValueError, match=message):
            method.cache = LogitCache(IMAGES)
        assert method.cache is None

    class Attacked(RSLAD):
        teacher_sees_clean = False

    with pytest.raises(ValueError, match="its teacher sees images that never come again"):
        Attacked(network(0), network(1)).cache = LogitCache(IMAGES)


@pytest.mark.parametrize(
    ("name", "options"), [("kd", {}), ("ard", {"steps": 1}), ("akd", {"steps": 1})]
)
def test_methods_that_ask_for_clean_images_alone_take_a_cache(name: str, options: dict) -> None:
    if name == "akd":
        with pytest.raises(ValueError, match="its teacher sees images that never come again"):
            methods.build(name, network(0), network(1)).cache = LogitCache(IMAGES)
        options = {**options, "teacher_input": "clean", "attack_labels": "mixed"}
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    y = torch.tensor([0, 1])
    losses, cache = [], LogitCache(IMAGES)
    for kept in (None, cache, cache):
        method = methods.build(name, network(0), network(1), **options)
        method.cache = kept
        torch.manual_seed(0)
        losses.append(method(x, y, index=y, view=y)[0].item())
    assert len(set(losses)) == 1
    assert cache.misses == 2 and cache.hits >= 2


def test_refusals() -> None:
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    student = network(0).float()
    method = methods.build("rslad", student, network(1).float(), steps=1)
    method.cache = cache = LogitCache(IMAGES)
    cases = [
        ({}, "index and view must be given with a logit cache"),
        ({"index": torch.tensor([0, 30]), "view": y}, r"index must lie in \[0, 30\) .*\[0, 30\]"),
        ({"index": y, "view": torch.tensor([-1, -1])}, "no views that come again"),
        ({"index": y, "view": torch.zeros(2, 3).long()}, r"view must be integers \[2\].*\[2, 3\]"),
    ]
    for keys, message in cases:
        with pytest.raises(ValueError, match=message):
            method(x, y, **keys)
    assert (cache.hits, cache.misses, cache.bytes) == (0, 0, 0)
    method(x, y, index=y, view=y)
    with pytest.raises(ValueError, match="must have 5 columns, as those in the cache, but have 4"):
        cache.logits(x, y + 5, y, lambda x: torch.zeros(len(x), 4))
    with pytest.raises(ValueError, match=f"max_bytes must be above {TABLE}, the table for 30"):
        LogitCache(IMAGES, max_bytes=TABLE)
    with pytest.raises(TypeError, match="dtype must be float32, .* but is torch.int8"):
        LogitCache(IMAGES, dtype=torch.int8)
    with pytest.raises(ValueError, match="images must be at least 1"):
        LogitCache(0)


def test_a_copy_has_no_cache(tmp_path) -> None:
    method = methods.build("rslad", network(0), network(1))
    method.cache = LogitCache(IMAGES, folder=tmp_path)
    assert copy.deepcopy(method).cache is None
    assert pickle.loads(pickle.dumps(method)).cache is None


def test_several_teachers_share_a_cache() -> None:
    class Several(RSLAD):
        most_teachers = 2

    teachers = [network(1).float(), network(2, classes=3).float()]
    method = Several(network(0).float(), teachers, steps=1)
    method.cache = LogitCache(IMAGES)
    x, index = torch.rand(2, 1, 8, 8), torch.tensor([3, 4])
    for _ in range(2):
        method._keys = (weakref.ref(x), index, index)
        found = method._ask_teachers(x)
        assert [each.shape[1] for each in found] == [5, 3]
        for each, teacher in zip(found, teachers, strict=True):
            torch.testing.assert_close(each, teacher(x).detach())
    assert (method.cache.hits, method.cache.misses) == (2, 2)
    # Another run with the same teachers goes on with it.
    other = Several(network(0).float(), teachers, steps=1)
    other.cache = method.cache
    other._keys = (weakref.ref(x), index, index)
    for a, b in zip(other._ask_teachers(x), found, strict=True):
        assert torch.equal(a, b)
    assert (other.cache.hits, other.cache.misses) == (4, 2)
