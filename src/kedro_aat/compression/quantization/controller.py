"""Quantization-aware training: layers are quantized to int8, the least sensitive first.

The rate is the share of the weights that are int8, so a search can lower it until the accuracy holds, and leave the
layers that suffer most in full precision. A layer's sensitivity is the energy of the change that quantizing this layer
alone makes to the model's outputs, over that of the outputs, measured on the first batch of the calibration. Before,
it is the energy of the weight's rounding error over that of the weight: the inverse of the signal-to-quantization-noise
ratio, by which Lin et al. 2016 ("Fixed Point Quantization of Deep Convolutional Networks", arXiv:1511.06393) divide
bits among layers. That one does not see activations, nor that all rounding errors of a channel grow with its largest
weight.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.layer_choice import least_damaged, relative_energy
from kedro_aat.compression.layer_table import LayerTable, shape_text
from kedro_aat.compression.masks import ZEROS_MASK, WeightMasks
from kedro_aat.compression.matrices import matrices_of
from kedro_aat.compression.nncf_statistics import (
    ConstSparsityFigures,
    Figures,
    QuantizationFigures,
    QuantizersCounter,
)
from kedro_aat.compression.own_buffers import exclude_from_ddp
from kedro_aat.compression.quantization.arithmetic import (
    HIGHEST_SAFE_WEIGHT,
    HIGHEST_WEIGHT,
    round_weight,
)
from kedro_aat.compression.quantization.convert import hold_integers
from kedro_aat.compression.quantization.fake import FakeQuantization
from kedro_aat.compression.quantization.placement import Placement
from kedro_aat.compression.quantization.weights import choose_weights
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.settings import Quantization
from kedro_aat.compression.sparsity.figures import count_zeros, sparse_model
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, call_model, map_tensors, placed_like, tensors_in
from kedro_aat.modes import evaluating

logger = logging.getLogger(__name__)

# Lowest rate at which every layer is quantized, however few weights the last one has: a search never reaches 1.
ALL_LAYERS_FROM = 0.99


class QuantizationController(ScheduledController[Quantization]):
    """Quantizes a share of a model's weights, and the activations around them.

    The model keeps its class, its parameters and their names; its `state_dict` gains two entries. The ranges of
    activations come from `calibrate`, or else from the first batch, and are updated during training.

    Convolutions and linear layers are computed in integers. Transposed convolutions, embeddings, recurrent, bilinear
    and attention layers, layers of classes with a `forward` of their own, and weights that layers share are only stored
    in int8, and computed in floating point. The rate counts the weights of the whole model, also those that stay as
    they are.

    Args:
        model: The model, changed in place.
        settings: Settings of the algorithm.
        steps_per_epoch: Optimizer steps per epoch, for rates that change within an epoch; counted if None.
        example_input: What the model is called with, in any structure, for `export_model`, and for the ranges if no
            other batch was seen.
        is_part: Whether it belongs to a composite, whose other algorithms may mask the model.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: If no weight can be int8, one is not float32, or the model is under compression already.
    """

    name = "quantization"
    settings_type = Quantization
    first_target_rate = ALL_LAYERS_FROM
    regrows = True

    def _prepare(self) -> None:
        model, settings = self.model, self.settings
        self._choice = choose_weights(model, settings.ignored_scopes, settings.target_scopes)
        self._layers = self._choice.layers
        self.maximal_compression_rate = sum(self._sizes()) / self._choice.total
        if left := self._choice.left_float:
            logger.warning(
                "%s of the weights stay in full precision: %s.",
                f"{1 - self.maximal_compression_rate:.4f}",
                "; ".join(f"{name}, because {reason}" for name, reason in left.items()),
            )
        self._highest = HIGHEST_SAFE_WEIGHT if settings.overflow_fix else HIGHEST_WEIGHT
        # Of all layers, because sparsity may have pruned some that stay in full precision.
        self._zeros = WeightMasks(matrices_of(model) if settings.keep_zeros else (), suffix=ZEROS_MASK)
        if settings.keep_zeros:
            self._zeros.attach(model)
            self._zeros.forget()  # they were zero before, too
            self._zeros.put([weight.parameter != 0 for weight in self._zeros.weights])
        self._fake = FakeQuantization(model, self._layers, settings, self._highest, self.example_input)
        self._measured: list[float] | None = None  # sensitivities
        self._set_rate(settings.schedule.initial_rate)

    def calibrate(self, batches: Iterable[ModelInputs]) -> None:
        """Sets the ranges of activations to the means of their lowest and highest numbers over batches.

        The first batch also measures the sensitivity of each layer.

        Args:
            batches: Inputs (B, ...), or tuples whose first element is the input; both in any structure.

        Raises:
            DataError: If there is no batch, or a tensor is not finite.
        """
        device = self._layers[0].parameter.device
        inputs = (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)
        on_device = (map_tensors(lambda part: part.to(device), batch) for batch in inputs)
        first = list(itertools.islice(on_device, 1))
        self._fake.observe(itertools.chain(first, on_device))
        self._measured = self._measure(first[0])
        self._compress(self._requested_rate)

    @torch.no_grad()
    def _measure(self, batch: ModelInputs) -> list[float]:
        """Energy of what quantizing each layer alone changes in the outputs, over that of the outputs."""

        def outputs(active: Collection[int]) -> Tensor:
            self._fake.active = frozenset(active)
            found = tensors_in(call_model(self.model, batch))
            return torch.cat([tensor.flatten().float() for tensor in found if tensor.is_floating_point()])

        with evaluating(self.model):
            exact = outputs(())
            return [relative_energy(outputs((number,)) - exact, exact) for number in range(len(self._layers))]

    def compiled(self, mode: str | None = None) -> nn.Module:
        """Returns the model itself, whose training passes run as compiled graphs from now on."""
        self._fake.compile(mode)
        return self.model

    def apply_masks(self) -> None:
        self._zeros.apply()

    def _sizes(self) -> list[int]:
        return [layer.parameter.numel() for layer in self._layers]

    def _compress(self, rate: float) -> None:
        sizes = self._sizes()
        if rate >= min(ALL_LAYERS_FROM, self.maximal_compression_rate):
            self._fake.active = frozenset(range(len(sizes)))
            return
        errors = self._sensitivities()
        self._fake.active = frozenset(least_damaged(errors, sizes, rate * self._choice.total))

    def _sensitivities(self) -> list[float]:
        if self._measured is not None:
            return self._measured
        weights = [(layer.parameter.detach(), layer.axis) for layer in self._layers]
        return [relative_energy(round_weight(weight, self._highest, axis) - weight, weight) for weight, axis in weights]

    @property
    def rate_words(self) -> str:
        """What the rate is the share of."""
        return "weights in int8"

    @property
    def achieved_rate(self) -> float:
        """Weights in int8 over all weights of the model, in [0, 1]; biases and normalizations have none."""
        sizes = self._sizes()
        return sum(sizes[number] for number in self._fake.active) / self._choice.total

    def statistics(self, quickly_collected_only: bool = False) -> LayerTable:
        """Bits and sensitivity of every weight that can be quantized, and why the others are not."""
        sizes = self._sizes()
        computed = [number in self._fake.active and layer.is_computed for number, layer in enumerate(self._layers)]
        bits = [8 if number in self._fake.active else 32 for number in range(len(sizes))]
        num_bytes = sum(size * width // 8 for size, width in zip(sizes, bits, strict=True))
        num_bytes += 4 * (self._choice.total - sum(sizes))
        return LayerTable(
            algorithm=self.name,
            rate=self.achieved_rate,
            headline=(
                f"{self.achieved_rate:.4f} of the weights are int8, in {bits.count(8)} of {len(bits)} layers; "
                f"all weights take {num_bytes} bytes"
            ),
            columns={
                "layer": [layer.name for layer in self._layers],
                "shape": [shape_text(layer.parameter.shape) for layer in self._layers],
                "bits": bits,
                "computed in": ["int8" if is_integer else "float" for is_integer in computed],
                "weights": sizes,
                "sensitivity": self._sensitivities(),
                "rate": [1.0 if width == 8 else 0.0 for width in bits],
            },
            notes=self._choice.left_float,
            note_format="{layer} stays in full precision: {reason}",
            number_formats={"sensitivity": "{:.2e}", "rate": "{:.0f}"},
            figures=self._figures(),
        )

    def _figures(self) -> list[Figures]:
        """What NNCF's scripts read."""
        num_sites = len(self._fake.placement.sites) if self._fake.placement else 0
        weights = QuantizersCounter.of_weights(len(self._fake.active), len(self._layers))
        activations = QuantizersCounter.of_activations(len(self._fake.active_sites()), num_sites)
        found: list[Figures] = [QuantizationFigures.of(weights, activations)]
        if zeros := self._zeros.weights:
            self._zeros.apply()
            numbers = count_zeros([weight.parameter for weight in zeros])
            found.append(ConstSparsityFigures(sparse_model(self.model, zeros, numbers)))
        return found

    def get_state(self) -> dict[str, Any]:
        """Includes what was recorded of the forward pass, so that a fresh controller can be stripped."""
        placement = self._fake.placement
        measured = {} if self._measured is None else {"sensitivities": self._measured}
        return (
            super().get_state()
            | measured
            | {
                "num_observed": self._fake.num_observed,
                "placement": placement and placement.model_dump(mode="json"),
            }
        )

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._fake.num_observed = state["num_observed"]
        self._measured = state.get("sensitivities")  # version 0.1.0 measured none
        # Versions up to 0.2 saved "plans" with numbers of steps; the next call of the model finds the places anew.
        placement = state.get("placement")
        self._fake.placement = placement and Placement.model_validate(placement)

    def strip(self, do_copy: bool = True) -> nn.Module:
        """Returns the model with int8 weights in its quantized layers, and BatchNorms folded into these.

        At rate 0 it is the original model.

        Args:
            do_copy: Whether to leave the model under training unchanged and return a copy.

        Raises:
            ModelError: If the model was neither called nor calibrated, and there is no example input.
        """
        controller = copy.deepcopy(self) if do_copy else self
        scales = controller.end_training()
        controller.hold_integers(scales)
        exclude_from_ddp(controller.model)
        return controller.model

    def end_training(self) -> dict[str, Tensor]:
        """First half of `strip`, in place: the model computes in full precision again.

        Returns:
            Key of each quantized weight -> (n,) scales; the key is the layer's name if it makes n channels.

        Raises:
            ModelError: If the model was neither called nor calibrated, and there is no example input.
        """
        model, fake = self.model, self._fake
        if fake.active and fake.placement is None:
            if self.example_input is None:
                raise ModelError(
                    f"{type(model).__name__} was not called since it was put under quantization, so the ranges of its "
                    "activations are unknown: train it, call calibrate(batches), or evaluate it on a batch."
                )
            fake.find_places(placed_like(self.example_input, model))
        self._zeros.leave_zeros()
        fake.unfollow()
        return dict(fake.scales_of(number) for number in sorted(fake.active))

    def hold_integers(self, scales: Mapping[str, Tensor], *, is_cut: bool = False) -> None:
        """Second half of `strip`, in place: the quantized layers hold integers.

        Args:
            scales: The result of `end_training`, without the scales of outputs that were cut since.
            is_cut: Whether channels were cut since `end_training`. The forward pass is then recorded again, because
                cut attention takes other steps.
        """
        fake = self._fake
        if is_cut and fake.active:
            assert self.example_input is not None  # filter pruning requires it
            fake.follow()
            fake.find_places(placed_like(self.example_input, self.model))
            fake.unfollow()
        ranges = fake.ranges
        fake.remove()
        if fake.active:
            hold_integers(self.model, fake, ranges, scales)
