"""One batch over many devices, and several processes as one.

Every device of a mesh holds the whole model and a part of each batch.

Under plain `jit` a sharded batch is still one program, so an adaptive solve
communicates between all devices before each step, to find out whether any sample is
unfinished. Here each device runs its own program on its own part (`jax.shard_map`): a
loop ends when the samples of its device are done, and involves no communication.

A mesh may have any number of axes, of any names and types: the batch is spread over all
of its devices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)
from jaxtyping import Array, Float, Int, PyTree

from jnode._axes import auto_mesh, in_auto
from jnode._batches import check_batch_size
from jnode._process import Interrupted

AXIS = "batch"
"""The name of the axis of `data_mesh`."""
# Timeouts in seconds for the other processes: at the start, while running, at the end.
START, SILENCE, END = 300, 60, 30


def data_mesh(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # jaxlib is untyped
) -> Mesh:
    """A mesh of one axis over these devices; by default all, of all processes."""
    devices = jax.devices() if devices is None else list(devices)
    # The order follows the machine's interconnect, if that is a ring.
    return jax.make_mesh(
        (len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def all_devices() -> Mesh | None:
    """The mesh of all devices, or `None` if there is only one."""
    return data_mesh() if jax.device_count() > 1 else None


def _rows(mesh: Mesh) -> PartitionSpec:
    """The spec that shards the first axis of an array over all devices of a mesh."""
    return PartitionSpec(mesh.axis_names)


def shareable(rows: int, mesh: Mesh | None) -> int:
    """The smallest batch size of at least `rows` that divides evenly among devices."""
    return rows if mesh is None else -(-rows // mesh.size) * mesh.size


def check_divides(batch_size: int, mesh: Mesh | None, *, accumulate: int = 1) -> int:
    """How many images a device takes at a time, if a batch is cut into `accumulate`
    parts.

    **Raises:** `ValueError` for a batch of no images, or one that cannot be shared out
    evenly.
    """
    check_batch_size(batch_size)
    devices = 1 if mesh is None else mesh.size
    shares = devices * accumulate
    if batch_size % shares:
        parts = f" times accumulate={accumulate}" if accumulate > 1 else ""
        lower = batch_size - batch_size % shares
        advice = f"{lower} or {lower + shares}" if lower else f"{shares}"
        raise ValueError(
            f"batch_size must be a multiple of the {devices} devices{parts}, not "
            f"{batch_size}: take {advice}."
        )
    return batch_size // shares


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies the arrays of a tree to every device; leaves the rest as it is.

    With several processes each gives the same values, which JAX checks.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(auto_mesh(mesh), PartitionSpec())

    def one(x):
        if not eqx.is_array(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            # JAX refuses to place keys themselves on devices of other processes.
            data = jax.device_put(jax.random.key_data(x), whole)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.device_put(x, whole)

    return jax.tree.map(one, tree)


def shard_batch(tree: PyTree[np.ndarray | Array], mesh: Mesh | None) -> PyTree[Array]:
    """Arrays whose first axis is the batch, spread over the devices.

    Without a mesh they go to JAX's first device. Arrays that are already sharded, over
    Explicit axes for example, are accepted and sharded over the same devices in Auto
    mode.

    With several processes each gives its own rows (`local_rows`), and gets arrays of
    the whole batch of which it holds those rows.

    **Raises:** `ValueError` where the rows cannot be shared out evenly.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    spread = NamedSharding(auto_mesh(mesh), _rows(mesh))

    def one(x):
        if isinstance(x, jax.Array) and jax.process_count() == 1:
            check_divides(len(x), mesh)
            return jax.device_put(x, spread)
        x = np.asarray(x)
        check_divides(len(x) * jax.process_count(), mesh)
        return jax.make_array_from_process_local_data(spread, x)

    return jax.tree.map(one, tree)


def scatter(tree: PyTree[np.ndarray | Array], mesh: Mesh | None) -> PyTree[Array]:
    """As `shard_batch`, of arrays that every process holds whole.

    **Raises:** `ValueError` where the rows cannot be shared out evenly.
    """
    if mesh is None or jax.process_count() == 1:
        return shard_batch(tree, mesh)

    def own(x):
        check_divides(len(x), mesh)
        return np.asarray(x)[local_rows(len(x), mesh)]

    return shard_batch(jax.tree.map(own, tree), mesh)


def gather(tree: PyTree[Array]) -> PyTree[np.ndarray]:
    """The arrays of a tree as NumPy's, whole in every process."""

    def whole(x):
        there = not isinstance(x, jax.Array) or x.is_fully_addressable
        if there or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def split_rows(
    f: Callable[[Int[np.ndarray, " rows"], Mesh | None], np.ndarray],
    rows: int,
    mesh: Mesh | None,
) -> np.ndarray:
    """`f(indices, mesh)` of all rows, of which each process computes its share.

    **Arguments:** a function of the indices [k] of some rows and the mesh of one
    process, which returns an array [k, *rest]; the number of rows; the mesh of all
    processes, which exchange their results at the end, or of this one alone.
    """
    if mesh is None or len(mesh.local_devices) == mesh.size:
        return f(np.arange(rows), mesh)
    share = -(-rows // jax.process_count())  # equally many, the first over again
    own = (np.arange(share) + share * jax.process_index()) % rows
    found = np.ascontiguousarray(f(own, data_mesh(mesh.local_devices)))
    raw = np.frombuffer(found.tobytes(), np.uint8).reshape(share, -1)
    every = multihost_utils.process_allgather(raw).reshape(-1, raw.shape[1])
    whole = np.frombuffer(np.ascontiguousarray(every).tobytes(), found.dtype)
    return whole.reshape(-1, *found.shape[1:])[:rows]


def spread_rows(x: Array, mesh: Mesh | None) -> Array:
    """Inside jit: shards an array [batch, *rest] along its first axis.

    Whatever is computed from it row by row is sharded in the same way, so that no
    device computes the rows of another.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(auto_mesh(mesh), _rows(mesh))
    )


def local_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, " rows"]:
    """Which rows of each batch belong to the devices of this process, in order."""
    if mesh is None:
        return np.arange(batch_size)
    spread = NamedSharding(mesh, _rows(mesh))
    shares = spread.addressable_devices_indices_map((batch_size,)).values()
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[share] for share in shares]))


def sharded(f: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`f(shared, *batches) -> rows`, with each device computing its own rows.

    A row of the result must depend on the same row of the batches only, as under
    `jax.vmap`. `shared`, such as a model, is replicated on every device.
    """
    return f if mesh is None else _on_each_device(f, mesh, _rows(mesh))


def averaged(f: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`f(shared, *batches) -> means`, averaged over the rows of all devices.

    `means` is a tree of float arrays of one dtype. The cost is one all-reduce at the
    end.
    """

    def mean(tree):
        # One all-reduce, since each one waits for the slowest device.
        flat, unravel = ravel_pytree(tree)
        return unravel(jax.lax.pmean(flat, axes))

    if mesh is None:
        return f
    axes = mesh.axis_names
    return _on_each_device(f, mesh, PartitionSpec(), mean)


def _on_each_device(f, mesh, out, finish=lambda tree: tree):
    def call(shared, *batches):
        arrays, static = eqx.partition(shared, eqx.is_array)

        def whole(arrays, *batches):
            return f(eqx.combine(arrays, static), *batches)

        # Traced outside of the mesh: gradients of Diffrax's loops compare the types of
        # their arguments, and inside a mesh these types include the mesh.
        shapes = jax.tree.map(_shape, arrays), *jax.tree.map(share, batches)
        with use_abstract_mesh(AbstractMesh((), ())):
            closed, result = jax.make_jaxpr(whole, return_shape=True)(*shapes)

        def local(*args):
            leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(args))
            return finish(jax.tree.unflatten(jax.tree.structure(result), leaves))

        split = (_rows(mesh),) * len(batches)
        own = auto_mesh(mesh)
        # A program that calls back to the host must name the same mesh everywhere.
        given = own.abstract_mesh == jax.sharding.get_abstract_mesh()
        return jax.shard_map(
            local,
            mesh=None if given else own,
            in_specs=(PartitionSpec(), *split),
            out_specs=out,
            check_vma=False,
        )(arrays, *batches)

    def share(x):
        return _shape(x, (check_divides(len(x), mesh), *x.shape[1:]))

    return call


def _shape(x, shape=None):
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)


class Sharded(eqx.Module):
    """A classifier of batches whose images are sharded over a mesh.

    Attacks handle whole batches around it, so their random numbers do not depend on the
    number of devices; only the solves inside the model run on each device separately.
    It is differentiable with respect to the images, in reverse mode.
    """

    model: Callable
    mesh: Mesh = eqx.field(static=True)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """The logits of each image; the batch size must be a multiple of the devices.

        In a function that JAX is tracing they are sharded as the images are, also over
        Explicit axes, which are those of `jax.make_mesh` by default.
        """

        def classify(own, images):
            return _classify(images, own.model, own.mesh)

        return in_auto(classify, self, images, _rows(self.mesh))


# Diffrax's loops can be differentiated on each device, but not through the mesh.
@eqx.filter_custom_vjp
def _classify(images, model, mesh):
    return sharded(lambda model, x: model(x), mesh)(model, images)


@_classify.def_fwd
def _classify_fwd(perturbed, images, model, mesh):
    del perturbed

    def local(model, x):
        logits, pull = jax.vjp(model, x)
        # What each device stores for the backward pass is one row of the result.
        return logits, jax.tree.map(lambda kept: kept[None], pull)

    return sharded(local, mesh)(model, images)


@_classify.def_bwd
def _classify_bwd(pull, cotangent, perturbed, images, model, mesh):
    del perturbed, images, model

    def local(_, pull, cotangent):
        return jax.tree.map(lambda kept: kept[0], pull)(cotangent)[0]

    return sharded(local, mesh)(None, pull, cotangent)


@contextmanager
def distributed_context(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Connects this process to the others while the block runs.

    If the block fails in one process, that process stays connected until it ends: to
    disconnect it would have to wait for the others, which wait for it. It should end
    soon, so that the others see a closed connection and end too.

    **Arguments:** the address `host:port` of process 0, how many processes there are,
    and which of them this is; on TPU pods and under SLURM or Open MPI leave all out.

    **Raises:** `ValueError` where the processes cannot find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=START,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=END,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes cannot find each other ({str(error).splitlines()[0]}): "
            "outside of TPU pods and SLURM give --coordinator HOST:PORT, "
            "--num-processes and --process-id to each."
        ) from error
    try:
        yield
    except Interrupted:
        # All processes stop at the same step.
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_reduce_max(value: int) -> int:
    """The largest value of all processes, returned in each of them."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))
