"""What tests tell trackers."""

from __future__ import annotations

from kedro_aat.trackers import EpochRecord

RUN = "0123456789ab"
PARAMETERS: dict[str, str | int | float | bool] = {
    "seed": 0,
    "training.optimizer.init_args.lr": 0.1,
    "name, odd": "x" * 7000,
}
TAGS = {"outcome": "within_budget", "certificate": "certified"}


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        checkpoint=epoch,
        epoch=epoch,
        trained=epoch > 0,
        started_from=None,
        requested_rate=0.5,
        achieved_rate=0.4 + 0.1 * epoch,
        metric=0.9,
        margin=0.01,
        standard_error=None,
        loss=None,
        learning_rate=0.1,
        lr_scale=1.0,
        fully_compressed=True,
        best_rate=0.5,
        seconds=1.0,
        guards={"MulticlassRecall, class 3": 0.8},
    )
