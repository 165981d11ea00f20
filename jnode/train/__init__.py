"""Training: configurations, losses, the loop, run folders."""

from jnode._process import Interrupted as Interrupted
from jnode.train.checkpoints import load_best as load_best
from jnode.train.config import PRESETS as PRESETS
from jnode.train.config import DataConfig as DataConfig
from jnode.train.config import TrainConfig as TrainConfig
from jnode.train.config import evaluation_images as evaluation_images
from jnode.train.config import get_preset as get_preset
from jnode.train.config import training_images as training_images
from jnode.train.loop import train as train
from jnode.train.losses import LossConfig as LossConfig
from jnode.train.losses import make_loss as make_loss
from jnode.train.run_dir import NonFiniteLossError as NonFiniteLossError
from jnode.train.run_dir import OutOfMemoryError as OutOfMemoryError
from jnode.train.run_dir import RunDir as RunDir
from jnode.train.run_dir import SolverFailedError as SolverFailedError
from jnode.train.run_dir import StorageError as StorageError
from jnode.train.run_dir import TrainingError as TrainingError
from jnode.train.step import TrainState as TrainState
