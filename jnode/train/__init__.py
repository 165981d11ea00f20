"""Training: losses, state, loop, run folders."""

from jnode.train.config import DataConfig as DataConfig
from jnode.train.config import TrainConfig as TrainConfig
from jnode.train.errors import Interrupted as Interrupted
from jnode.train.errors import NonFiniteLossError as NonFiniteLossError
from jnode.train.errors import OutOfMemoryError as OutOfMemoryError
from jnode.train.errors import SolverFailedError as SolverFailedError
from jnode.train.errors import StorageError as StorageError
from jnode.train.errors import TrainingError as TrainingError
from jnode.train.loop import train as train
from jnode.train.losses import LossConfig as LossConfig
from jnode.train.losses import make_loss as make_loss
from jnode.train.presets import PRESETS as PRESETS
from jnode.train.presets import get_preset as get_preset
from jnode.train.run_dir import RunDir as RunDir
from jnode.train.run_dir import load as load
from jnode.train.state import TrainState as TrainState
