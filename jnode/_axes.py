"""Arrays on meshes of Explicit axes, as `jax.make_mesh` makes them by default.

There each reshape would have to state the sharding of its result. So these axes are
treated as Auto, which leaves that to JAX.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices and axis names, with axes in Auto mode.

    The axes of `jax.make_mesh` are Explicit by default, and then every reshape would
    have to state the sharding of its result.
    """
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def as_auto(x: Array) -> Array:
    """An array [*shape], on the same devices in Auto mode where axes are Explicit.

    What a function that JAX is tracing is given stays as it is.
    """
    place = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    if not isinstance(place, NamedSharding) or not isinstance(place.mesh, Mesh):
        return x
    if AxisType.Explicit not in place.mesh.axis_types:
        return x
    return jax.device_put(x, NamedSharding(auto_mesh(place.mesh), place.spec))


def in_auto(f: Callable, module: PyTree, x: Array, spec: PartitionSpec) -> Array:
    """`f(module, x)`, computed in Auto mode if `x` lies on Explicit axes.

    In a function that JAX is tracing, the result is on those axes again.

    **Arguments:** the function; a model or whatever holds its arrays, which need not be
    on a mesh; the array; and the spec of the result on Explicit axes.
    """
    x = as_auto(x)
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return f(module, x)
    arrays, static = eqx.partition(module, eqx.is_array)

    def inside(arrays, x):
        return f(eqx.combine(arrays, static), x)

    call: Any = jax.sharding.auto_axes(inside, out_sharding=NamedSharding(mesh, spec))
    return call(arrays, x)
