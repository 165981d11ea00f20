"""What users do to fields, maps and models never leaves them with bounds of others."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.activations import AbstractActivation, Elementwise, GroupSort
from jnode.certify.accuracy import locally_certified_radii
from jnode.certify.local import local_radius
from jnode.constraints import Cayley, Constrained
from jnode.linear import Dense
from jnode.models import Head, ODEClassifier
from jnode.models.layers import AbstractLayer, Flatten, ODEBlock
from jnode.solvers import solve_batch
from tests.helpers import small_model


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (jnode.OrthoField, "__call__"),
        (jnode.GradientFlowField, "__call__"),
        (jnode.fields.Sum, "__call__"),
        (jnode.Certified, "__call__"),
        (jnode.OrthoField, "as_two_layer"),
        (jnode.GradientFlowField, "_layers"),
        (jnode.SkewField, "inner"),
        (Constrained, "resolve"),
        (Constrained, "norm"),
        (Dense, "__call__"),
        (GroupSort, "__call__"),
        (Cayley, "kernel"),
        (Flatten, "__call__"),
        (ODEBlock, "__call__"),
        (ODEBlock, "lipschitz"),
        (Head, "rows"),
        (ODEClassifier, "__call__"),
        (ODEClassifier, "states"),
    ],
)
def test_what_bounds_describe_cannot_be_overridden(base, name):
    with pytest.raises(TypeError, match=f"Own must not override {name} of"):
        type("Own", (base,), {name: lambda self, *args: args[-1]})
    mixin = type("Mixin", (), {name: lambda self, *args: args[-1]})
    with pytest.raises(TypeError, match=f"Own must not override {name} of"):
        type("Own", (mixin, base), {})


def test_subclasses_may_add_what_they_like(getkey):
    class Named(jnode.OrthoField):
        title: ClassVar[str] = "mine"

        def describe(self):
            return f"{self.title}: {float(self.lipschitz()):.3f}"

    field = Named((4,), key=getkey())  # pyright: ignore[reportCallIssue]  # inherited
    assert field.describe() == "mine: 1.000"


class Steep(AbstractActivation):
    """Twice the slope of ReLU, as it says."""

    def __call__(self, x):
        return 1.9 * jax.nn.relu(x)

    @property
    def lipschitz(self):
        return 1.9

    @property
    def slopes(self):
        return (0.0, 1.9)


FIELDS = {
    "flow": jnode.GradientFlowField,
    "skew": jnode.SkewField,
    "hamiltonian": jnode.HamiltonianField,
    "ortho": jnode.OrthoField,
}


@pytest.mark.parametrize("name", FIELDS)
def test_another_activation_counts(name, getkey):
    field = FIELDS[name]((4,), key=getkey())
    put = lambda a: eqx.tree_at(
        lambda f: f.activation,
        field,
        a,
        is_leaf=lambda x: isinstance(x, AbstractActivation),
    )
    steep = put(Steep())
    bounds = steep.bounds()
    jacobians = jax.vmap(jax.jacobian(lambda y: steep(0.0, y)))
    found = np.asarray(jacobians(5 * jr.normal(getkey(), (200, 4))))
    largest = np.max(np.linalg.norm(found, 2, axis=(1, 2)))
    assert field.lipschitz() < largest <= bounds.lipschitz
    turning = np.linalg.eigvalsh((found + found.swapaxes(1, 2)) / 2)
    low, high = bounds.log_norm
    assert low - 1e-5 <= np.min(turning) and np.max(turning) <= high + 1e-5
    if name == "ortho":
        return
    for wrong in (GroupSort(2), Elementwise(jnp.tanh, -0.5)):
        with pytest.raises(ValueError, match="must be monotone"):
            put(wrong).bounds()


def test_values_that_would_be_spread_are_refused(getkey, unchecked):
    solver, y = jnode.Solver("euler", steps=1), jnp.ones(8)
    mean = jnode.Certified(lambda t, y, args: jnp.mean(y), bounds=jnode.Bounds(0.36))
    with pytest.raises(ValueError, match=r"the state's shape \(8,\)"):
        jnode.solve(mean, y, solver)
    field = jnode.OrthoField((8,), activation="maxmin", key=getkey())
    field = eqx.tree_at(
        lambda f: f.second,
        field,
        Dense(jnp.full((1, 8), 8**-0.5)),
        is_leaf=lambda x: x is field.second,
    )
    for function in (lambda: field(0.0, y), lambda: jnode.solve(field, y, solver)):
        with pytest.raises(ValueError, match="one entry for each of the 1 channels"):
            function()
    # Functions of which nothing is certified may return one number, as in Diffrax.
    free = jnode.solve(lambda t, y, args: 1.0, y, solver)
    np.testing.assert_array_equal(free.y, 2 * y)

    class Mean(jnode.fields.AbstractVectorField):
        def __call__(self, t, y, args=None):
            return jnp.mean(y, keepdims=True)

        def bounds(self):
            return jnode.Bounds(0.36)

    with pytest.raises(ValueError, match="state's shape"):
        jnode.solve(Mean(), y, solver)


@pytest.mark.parametrize("cls", [jnode.OrthoField, jnode.GradientFlowField])
def test_biases_alone_in_half_precision(cls, getkey, standard_promotion):
    """1.2 is 1.203 in bfloat16; the bound and the field agree on 1.2."""
    field = cls((4,), lipschitz=1.2, key=getkey())
    is_bias = lambda x: eqx.is_array(x) and x.ndim == 1
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if is_bias(x) else x, field)
    y = 3 + jr.uniform(getkey(), (4,))
    solver = jnode.Solver("rk4", steps=3)
    jacobians = jax.vmap(jax.jacobian(lambda y: short(0.0, y)))
    found = np.asarray(jacobians(jr.normal(getkey(), (50, 4))))
    assert np.max(np.linalg.norm(found, 2, axis=(1, 2))) <= short.lipschitz() < 1.2001
    ends = jnode.solve(short, y, solver).y, jnode.solve(field, y, solver).y
    np.testing.assert_allclose(*ends, rtol=1e-6)
    # Also where all of it is in half precision, of which nothing is certified.
    whole = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x,
        jnode.resolve(field)[0],
    )
    low = jnode.solve(whole, y.astype(jnp.bfloat16), solver).y
    np.testing.assert_allclose(low, ends[0], rtol=0.05, atol=0.2)


def test_bounds_do_not_underflow():
    tiny, huge = jnode.Bounds(1e-25), jnode.Bounds(1e25)
    assert float((huge @ (huge @ (tiny @ tiny))).lipschitz) >= 1
    assert float((1e-30 * jnode.Bounds(1e-20)).lipschitz) > 0
    low, high = (1e-30 * jnode.Bounds(1e-20)).log_norm
    assert low < 0 < high
    around = jnode.Bounds(1e10).congruence(jnp.asarray(1e-25))
    assert float(around.lipschitz) > 0
    assert float((0 * huge).lipschitz) == 0
    assert float((jnode.Bounds(0.0) @ jnode.Bounds(jnp.inf)).lipschitz) == 0


def test_functions_without_bounds_in_a_model(getkey):
    for solver in (
        jnode.Solver("euler", steps=2),
        jnode.Solver("heun", rtol=1e-2, atol=1e-2, controller="ladder", first_step=0.5),
    ):
        model = small_model(getkey(), "gradient_flow", solver=solver)
        field = model.blocks[0].field
        model = eqx.tree_at(
            lambda m: m.blocks[0].field,
            model,
            lambda t, y, args: -y,
            is_leaf=lambda x: x is field,
        )
        images = jr.uniform(getkey(), (2, 8, 8, 1))
        assert model.lipschitz() == jnp.inf
        for radii in (
            jnode.certify.radius(model, images),
            jnode.certify.local_radius(model, images),
        ):
            np.testing.assert_array_equal(radii, 0)


def test_there_is_a_label_for_each_image(getkey, unchecked):
    model = small_model(getkey(), "ortho")
    images = np.asarray(jr.uniform(getkey(), (3, 8, 8, 1)))
    labels = np.zeros(3, np.int32)
    for certified in (
        jnode.certify.certified_radii,
        locally_certified_radii,
    ):
        for some, theirs in ((images, labels[:2]), (images[:2], labels)):
            with pytest.raises(ValueError, match="as many"):
                certified(model, some, theirs)
        with pytest.raises(TypeError, match="to_float"):
            certified(model, (255 * images).astype(np.uint8), labels)


def test_times_are_rounded_to_the_states(x64, unchecked):
    """A field without weights may be solved in float32 where bounds are in float64."""
    del x64, unchecked
    field, y = -1.0 * jnode.fields.Decay(1.0), jnp.ones(4, jnp.float32)
    solver = jnode.Solver("euler", steps=1, adjoint="checkpointed")
    times = {"t0": np.float32(1e5), "t1": 100000.1}
    ends = [jnode.solve(field, k * y, solver, **times).y for k in (1, 2)]
    assert ends[0].dtype == jnp.float32
    ratio = np.max(np.asarray(ends[1], float) - np.asarray(ends[0], float))
    assert 1.1005 < ratio <= jnode.amplification(field, solver, **times) < 1.2


def test_what_is_no_part_of_a_model_is_refused(getkey, unchecked):
    del unchecked
    heun: Any = diffrax.Heun()
    model = small_model(getkey(), "ortho")
    linear: Any = eqx.nn.Linear(2, 2, key=getkey())
    block, images = model.blocks[0], jr.uniform(getkey(), (2, 8, 8, 1))
    for function in (
        lambda: ODEBlock(block.field, heun),
        lambda: model.with_solver(heun),
    ):
        with pytest.raises(TypeError, match=r"must be a jnode\.Solver, not Heun"):
            function()
    with pytest.raises(TypeError, match="head must be a jnode.models.Head"):
        ODEClassifier(model.layers, linear, (8, 8, 1))
    with pytest.raises(TypeError, match="not Linear"):
        ODEClassifier([linear, block], model.head, (8, 8, 1))
    functions: tuple[Any, ...] = (
        jnode.certify.radius,
        jnode.certify.local_radius,
        lambda model, x: jnode.certify.linf_robust(model, x, jnp.zeros(2, int), 0.1),
    )
    for certified in functions:
        with pytest.raises(TypeError, match="ODEClassifier, not function: .*smooth"):
            certified(lambda image: image, images)
        with pytest.raises(TypeError, match="to_float"):
            certified(model, (255 * images).astype(jnp.uint8))


def test_solves_of_what_is_no_function(getkey, unchecked):
    del unchecked
    term, y = diffrax.ODETerm(lambda t, y, args: -y), jnp.ones(3)
    for solves in (jnode.solve, solve_batch):
        with pytest.raises(TypeError, match="the function itself"):
            solves(term, y, jnode.Solver("euler", steps=1))
    with pytest.raises(ValueError, match="dt0 must lead"):
        jnode.solve(term.vector_field, y, diffrax.Heun(), dt0=0.0)
    with pytest.raises(ValueError, match="shape must be .size,. or"):
        jnode.OrthoField(8, key=getkey())  # pyright: ignore[reportArgumentType]
    for wrong in (jnp.ones(3), jnp.ones((3, 3, 2, 2))):
        with pytest.raises(ValueError, match="matrix must have two axes"):
            jnode.linear.spectral_norm(wrong)


def test_attributes_of_ones_own_may_have_any_name():
    class Layer(AbstractLayer):
        affine: ClassVar[bool] = True
        fixed: bool = True

        def __call__(self, x):
            return x

        def lipschitz(self):
            return jnp.asarray(1.0)

    assert Layer().fixed
    with pytest.raises(TypeError, match="Other must not override __call__ of Layer"):

        class Other(Layer):
            def __call__(self, x):
                return 10 * x


def test_a_layer_is_not_taken_for_a_block(getkey):
    """Not where a block is affine and another layer is not, as they say rightly."""

    class AffineBlock(ODEBlock):
        affine: ClassVar[bool] = True

    class Bend(AbstractLayer):
        affine: ClassVar[bool] = False

        def __call__(self, x):
            return 3 * jax.nn.relu(x - 0.5) + 0.1 * x

        def lipschitz(self):
            return jnp.asarray(3.1)

    field = jnode.Certified(lambda t, y, args: -0.5 * y, bounds=jnode.Bounds(0.5))
    block = AffineBlock(field, jnode.Solver("euler", steps=1), 0.0, 1.0)
    head = Head(4, 2, unit_norm=False, key=getkey())
    for layers in ([Flatten(), Bend(), block], [Flatten(), block]):
        model = ODEClassifier(layers, head, (2, 2, 1))
        images = jr.uniform(getkey(), (20, 2, 2, 1))
        found, least = local_radius(model, images), jnode.certify.radius(model, images)
        assert jnp.all(found >= (1 - 1e-4) * least) and jnp.any(found > 0)
        if len(layers) == 3:  # nothing local is known of `Bend`
            np.testing.assert_allclose(found, least, rtol=1e-5)
        gap = lambda x, m=model: jnp.abs(m(x)[0] - m(x)[1])
        slopes = jax.vmap(jax.grad(gap))(images)
        norms = jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3), keepdims=True))
        steps = 0.99 * found.reshape(norms.shape) / jnp.maximum(norms, 1e-9)
        before, after = (
            np.argmax(jax.vmap(model)(x), axis=1)
            for x in (images, images - steps * slopes)
        )
        np.testing.assert_array_equal(before, after)


def test_slopes_of_a_function_of_ones_own_are_an_assumption(getkey):
    field = jnode.OrthoField((4,), key=getkey())
    assert jnode.certify.assumptions(field) == []
    other = eqx.tree_at(
        lambda f: f.activation,
        field,
        Elementwise(jnp.sin),
        is_leaf=lambda x: isinstance(x, AbstractActivation),
    )
    (found,) = jnode.certify.assumptions(other)
    assert found == "the slopes of the activation sin are as its author claims"


def test_products_of_norms_do_not_underflow(getkey):
    small = Dense(1e-25 * jnp.eye(2))
    assert float(jnode.linear.Product(small, small).norm()) > 0
    for cls in (jnode.OrthoField, jnode.GradientFlowField):
        field = cls((2,), lipschitz=1e-10, key=getkey()).bake()
        tiny = jax.tree.map(
            lambda x: 1e-20 * x if eqx.is_array(x) and x.ndim == 2 else x, field
        )
        assert float(tiny.lipschitz()) > 0
