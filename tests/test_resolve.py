"""Certificates that stay true, whatever a user does to the weights."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode import Bounds, certify
from jnode.constraints import CONSTRAINTS, Free, constrained
from jnode.fields import AbstractVectorField, Congruent
from jnode.linear import AbstractLinear, Dense
from tests.helpers import singular_values, slow_but, small_model
from tests.test_fields import FIELDS

SHAPES = {"dense": (6,), "conv": (3, 4, 4)}
MAPS = {
    **{
        f"{c} {kind}": (
            lambda k, c=c, s=shape: constrained(s, 4, constraint=c, key=k),
            shape,
        )
        for c in CONSTRAINTS
        for kind, shape in SHAPES.items()
    },
    **{
        f"{c} zero": (
            lambda k, c=c: constrained(
                SHAPES["conv"], 4, constraint=c, padding="zero", key=k
            ),
            SHAPES["conv"],
        )
        for c in ("rescaled", "aol", "sll")
    },
    **{
        f"free {padding} {len(shape)}": (
            lambda k, p=padding, s=shape: constrained(
                s, 5, constraint=Free(), padding=p, key=k
            ),
            shape,
        )
        for padding, shape in (
            ("circular", SHAPES["dense"]),
            ("circular", SHAPES["conv"]),
            ("zero", SHAPES["conv"]),
        )
    },
}


def decayed(tree, key):
    """After steps of AdamW, which decays every array, at some loss."""
    params, static = eqx.partition(tree, eqx.is_inexact_array)
    optimizer = optax.adamw(0.05, weight_decay=0.3)
    state = optimizer.init(params)
    for k in jr.split(key, 5):
        keys = iter(jr.split(k, 100))
        grads = jax.tree.map(lambda w: jr.normal(next(keys), w.shape, w.dtype), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return eqx.combine(params, static)


def scaled(tree, key):
    return jax.tree.map(lambda w: 3 * w if eqx.is_inexact_array(w) else w, tree)


def moved(tree, key):
    leaves, structure = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            w + jr.normal(k, w.shape, w.dtype) if eqx.is_inexact_array(w) else w
            for w, k in zip(leaves, keys, strict=True)
        ],
    )


ACTS: dict[str, Callable] = {"decayed": decayed, "scaled": scaled, "moved": moved}


@pytest.mark.parametrize(
    "name", slow_but(MAPS, "cayley conv", "newton_schulz dense", "rescaled zero")
)
def test_no_act_makes_the_norm_of_a_map_false(getkey, standard_promotion, name):
    make, shape = MAPS[name]
    map_ = make(getkey())
    plain, bound = jnode.resolve(map_)
    assert singular_values(plain, shape)[0] <= float(bound)
    # A plain map measures what it holds, all but exactly.
    assert float(plain.norm()) <= float(bound) * 1.001
    for act in ACTS.values():
        edited = act(plain, getkey())
        largest = singular_values(edited, shape)[0]
        # Zero padding is measured on a larger circular grid; and of frequencies that
        # are their own conjugates the imaginary parts count, though they do nothing.
        slack = 1.6 if "zero" in name else 1.2 if len(shape) == 3 else 1.01
        assert largest <= float(edited.norm()) <= slack * largest + 1e-3


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["ortho", "flow", "skew", "hamiltonian", "sum", "composed"], "flow", "sum"
    ),
)
def test_no_act_makes_the_bounds_of_a_field_false(getkey, standard_promotion, name):
    for act in ACTS.values():
        field = act(FIELDS[name]((6,), getkey()).bake(), getkey())
        bounds = field.bounds()
        for y in jr.normal(getkey(), (4, 6)):
            jacobian = np.asarray(jax.jacobian(lambda y: field(0.3, y))(y), np.float64)
            eigenvalues = np.linalg.eigvalsh((jacobian + jacobian.T) / 2)
            assert np.linalg.norm(jacobian, 2) <= float(bounds.lipschitz) + 1e-5
            assert float(bounds.log_norm[0]) - 1e-5 <= eigenvalues[0]
            assert eigenvalues[-1] <= float(bounds.log_norm[1]) + 1e-5


def test_editing_one_weight(getkey):
    field = jnode.GradientFlowField((6,), key=getkey()).bake()
    edited = eqx.tree_at(
        lambda f: f.weights[0].matrix, field, replace_fn=lambda w: 10 * w
    )
    exact = float(jnp.linalg.norm(edited.weights[0].matrix, 2)) ** 2
    assert exact == pytest.approx(100, rel=1e-3)
    assert exact <= edited.lipschitz() <= 1.01 * exact
    solver = jnode.Solver("euler", steps=4)
    assert certify.amplification(field, solver) < 1.001
    assert certify.amplification(edited, solver) > 1000


@pytest.mark.parametrize("kind", slow_but(["gradient_flow", "ortho"], "gradient_flow"))
def test_fine_tuning_a_plain_model_keeps_its_certificate(
    getkey, standard_promotion, kind
):
    model, _ = jnode.resolve(small_model(getkey(), kind, lipschitz=2.0))
    images = jr.uniform(getkey(), (32, 8, 8, 1))
    labels = jr.randint(getkey(), (32,), 0, 4)
    before = float(model.lipschitz())
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            logits = jax.vmap(model)(images)
            return optax.softmax_cross_entropy_with_integer_labels(
                10 * logits, labels
            ).mean()

        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state_ = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state_

    for _ in range(20):
        model, state = step(model, state)
    search = eqx.filter_jit(
        lambda m, x, k: certify.lipschitz_lower_bound(m.embed, x, key=k, steps=60)
    )
    found = max(float(search(model, x, getkey())) for x in images[:4])
    assert found > 1.5 * before  # a bound kept from before would be false
    assert found <= float(model.lipschitz())


@pytest.mark.parametrize(
    "kind",
    slow_but(["gradient_flow", "ortho", "skew", "hamiltonian"], "gradient_flow"),
)
def test_the_bounds_of_the_pass_are_those_asked_for_later(getkey, kind):
    model = small_model(getkey(), kind, lipschitz=2.0, segments=(2,))
    plain, bounds = jnode.resolve(model)
    assert float(bounds.lipschitz) == pytest.approx(float(model.lipschitz()))
    assert float(bounds.layers[-1]) == float(model.blocks[0].lipschitz())
    # Near-isometries measure themselves as well as their construction tells.
    assert float(plain.lipschitz()) <= float(bounds.lipschitz) * 1.002
    assert float(plain.lipschitz()) >= float(bounds.lipschitz) * 0.5


def test_the_bounds_are_no_leaf_of_the_plain_model(getkey):
    model = small_model(getkey(), lipschitz=2.0)
    plain, _ = jnode.resolve(model)
    sizes = {leaf.size for leaf in jax.tree.leaves(plain.blocks[0].field.weights)}
    assert min(sizes) > 1


class Mine(eqx.Module):
    """A module of a user that holds a map of ours."""

    map: Any
    bias: jax.Array

    def __call__(self, t, y, args):
        return self.map(y) + self.bias


def test_any_pytree_is_resolved(getkey):
    mine = Mine(constrained((5,), 5, key=getkey()), jnp.ones(5))
    field = jnode.OrthoField((5,), key=getkey())
    tree = {"mine": mine, "field": field, "number": 3}
    plain, bounds = jnode.resolve(tree)
    assert isinstance(plain["mine"].map, Dense) and plain["number"] == 3
    assert isinstance(bounds["field"], Bounds)
    assert bounds["mine"].map == pytest.approx(1, abs=1e-3)
    assert bounds["number"] is None and bounds["mine"].bias is None
    y = jr.normal(getkey(), (5,))
    assert jnp.abs(mine(0, y, None) - plain["mine"](0, y, None)).max() < 1e-6


class Doubling(AbstractLinear):
    """A linear map of somebody else."""

    factor: jax.Array

    def __call__(self, x):
        return self.factor * x

    @property
    def T(self):
        return self

    def norm(self):
        return jnp.abs(self.factor)


def test_maps_of_somebody_else_in_stacks(getkey):
    """They measure themselves, one by one."""
    flow = lambda: jnode.GradientFlowField((4,), key=getkey())
    segments = [Congruent(flow(), Doubling(jnp.asarray(x))) for x in (1.0, 2.0)]
    field = jnode.PiecewiseField(segments)
    plain, bounds = jnode.resolve(field)
    assert float(bounds.lipschitz) == pytest.approx(4, rel=1e-3)
    assert float(plain.lipschitz()) == pytest.approx(4, rel=1e-3)
    y = jr.normal(getkey(), (4,))
    for t in (0.2, 0.7):
        assert jnp.abs(plain(t, y) - field(t, y)).max() < 1e-5


def test_a_stack_of_a_stack_is_resolved(getkey):
    make = lambda k: constrained((3, 4, 2), 3, key=k)
    keys = jr.split(getkey(), (2, 3))
    stacked = eqx.filter_vmap(eqx.filter_vmap(make))(keys)
    plain, bounds = jnode.resolve(stacked)
    assert bounds.shape == (2, 3) and plain.real.shape[:2] == (2, 3)
    one = jax.tree.map(lambda x: x[1, 2], plain)
    alone, bound = jnode.resolve(make(keys[1, 2]))
    assert jnp.abs(one.real - alone.real).max() < 1e-6
    assert float(bounds[1, 2]) == pytest.approx(float(bound))


def test_certified_derives_its_bounds_from_what_it_holds(getkey):
    mine = Mine(Dense(jr.normal(getkey(), (5, 5))), jnp.ones(5))
    field = jnode.Certified(mine, bounds=lambda fn: Bounds(fn.map.norm()))
    exact = lambda f: float(jnp.linalg.norm(f.fn.map.matrix, 2))
    assert exact(field) <= field.lipschitz() <= 1.01 * exact(field)
    edited = eqx.tree_at(lambda f: f.fn.map.matrix, field, replace_fn=lambda w: 7 * w)
    assert exact(edited) <= edited.lipschitz() <= 1.01 * exact(edited)
    solver = jnode.Solver("rk4", steps=2)
    assert jnp.isfinite(jnode.amplification(field, solver))
    assert jnp.isfinite(jnode.solve(field, jnp.ones(5), solver).y).all()
    plain, bounds = jnode.resolve(field + jnode.OrthoField((5,), key=getkey()))
    assert bounds.lipschitz == pytest.approx(float(field.lipschitz()) + 1, rel=1e-3)
    assert jnp.isfinite(plain(0.0, jnp.ones(5))).all()


def test_certified_takes_plain_numbers_of_plain_functions_only(getkey):
    field = jnode.Certified(lambda t, y, args: -y, Bounds(1.0, (-1.0, -1.0)))
    assert float(field.log_norm()) == -1
    # No transformation of arrays reaches the numbers.
    assert not jax.tree.leaves(eqx.filter(field, eqx.is_array))
    with pytest.raises(ValueError, match="function of fn"):
        jnode.Certified(
            Mine(Dense(jr.normal(getkey(), (5, 5))), jnp.ones(5)), Bounds(1.0)
        )
    number: Any = 3
    with pytest.raises(TypeError):
        jnode.Certified(number, Bounds(1.0))
    with pytest.raises(TypeError):
        jnode.Certified(lambda t, y, args: -y, number)
    number_of: Any = lambda fn: 1.0
    wrong: Any = jnode.Certified(lambda t, y, args: -y, number_of)
    with pytest.raises(TypeError, match=r"must give jnode\.Bounds"):
        wrong.bounds()


class Foreign(AbstractVectorField):
    """A field of somebody else."""

    def __call__(self, t, y, args=None):
        return -y

    def bounds(self):
        return Bounds(1.0, (-1.0, -1.0))


def test_claims_that_nobody_verified_are_listed(getkey):
    model = small_model(getkey())
    assert certify.assumptions(model) == []
    mine = jnode.Certified(lambda t, y, args: -y, Bounds(1.0))
    claimed = eqx.tree_at(
        lambda m: m.blocks[0].field, model, model.blocks[0].field + mine + Foreign()
    )
    listed = certify.assumptions(claimed)
    assert len(listed) == 2
    assert "<lambda>" in listed[0] and "Foreign" in listed[1]


@pytest.mark.slow
def test_half_precision_is_refused(getkey):
    model = small_model(getkey())
    images = jr.uniform(getkey(), (2, 8, 8, 1))
    for dtype in (jnp.bfloat16, jnp.float16):
        cast = lambda tree, dtype=dtype: jax.tree.map(
            lambda w: w.astype(dtype) if eqx.is_inexact_array(w) else w, tree
        )
        for half in (cast(model), cast(model.bake())):
            for refused in (
                lambda m=half: certify.radius(m, images),
                lambda m=half: certify.local_radius(m, images),
                lambda m=half: certify.certified_radii(m, images, np.arange(2)),
                half.lipschitz,
                half.blocks[0].field.bounds,
                lambda m=half: certify.amplification(m.blocks[0].field, m.solver),
            ):
                with pytest.raises(TypeError, match=r"float32 or float64, not in"):
                    refused()
        with pytest.raises(TypeError, match="float32 or float64"):
            certify.radius(model, cast(images))
    with pytest.raises(TypeError):
        certify.radius(model, jnp.zeros((2, 8, 8, 1), jnp.uint8))


def test_users_products_are_full_where_something_is_certified(getkey):
    """What a certificate evaluates is traced at the highest precision."""
    config: Any = jax.config
    weight, seen = jnp.eye(4), []

    def rotate(t, y, args):
        seen.append(config.jax_default_matmul_precision)
        return jnp.einsum("hwc,cd->hwd", y, weight)

    model = small_model(getkey())

    def claim(fn):
        seen.append(config.jax_default_matmul_precision)
        return Bounds(1.0)

    own = jnode.Certified(rotate, claim)
    jnode.amplification(own, jnode.Solver("rk4", steps=1))
    certify.gronwall(own, jnp.asarray([0.0, 1.0]))
    assert len(seen) == 2
    model = eqx.tree_at(lambda m: m.blocks[0].field, model, own)
    images = jr.uniform(getkey(), (2, 8, 8, 1))
    certify.radius(model, images)
    certify.local_radius(model, images)
    certify.certified_radii(model, np.asarray(images), np.asarray([0, 1]))
    assert seen and all(precision == "highest" for precision in seen)


def test_on_tpu_certificates_are_computed_on_the_host(getkey, monkeypatch):
    model, images = small_model(getkey()), jr.uniform(getkey(), (2, 8, 8, 1))
    expected = certify.radius(model, images)
    images = jax.device_put(images, jax.devices()[1])  # stands for the TPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    found = certify.radius(model, images)
    assert found.devices() == {jax.devices("cpu")[0]}
    assert (found == expected).all()
    assert certify.arithmetic() == {"backend": "cpu", "matmul_precision": "highest"}
