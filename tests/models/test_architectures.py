"""Each network against its published definition: keys, shapes, counts, forward, initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastard import models

from . import published

# Published or derived by hand from the papers' code; sub_block1 of WRN-34-10 adds 2,102,112.
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "mobilenetv2": 2_296_922,
    "preactresnet18": 11_172_170,
    "wrn-34-10": 46_160_474 + 2_102_112,
    "wrn-28-10": 36_479_194 + 1_640_672,
    "resnet56": 853_018,
    "resnet4b": 123_734,
    "cnn_a": 214_918,
}

RESNET18, RESNET34 = (2, 2, 2, 2), (3, 4, 6, 3)
SHAPES = {
    "resnet18": published.resnet_shapes(RESNET18),
    "resnet34": published.resnet_shapes(RESNET34),
    "mobilenetv2": published.mobilenetv2_shapes(),
    "preactresnet18": published.preactresnet_shapes(RESNET18),
    "wrn-34-10": published.wideresnet_shapes(34, 10),
    "wrn-16-4": published.wideresnet_shapes(16, 4),
}
FORWARD = {
    "resnet18": lambda s, x: published.resnet(s, RESNET18, x),
    "resnet34": lambda s, x: published.resnet(s, RESNET34, x),
    "mobilenetv2": published.mobilenetv2,
    "preactresnet18": lambda s, x: published.preactresnet(s, RESNET18, x),
    "wrn-16-2": lambda s, x: published.wideresnet(s, 16, x),
}
SMALL = ["resnet18", "mobilenetv2", "preactresnet18", "wrn-10-1", "resnet56"]


def meta(name: str, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **kwargs)


def built(name: str, seed: int = 0, size: int = 32, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    model = models.build(name, image_size=size, **kwargs)
    channels = next(model.parameters()).shape[1]
    published.bring_to_life(model, torch.rand(8, channels, size, size))
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert sum(p.numel() for p in meta(name).parameters()) == PARAMETERS[name]


def test_parameter_count_of_the_variants() -> None:
    count = sum(p.numel() for p in meta("wrn-34-10", sub_block=False).parameters())
    assert count == 46_160_474
    count = sum(p.numel() for p in meta("preactresnet18", final_bn=False).parameters())
    assert count == 11_171_146


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_has_the_published_keys_in_order_with_their_shapes(name: str) -> None:
    ours = [(key, tuple(value.shape)) for key, value in meta(name).state_dict().items()]
    assert ours == list(SHAPES[name].items())


def test_keys_of_the_variants() -> None:
    wrn = meta("wrn-16-4", sub_block=False).state_dict()
    assert list(wrn) == list(published.wideresnet_shapes(16, 4, sub_block=False))
    preact = meta("preactresnet18", final_bn=False).state_dict()
    assert list(preact) == list(published.preactresnet_shapes(RESNET18, final_bn=False))


def test_wideresnet_has_the_unused_stage_of_the_released_checkpoints() -> None:
    model = built("wrn-10-1")
    unused = [key for key in model.state_dict() if key.startswith("sub_block1.layer.0.")]
    assert len(unused) == 2 * len(published.BN) + 2
    x = torch.rand(2, 3, 32, 32)
    before = model(x)
    with torch.no_grad():
        for parameter in model.sub_block1.parameters():
            parameter.fill_(math.nan)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", FORWARD)
def test_forward_is_the_published_one_to_the_bit(name: str) -> None:
    model = built(name)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(x), FORWARD[name](model.state_dict(), x))


def test_forward_of_the_preactivation_variant() -> None:
    model = built("preactresnet18", final_bn=False)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = published.preactresnet(model.state_dict(), RESNET18, x)
        assert torch.equal(model(x), expected)


def test_dropout_of_the_wide_resnet_acts_in_training_only() -> None:
    dropping, plain = models.build("wrn-10-1", drop_rate=0.5).eval(), built("wrn-10-1")
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(dropping(x), plain(x))
    assert not torch.equal(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "preactresnet18"])
def test_seeding_reproduces_the_published_initial_weights(name: str) -> None:
    torch.manual_seed(5)
    state = models.build(name).state_dict()
    torch.manual_seed(5)
    for key, weight in state.items():
        if weight.ndim == 4:
            out, inp, k, _ = weight.shape
            assert torch.equal(nn.Conv2d(inp, out, k, bias=False).weight, weight), key
    linear = nn.Linear(*reversed(state["linear.weight"].shape))
    assert torch.equal(linear.weight, state["linear.weight"])
    assert torch.equal(linear.bias, state["linear.bias"])


def test_seeding_reproduces_the_published_initial_weights_of_the_wide_resnet() -> None:
    torch.manual_seed(5)
    state = models.build("wrn-10-2").state_dict()
    torch.manual_seed(5)
    convs = {key: weight.shape for key, weight in state.items() if weight.ndim == 4}
    for out, inp, k, _ in convs.values():
        nn.Conv2d(inp, out, k, bias=False)
    linear = nn.Linear(128, 10)
    for key, (out, inp, k, _) in convs.items():
        expected = torch.empty(out, inp, k, k).normal_(0, math.sqrt(2 / (k * k * out)))
        assert torch.equal(expected, state[key]), key
    assert torch.equal(linear.weight, state["fc.weight"])
    assert not state["fc.bias"].any()


@pytest.mark.parametrize("size", [32, 28, 8])
@pytest.mark.parametrize("name", SMALL)
def test_logits_for_every_image_size(name: str, size: int) -> None:
    model = built(name, size=size, num_classes=7, in_channels=1)
    logits = model(torch.rand(3, 1, size, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [*SMALL, "resnet4b", "cnn_a", "small_cnn"])
def test_output_in_eval_mode_does_not_depend_on_the_batch(name: str) -> None:
    model = built(name)
    x = torch.rand(5, 1 if name == "small_cnn" else 3, 32, 32)
    with torch.no_grad():
        whole = model(x)
        single = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "small_cnn", "resnet56"])
def test_state_dict_round_trip(name: str) -> None:
    one, two = built(name, seed=1), built(name, seed=2)
    x = torch.rand(2, 1 if name == "small_cnn" else 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(one(x), two(x))
        two.load_state_dict(one.state_dict(), strict=True)
        assert torch.equal(one(x), two(x))


@pytest.mark.parametrize("name", models.names())
def test_every_network_can_be_traced_by_fx(name: str) -> None:
    graph = torch.fx.symbolic_trace(meta(name)).graph
    assert sum(node.op == "call_module" for node in graph.nodes) > 5
