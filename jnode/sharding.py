"""One batch over many devices, and several processes as one.

Every device of a mesh holds the model and a share of the batch.

Under plain `jit` a batch that is spread over devices is still one program, so that an
adaptive solve asks all devices before each step whether any of them is still at work.
Here each device runs its own program on its own share (`jax.shard_map`): a loop ends
where its samples are done, and nothing is exchanged inside it.

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
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from jnode._process import Interrupted

AXIS = "batch"
"""The name of the axis of `data_mesh`."""
# Seconds until the others are missed: while starting, while running, while ending.
START, SILENCE, END = 300, 60, 30


def data_mesh(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # jaxlib is untyped
) -> Mesh:
    """A mesh of one axis over these devices; by default all, of all processes."""
    devices = jax.devices() if devices is None else list(devices)
    # The order follows the machine's own ring where it has one.
    return jax.make_mesh(
        (len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def all_devices() -> Mesh | None:
    """The mesh of all devices, or `None` where there is but one."""
    return data_mesh() if jax.device_count() > 1 else None


def _auto(mesh: Mesh) -> Mesh:
    """The same devices under the same names, the compiler placing what is between.

    The axes of `jax.make_mesh` are Explicit by default: then every reshape would have
    to say how its result is spread.
    """
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def as_auto(x: Array) -> Array:
    """An array as it is, or on the same devices in Auto mode where axes are Explicit.

    What a function that JAX is tracing is given stays as it is.
    """
    place = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    if not isinstance(place, NamedSharding) or not isinstance(place.mesh, Mesh):
        return x
    if AxisType.Explicit not in place.mesh.axis_types:
        return x
    return jax.device_put(x, NamedSharding(_auto(place.mesh), place.spec))


def _rows(mesh: Mesh) -> PartitionSpec:
    """The first axis of an array, spread over all devices of a mesh."""
    return PartitionSpec(mesh.axis_names)


def shareable(rows: int, mesh: Mesh | None) -> int:
    """The least batch of so many rows or more that can be shared out evenly."""
    return rows if mesh is None else -(-rows // mesh.size) * mesh.size


def check_divides(batch_size: int, mesh: Mesh | None, *, accumulate: int = 1) -> int:
    """The images that a device takes at a time, of a batch in `accumulate` parts.

    **Raises:** `ValueError` where the batch cannot be shared out evenly.
    """
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
    """The arrays of a tree, whole on every device; the rest as it is.

    With several processes each gives the same values, which JAX checks.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(_auto(mesh), PartitionSpec())

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

    Without a mesh they go to JAX's first device. Arrays that are spread already, over
    Explicit axes say, are taken too, and spread over the same devices in Auto mode.

    With several processes each gives its own rows (`local_rows`), and gets arrays of
    the whole batch of which it holds those rows.

    **Raises:** `ValueError` where the rows cannot be shared out evenly.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    spread = NamedSharding(_auto(mesh), _rows(mesh))

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

    Nothing is exchanged before the end, and then the bytes of the results.

    **Arguments:** a function of the indices of some rows and the mesh of one process,
    which gives an array with an entry for each of them; how many rows there are; the
    mesh of all processes, or of this one alone, which then computes all rows.
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
    """Inside jit: an array whose first axis is the batch, to each device its share.

    What is computed from it row by row is spread alike, so that no device computes the
    rows of another.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(_auto(mesh), _rows(mesh)))


def local_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, " rows"]:
    """Which rows of each batch belong to the devices of this process, in order."""
    if mesh is None:
        return np.arange(batch_size)
    spread = NamedSharding(mesh, _rows(mesh))
    shares = spread.addressable_devices_indices_map((batch_size,)).values()
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[share] for share in shares]))


def sharded(f: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`f(shared, *batches) -> rows`, of which each device computes its own rows.

    For functions of one sample at a time, mapped: a row of the result must depend on
    no other row of the batches. `shared` is whole on every device (a model, say).
    """
    return f if mesh is None else _on_each_device(f, mesh, _rows(mesh))


def averaged(f: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`f(shared, *batches) -> means` over the rows, as means over all devices' rows.

    `means` is a tree of float arrays of one type. Costs one all-reduce, at the end.
    """

    def mean(tree):
        # In one piece: an all-reduce of each leaf would wait for the slowest each time.
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

        # Traced before the mesh is entered: gradients of Diffrax's loops compare the
        # types of what they are called with, and types know of the mesh inside it.
        shapes = jax.tree.map(_shape, arrays), *jax.tree.map(share, batches)
        closed, result = jax.make_jaxpr(whole, return_shape=True)(*shapes)

        def local(*args):
            leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(args))
            return finish(jax.tree.unflatten(jax.tree.structure(result), leaves))

        split = (_rows(mesh),) * len(batches)
        return jax.shard_map(
            local,
            mesh=_auto(mesh),
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
    """A classifier of batches whose images are shared out over a mesh.

    What attacks do around the model keeps to whole batches, so their random numbers do
    not depend on the number of devices; the solves inside the model are each device's
    own. Differentiable in the images alone, in reverse mode.
    """

    model: Callable
    mesh: Mesh = eqx.field(static=True)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """Logits of each image; as many images as the devices divide.

        **Raises:** `ValueError` for images that are spread over Explicit axes, in a
        function that JAX is tracing; outside of one they are taken.
        """
        images = as_auto(images)
        if AxisType.Explicit in jax.typeof(images).sharding.mesh.axis_types:
            raise ValueError(
                "images must not be spread over Explicit axes, which are those of "
                "jax.make_mesh by default: pass them through "
                "jnode.sharding.shard_batch(images, mesh) first."
            )
        return _classify(images, self.model, self.mesh)


# Diffrax's loops can be differentiated on each device, but not through the mesh.
@eqx.filter_custom_vjp
def _classify(images, model, mesh):
    return sharded(lambda model, x: model(x), mesh)(model, images)


@_classify.def_fwd
def _classify_fwd(perturbed, images, model, mesh):
    del perturbed

    def local(model, x):
        logits, pull = jax.vjp(model, x)
        # Whatever a device keeps for the way back is a row of its own.
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
    """Joins this process to the others for the length of the block.

    If the block fails in one process, that process stays joined until it ends, as
    leaving waits for the others, and they for it; it should end soon, so that they find
    their connections closed and end too.

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
        # All of them stop together, at the same step.
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_reduce_max(value: int) -> int:
    """The largest of all processes' values, the same in each."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))
