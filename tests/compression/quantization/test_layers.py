"""Models with int8 layers, built again from their spec; what the layers take over from those they replace."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from kedro_aat.compression.quantization.layers import (
    QuantizedModelSpec,
    make_quantized,
    quantized_spec,
)
from kedro_aat.errors import ModelError
from kedro_aat.testing.training import BATCH, small_net
from tests.compression.quantization.quantized import quantized, run, settled
from tests.nets import Perceptron, SmallNet

INPUTS = BATCH["inputs"]


def test_stripped_model_is_built_again_from_its_spec() -> None:
    small = quantized(settled(small_net(), INPUTS), INPUTS).strip()
    spec = quantized_spec(small)
    assert spec is not None
    rebuilt = small_net(seed=5)
    make_quantized(rebuilt, QuantizedModelSpec.model_validate(json.loads(spec.model_dump_json())))
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(run(rebuilt, INPUTS), run(small, INPUTS))
    assert torch.equal(run(copy.deepcopy(rebuilt), INPUTS), run(small, INPUTS))


def test_spec_of_another_model_is_refused() -> None:
    spec = quantized_spec(quantized(small_net(), INPUTS).strip())
    assert spec is not None
    with pytest.raises(ModelError, match=r"Perceptron has no layers classifier, conv, stem\.0"):
        make_quantized(Perceptron([2, 2]), spec)


def test_hooks_and_modes_of_layers_pass_to_their_replacements() -> None:
    hook_calls: list[str] = []
    model = settled(SmallNet(), INPUTS)
    conv, norm, classifier = (model.get_submodule(name) for name in ("stem.0", "stem.1", "classifier"))
    norm.register_forward_pre_hook(lambda module, args: hook_calls.append("norm"))
    conv.register_forward_pre_hook(lambda module, args, kwargs: hook_calls.append("conv"), with_kwargs=True)
    classifier.register_forward_hook(lambda module, args, out: 10 * out)
    conv.eval().requires_grad_(False)
    controller = quantized(model.train(), INPUTS)
    norm.eval()
    small = controller.strip()
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    expected = run(model, INPUTS)
    hook_calls.clear()
    assert (run(small, INPUTS) - expected).abs().max() < 0.02 * expected.abs().max()
    assert hook_calls == ["conv", "norm"]
