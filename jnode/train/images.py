"""The images that a run is trained on, and those that judge it."""

import os

from jnode import data
from jnode.data import Dataset
from jnode.train.config import DataConfig


def training_images(config: DataConfig) -> Dataset:
    """The images to train on.

    **Raises:** what `jnode.data.load` raises; `ValueError` where holding out
    `config.validation` images leaves none.
    """
    dataset = data.load(config.name, split="train", data_dir=config.dir)
    if config.validation:
        dataset, _ = dataset.hold_out(config.validation)
    return dataset if config.num_train is None else dataset.take(config.num_train)


def evaluation_images(
    config: DataConfig, data_dir: str | os.PathLike | None = None
) -> Dataset:
    """The images to evaluate on: the test images or, if some are held out, those.

    **Arguments:** the configuration; the TFDS folder, by default the configuration's.

    **Raises:** as `training_images`.
    """
    where = data_dir or config.dir
    if not config.validation:
        return data.load(config.name, split="test", data_dir=where)
    whole = data.load(config.name, split="train", data_dir=where)
    return whole.hold_out(config.validation)[1]
