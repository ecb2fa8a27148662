"""Tasks on sounds, after MLPerf Tiny (Banbury et al. 2021): spoken words, and machines that sound wrong."""

from __future__ import annotations

import io
import itertools
import logging
import os
import shutil
import subprocess

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from benchmarks.tasks.baseline import CACHE
from benchmarks.tasks.images import convolution, shuffled
from benchmarks.tasks.task import Split, Splits, Task

logger = logging.getLogger(__name__)

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "seven", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
SPEAKERS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
SAMPLE_RATE = 22_050  # of espeak-ng
NUM_BANDS = 20
_LIMITS = ((120, 260), (10, 90), (0, SAMPLE_RATE // 4))  # of words a minute, pitch and first sample
_FEATURES = CACHE / "words.npz"


def _spoken(word: str, voice: str, speed: int, pitch: int) -> Tensor:
    """The word as espeak-ng says it, (samples,), in [-1, 1]."""
    from scipy.io import wavfile

    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), word]
    wave = io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    return torch.tensor(wavfile.read(wave)[1], dtype=torch.float32) / 32_768


def _bands(waves: Tensor) -> Tensor:
    """Logarithms of the power in bands that grow with the frequency, (N, NUM_BANDS, frames), from (N, samples)."""
    spectra = torch.stft(waves, 1024, 512, window=torch.hann_window(1024), return_complex=True).abs() ** 2
    edges = torch.from_numpy(np.geomspace(100, 8000, NUM_BANDS + 1)) * 1024 / SAMPLE_RATE
    bins = torch.arange(spectra.shape[1]).view(1, -1)
    is_in_band = ((bins >= edges[:-1].floor().view(-1, 1)) & (bins <= edges[1:].view(-1, 1))).float()
    return torch.log(is_in_band / is_in_band.sum(1, keepdim=True) @ spectra + 1e-3)


def _word_features() -> tuple[Tensor, Tensor]:
    """Every word 240 times: in each voice at four speeds and pitches, with noise, somewhere in 0.9 seconds."""
    if not _FEATURES.exists():
        generator = torch.Generator().manual_seed(0)
        waves, labels = [], []
        for accent, speaker, label in itertools.product(ACCENTS, SPEAKERS, range(len(WORDS))):
            for _ in range(4):
                speed, pitch, start = (int(torch.randint(*limits, (), generator=generator)) for limits in _LIMITS)
                wave = 0.05 * torch.randn(int(0.9 * SAMPLE_RATE), generator=generator)
                spoken = _spoken(WORDS[label], f"{accent}+{speaker}", speed, pitch)[: len(wave) - start]
                wave[start : start + len(spoken)] += spoken
                waves.append(wave)
                labels.append(label)
        features = torch.cat([_bands(part) for part in torch.stack(waves).split(256)])
        _FEATURES.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _FEATURES.with_suffix(f".{os.getpid()}.npz")  # another process may do the same
        np.savez_compressed(unfinished, features=features.half().numpy(), labels=np.array(labels))
        unfinished.replace(_FEATURES)
    with np.load(_FEATURES) as kept:
        return torch.from_numpy(kept["features"]).float().unsqueeze(1), torch.from_numpy(kept["labels"]).long()


def words(seed: int) -> Splits:
    """Spectra of words, (N, 1, bands, frames)."""
    inputs, targets = _word_features()
    return shuffled((inputs - inputs.mean()) / inputs.std(), targets, 1100, 600, seed)


def ds_cnn(width: int = 48) -> nn.Module:
    """A convolution, four pairs of depthwise and pointwise convolutions, and the mean; a quarter of the resolution."""
    pairs = [
        [convolution(width, width, stride=stride, groups=width), convolution(width, width, 1)]
        for stride in (2, 1, 1, 1)
    ]
    return nn.Sequential(
        convolution(1, width, 5, stride=2),
        *itertools.chain.from_iterable(pairs),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, len(WORDS)),
    )


def machine(size: int, share_of_anomalies: float, generator: torch.Generator) -> Split:
    """Spectra of a machine that runs at any speed; an anomaly moves, adds or removes a harmonic.

    Returns:
        Inputs (N, 128): four frames of 32 bands. Targets (N, 129): the inputs, and whether they are an anomaly.
    """
    is_anomaly = torch.rand(size, generator=generator) < share_of_anomalies
    speeds = 3.5 + 1.5 * torch.rand(size, 1, generator=generator)
    load = 0.7 + 0.5 * torch.rand(size, 1, generator=generator)
    places = speeds * torch.arange(1, 6)  # of the harmonics, in bands
    heights = load ** torch.arange(1, 6) * torch.tensor([1.0, 0.8, 0.9, 0.6, 0.5])
    which, kind = torch.randint(5, (size,), generator=generator), torch.randint(3, (size,), generator=generator)
    chosen = nn.functional.one_hot(which, 5) * is_anomaly.view(-1, 1)
    moved = chosen * (kind == 0).view(-1, 1) * 1.2
    changed = 1 - chosen * (kind == 1).view(-1, 1)
    added = (is_anomaly & (kind == 2)).view(-1, 1, 1) * 0.8
    extra = 2 + 28 * torch.rand(size, 1, generator=generator)
    places, heights = torch.cat([places + moved, extra], 1), torch.cat([heights * changed, torch.ones(size, 1)], 1)
    drift = 0.15 * torch.randn(size, 4, 1, generator=generator)  # of the speed, from frame to frame
    bands = torch.arange(32.0).view(1, 1, -1, 1)
    peaks = heights.view(size, 1, 1, 6) * torch.exp(-((bands - places.view(size, 1, 1, 6) - drift.unsqueeze(3)) ** 2))
    spectra = peaks[..., :5].sum(3) + added * peaks[..., 5]
    inputs = (spectra + 0.15 * torch.randn(size, 4, 32, generator=generator)).flatten(1)
    return {"inputs": inputs, "targets": torch.cat([inputs, is_anomaly.float().view(-1, 1)], 1)}


def machines(seed: int) -> Splits:
    """Training on what is normal alone; half of the validation and test examples are anomalies."""
    generators = (torch.Generator().manual_seed(3 * seed + index) for index in range(3))
    sizes = ((3000, 0.0), (1000, 0.5), (20_000, 0.5))
    return Splits(*(machine(*size, one) for size, one in zip(sizes, generators, strict=True)))


def autoencoder() -> nn.Module:
    """Linear layers with BatchNorm, through a bottleneck of 8 numbers."""
    widths = (128, 96, 64, 8, 64, 96)
    layers = [
        nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
        for before, after in itertools.pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.Linear(96, 128))


class ReconstructionError(nn.MSELoss):
    """Mean squared error to the inputs, which are all but the last of the targets."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs, targets[:, :-1])


class ReconstructionAUROC(BinaryAUROC):
    """AUROC of the reconstruction error against the last of the targets."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        errors = (preds - target[:, :-1]).square().mean(1)
        super().update(errors / (1 + errors), target[:, -1].long())  # torchmetrics takes what is in [0, 1] as it is


_SPOKEN = Task(
    name="words_dscnn",
    source="Twelve words in 60 voices of espeak-ng, with noise: 1,100 for training, 600 for validation.",
    is_for_choosing=False,
    is_unlimited=False,
    model=ds_cnn,
    splits=words,
    training={  # the learning rate is three times a good one
        "batch_size": 50,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3, "momentum": 0.9, "nesterov": True}},
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": len(WORDS), "average": "micro"},
        },
    },
    budget={"max_drop": 0.015},
    baseline_epochs=40,
    baseline_lr=0.1,
)
_MACHINES = Task(
    name="sounds_autoencoder",
    source="Generated spectra of a machine that runs at any speed; anomalies move, add or remove a harmonic.",
    is_for_choosing=False,
    is_unlimited=True,
    model=autoencoder,
    splits=machines,
    training={  # the learning rate is a third of a good one
        "batch_size": 64,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.0}},
        "loss": {"class_path": "benchmarks.tasks.sounds.ReconstructionError"},
        "metric": {"class_path": "benchmarks.tasks.sounds.ReconstructionAUROC"},
    },
    budget={"max_relative_drop": 0.01},
    baseline_epochs=40,
    baseline_lr=0.003,
)


def _available() -> tuple[Task, ...]:
    if _FEATURES.exists() or shutil.which("espeak-ng"):
        return (_SPOKEN, _MACHINES)
    logger.warning("words_dscnn is left out, because espeak-ng is not installed: `apt-get install espeak-ng`")
    return (_MACHINES,)


TASKS: tuple[Task, ...] = _available()
