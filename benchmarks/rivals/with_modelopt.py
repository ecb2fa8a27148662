"""ModelOpt: FastNAS cuts to a share of the parameters, found by bisection; then int8 with training."""

from __future__ import annotations

import copy
import time

import modelopt.torch.prune as mtp
import modelopt.torch.quantization as mtq
from torch import nn

from benchmarks.rivals.task import accuracy, bisect, fine_tune, finish, read_job

NUM_TRIALS = 2
# By default it keeps multiples of 32 channels, and finds nothing to choose in a model as small as this one.
WIDTHS = {"channels_ratio": tuple(ratio / 20 for ratio in range(1, 21)), "kernel_size": (), "channel_divisor": 4}


def main() -> None:
    job = read_job()
    started = time.perf_counter()
    num_epochs = job.epochs // (NUM_TRIALS + 1)
    loader = list(zip(job.train[0].split(64), job.train[1].split(64), strict=True))

    def trial(ratio: float) -> nn.Module:
        pruned, _ = mtp.prune(
            model=copy.deepcopy(job.model),
            mode=[("fastnas", {"nn.Conv2d": {"*": WIDTHS}})],
            constraints={"params": f"{100 * (1 - ratio):.4g}%"},
            dummy_input=job.example,
            config={
                "data_loader": loader,
                "score_func": lambda model: accuracy(model, job.validation),
                "checkpoint": None,
            },
        )
        fine_tune(pruned, job.train, num_epochs)
        assert isinstance(pruned, nn.Module)
        return pruned

    smallest = bisect(job, trial, NUM_TRIALS)
    if smallest is None:
        finish(job, started, None, "FastNAS found nothing within budget")
        return

    def calibrate(model: nn.Module) -> None:
        for inputs, _ in loader[:5]:
            model(inputs)

    model = mtq.quantize(copy.deepcopy(smallest), mtq.INT8_DEFAULT_CFG, calibrate)
    fine_tune(model, job.train, num_epochs, lr=1e-4)
    is_kept = accuracy(model, job.validation) >= job.lowest
    note = f"{NUM_TRIALS} ratios, bisected by the benchmark, {'then int8' if is_kept else 'int8 broke the budget'}"
    finish(job, started, model if is_kept else smallest, note, dynamo=not is_kept)


if __name__ == "__main__":
    main()
