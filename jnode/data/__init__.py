"""Images: the embedded digits and TFDS data sets, batches and augmentation."""

from jnode._batches import check_images as check_images
from jnode._batches import check_labels as check_labels
from jnode._batches import padded_batches as padded_batches
from jnode.data.batching import augment as augment
from jnode.data.batching import batches as batches
from jnode.data.batching import to_float as to_float
from jnode.data.dataset import NAMES as NAMES
from jnode.data.dataset import Dataset as Dataset
from jnode.data.dataset import load as load
from jnode.data.device import Feed as Feed
from jnode.data.device import epoch_order as epoch_order
