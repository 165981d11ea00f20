"""One batch over many devices, and many machines as one."""

from jnode.sharding.hosts import connected as connected
from jnode.sharding.hosts import is_first as is_first
from jnode.sharding.hosts import largest as largest
from jnode.sharding.hosts import meet as meet
from jnode.sharding.mesh import AXIS as AXIS
from jnode.sharding.mesh import Sharded as Sharded
from jnode.sharding.mesh import all_devices as all_devices
from jnode.sharding.mesh import averaged as averaged
from jnode.sharding.mesh import check_divides as check_divides
from jnode.sharding.mesh import data_mesh as data_mesh
from jnode.sharding.mesh import local_rows as local_rows
from jnode.sharding.mesh import replicate as replicate
from jnode.sharding.mesh import shard_batch as shard_batch
from jnode.sharding.mesh import sharded as sharded
from jnode.sharding.mesh import shareable as shareable
