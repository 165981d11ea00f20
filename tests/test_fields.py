"""Vector fields: their bounds hold, `bake` changes nothing, Diffrax takes them."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.certify import lipschitz_lower_bound
from jnode.constraints import constrained
from jnode.fields import Composed, Congruent, Decay, LowPrecisionField, Scaled, Sum
from jnode.fields.base import as_two_layer, time_invariant, vjp_change
from tests.helpers import slow_but

FIELDS = {
    "ortho": lambda s, k: jnode.OrthoField(s, lipschitz=1.5, hidden=6, key=k),
    "ortho tanh": lambda s, k: jnode.OrthoField(s, activation="tanh", key=k),
    "ortho maxmin": lambda s, k: jnode.OrthoField(
        s, activation="maxmin", time=True, key=k
    ),
    "flow": lambda s, k: jnode.GradientFlowField(s, lipschitz=3.0, key=k),
    "flow wide": lambda s, k: jnode.GradientFlowField(s, hidden=8, key=k),
    "flow decaying": lambda s, k: jnode.GradientFlowField(
        s, lipschitz=2.0, potentials=2, decay=0.4, constraint="sll", key=k
    ),
    "skew": lambda s, k: jnode.SkewField(s, lipschitz=2.0, damping=0.2, key=k),
    "skew leaky": lambda s, k: jnode.SkewField(
        s, damping=2.0, activation="leaky_relu", key=k
    ),
    "hamiltonian": lambda s, k: jnode.HamiltonianField(s, key=k),
    "hamiltonian loose": lambda s, k: jnode.HamiltonianField(
        s, damping=0.1, convexity=0.0, activation="softplus", key=k
    ),
    "sum": lambda s, k: (
        jnode.OrthoField(s, key=k)
        + 0.5 * jnode.GradientFlowField(s, key=k)
        + Decay(2.0)
    ),
    "composed": lambda s, k: Composed(jnode.OrthoField(s, key=k), Decay(0.5)),
    "congruent": lambda s, k: Congruent(
        jnode.GradientFlowField((*s[:-1], 6), lipschitz=2.0, key=k),
        constrained(s, 6, key=k),
    ),
    "free": lambda s, k: jnode.FreeField(s, time=True, group_norm=True, key=k),
    "free circular": lambda s, k: jnode.FreeField(s, padding="circular", key=k),
}
SHAPES = [(4,), (3, 4, 4)]


BOUNDED = [n for n in FIELDS if not n.startswith("free")]

# Combinations add nothing to what their parts do on grids.
ON_GRIDS = [n for n in FIELDS if n not in ("sum", "composed", "flow wide")]


@pytest.mark.parametrize(
    ("name", "shape"),
    slow_but(
        [*((n, SHAPES[0]) for n in FIELDS), *((n, SHAPES[1]) for n in ON_GRIDS)],
        ("flow wide", SHAPES[0]),
        ("composed", SHAPES[0]),
        ("hamiltonian", SHAPES[1]),
        unpack=True,
    ),
)
def test_bake_and_diffrax(getkey, name, shape):
    field = FIELDS[name](shape, getkey())
    y = jr.normal(getkey(), shape)
    baked = field.bake()
    evaluate = eqx.filter_jit(lambda f, y: f(0.3, y))
    assert jnp.abs(evaluate(field, y) - evaluate(baked, y)).max() < 1e-6
    if not name.startswith("free"):
        # No reparametrisation is left, which takes loops or roots.
        text = str(jax.make_jaxpr(lambda y: baked(0.3, y))(y))
        assert not any(word in text for word in ("while", "scan", "sqrt"))
    solution: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(baked), diffrax.Heun(), 0.0, 1.0, 0.5, y
    )
    ours = eqx.filter_jit(jnode.solve)(field, y, jnode.Solver("heun", steps=2))
    assert jnp.abs(solution.ys[-1] - ours.y).max() < 1e-5


@pytest.mark.parametrize(
    "name", slow_but(BOUNDED, "ortho", "flow", "skew leaky", "hamiltonian")
)
def test_bounds_hold(getkey, x64, name):
    field = FIELDS[name]((3, 4, 4), getkey())
    field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
    # What was certified is the field with float32 weights; float64 shows what it is.
    bound, mu = float(field.lipschitz()), float(field.log_norm())
    c = float(field.cocoercivity())
    field = jax.tree.map(lambda w: w.astype(jnp.float64), field)
    f = jax.jit(lambda y: field(0.4, y))
    for _ in range(3):
        y = jr.normal(getkey(), (3, 4, 4))
        assert lipschitz_lower_bound(f, y, key=getkey()) <= bound
        jacobian = np.asarray(jax.jacobian(f)(y)).reshape(48, 48)
        symmetric = (jacobian + jacobian.T) / 2
        assert np.linalg.eigvalsh(symmetric)[-1] <= mu + 1e-12
        z = y + jr.normal(getkey(), y.shape)
        df, dy = f(y) - f(z), y - z
        assert jnp.sum(df * dy) <= -c * jnp.sum(df**2) + 1e-9 or c == 0


def test_free_field_claims_nothing(getkey):
    field = jnode.FreeField((4,), key=getkey())
    assert field.lipschitz() == field.log_norm() == jnp.inf
    assert field.cocoercivity() == 0


def test_learnable_scale_stays_below_its_cap(getkey):
    field = jnode.OrthoField((4,), lipschitz=2.0, learnable=True, key=getkey())
    raised = jax.tree.map(lambda w: w + 50.0, field.scale)
    assert 0 < field.scale(jnp.float32) < 2
    assert raised(jnp.float32) <= 2
    y = jnp.ones(4)
    grad = jax.grad(lambda f: jnp.sum(f(0.0, y) ** 2))(field)
    assert grad.scale.raw != 0


def test_log_norms_on_paper(getkey):
    """What the bounds should be, up to the allowance for rounding."""
    make = lambda kind, **options: kind((4,), key=getkey(), **options)
    near = lambda x: pytest.approx(x, rel=1e-2, abs=1e-6)
    flow = make(jnode.GradientFlowField, lipschitz=3.0, decay=0.5)
    assert float(flow.log_norm()) == near(-0.5)
    assert float(flow.cocoercivity()) == near(1 / 3.5)
    skew = make(jnode.SkewField, lipschitz=2.0)
    assert float(skew.log_norm()) == near(1.0)
    skew = make(jnode.SkewField, damping=3.0, activation="leaky_relu")
    assert float(skew.log_norm()) == near(0.45 * (10**0.5 - 3) - 0.3)
    hamiltonian = make(jnode.HamiltonianField)
    assert float(hamiltonian.log_norm()) == near(0.5 * (2**0.5 - 1) - 0.5)
    total = make(jnode.OrthoField) + Decay(2.0)
    assert float(total.log_norm()) == near(-1.0)
    assert float(total.lipschitz()) == near(3.0)
    assert float(total.cocoercivity()) == near(1 / 9)
    assert float((3 * flow).log_norm()) == near(-1.5)


def test_hamiltonian_keeps_its_energy_without_damping(getkey):
    field = jnode.HamiltonianField(
        (6,), damping=0.0, convexity=0.3, key=getkey()
    ).bake()
    assert isinstance(field, jnode.HamiltonianField)

    def energy(y):
        inner = field.weight(y) + field.bias
        # The potential of tanh is log cosh.
        return jnp.sum(jnp.log(jnp.cosh(inner))) + 0.15 * jnp.sum(y**2)

    y = jr.normal(getkey(), (6,))
    gradient = jax.grad(energy)(y)
    assert abs(float(jnp.sum(gradient * field(0.0, y)))) < 1e-5
    after = jnode.solve(field, y, jnode.Solver("rk4", steps=20)).y
    assert float(energy(after)) == pytest.approx(float(energy(y)), rel=1e-4)
    assert jnp.abs(after - y).max() > 0.1


def test_sll_layer_is_one_euler_step(getkey):
    """x - 2 W T^-1 relu(W^T x + b), Araujo et al. (ICLR 2023), Theorem 3."""
    v, q, b, x = (jr.normal(getkey(), s) for s in ((6, 5), (6,), (6,), (5,)))
    field = jnode.GradientFlowField((5,), hidden=6, constraint="sll", key=getkey())
    # Their W is our V^T, their q_i our 1 / q_i of either sign convention.
    t = np.diag(np.abs(v @ v.T) @ np.exp(q) / np.exp(q))
    # T^(1/2) takes their bias to ours.
    scaled = jnp.asarray(np.diag(t) ** -0.5, jnp.float32) * b
    field = eqx.tree_at(
        lambda f: (f.weights[0].weight, f.weights[0].constraint.log_q, f.biases[0]),
        field,
        (v, q, scaled),
    )
    layer = x - 2 * v.T @ np.linalg.inv(t) @ np.maximum(v @ x + b, 0)
    # h L = 2 in one step.
    ours = jnode.solve(2.0 * field, x, jnode.Solver("euler", steps=1)).y
    assert jnp.abs(ours - layer).max() < 1e-4 * jnp.abs(layer).max()


def test_convex_potential_layer_is_one_euler_step(getkey):
    """x - 2/|W|^2 W^T relu(W x + b), Meunier et al. (ICML 2022)."""
    w, b, x = (jr.normal(getkey(), s) for s in ((7, 5), (7,), (5,)))
    norm = np.linalg.norm(w, 2)
    field = jnode.GradientFlowField((5,), hidden=7, constraint="rescaled", key=getkey())
    field = eqx.tree_at(
        lambda f: (f.weights[0].weight, f.biases[0]), field, (w, b / norm)
    )
    layer = x - 2 / norm**2 * w.T @ np.maximum(w @ x + b, 0)
    ours = jnode.solve(2.0 * field, x, jnode.Solver("euler", steps=1)).y
    # Gram iteration divides by slightly more than the norm.
    assert jnp.abs(ours - layer).max() < 0.03 * jnp.abs(layer - x).max()
    assert float(jnode.certify.amplification(2.0 * field, jnode.Solver("euler", 1))) < (
        1 + 1e-3
    )


@pytest.mark.parametrize(
    "name",
    slow_but(
        [
            "ortho tanh",
            "ortho maxmin",
            "flow decaying",
            "skew leaky",
            "hamiltonian",
            "sum",
        ],
        "flow decaying",
        "sum",
    ),
)
def test_vjp_change_holds_in_the_ball(getkey, name):
    field = FIELDS[name]((2, 3, 4), getkey()).bake()
    y, v = jr.normal(getkey(), (2, 2, 3, 4))
    pull = jax.jit(lambda y: jax.vjp(lambda y: field(0.4, y), y)[1](v)[0])
    for distance in (0.1, 1.0):
        near = (jnp.asarray(distance), jnp.asarray(1e-5))
        limit = vjp_change(field, 0.4, y, v, *near)
        assert limit <= 2.1 * field.lipschitz() * jnp.linalg.norm(v)
        moves = jr.normal(getkey(), (100, *y.shape))
        moves = moves / jnp.linalg.norm(moves.reshape(100, -1), axis=1).reshape(
            100, 1, 1, 1
        )
        change = jax.vmap(lambda m: jnp.linalg.norm(pull(y + distance * m) - pull(y)))
        assert change(moves).max() <= limit * (1 + 1e-5)


@pytest.mark.parametrize(
    "name", slow_but(BOUNDED, "ortho", "flow", "skew", "hamiltonian")
)
def test_certificates_have_finite_gradients(getkey, name):
    # The margin loss differentiates them.
    field = FIELDS[name]((4,), getkey())
    for solver in (jnode.Solver("euler", steps=2), jnode.Solver("rk4", steps=2)):
        bound = lambda f, s=solver: jnode.certify.amplification(f.bake(), s)
        grads = jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(bound))(field))
        assert all(jnp.isfinite(g).all() for g in grads)


def test_learnable_constant_is_trained_through_the_certificate(getkey):
    for kind in (jnode.OrthoField, jnode.SkewField, jnode.HamiltonianField):
        field = kind((4,), lipschitz=2.0, learnable=True, key=getkey())
        bound = lambda f: jnode.certify.amplification(f, jnode.Solver("rk4", steps=2))
        slope = eqx.filter_grad(bound)(field).scale.raw
        assert jnp.isfinite(slope) and slope != 0


def test_multiples_and_roundings_pass_on_their_form(getkey):
    y = jr.normal(getkey(), (4,))
    for field in (
        jnode.OrthoField((4,), lipschitz=2.0, time=True, hidden=2, key=getkey()),
        jnode.GradientFlowField((4,), hidden=2, key=getkey()),
    ):
        field = jax.tree.map(lambda w: w + 0.1, field).bake()
        for changed in (-0.5 * field, LowPrecisionField(2.0 * field)):
            form = as_two_layer(changed)
            assert form is not None and form.hidden_is_cheaper(4, y)
            assert jnp.abs(form(0.3, y) - changed(0.3, y)).max() < 1e-6
            solver = jnode.Solver("rk4", steps=2)
            close = 1e-5 if isinstance(changed, Scaled) else 0.03
            parted = changed + Decay(0.0)  # a sum has no such form
            assert as_two_layer(parted) is None
            away = jnode.solve(changed, y, solver).y - jnode.solve(parted, y, solver).y
            assert jnp.abs(away).max() < close


def test_time_invariance(getkey):
    ortho = lambda time: jnode.OrthoField((4,), time=time, key=getkey())
    assert ortho(False).time_invariant and not ortho(True).time_invariant
    assert not time_invariant(ortho(False) + ortho(True))
    assert not Scaled(ortho(True), 2.0).time_invariant
    assert jnode.FreeField((4,), key=getkey()).time_invariant
    assert not jnode.PiecewiseField([ortho(False), ortho(False)]).time_invariant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: jnode.OrthoField((4, 4), key=k), "shape must be"),
        (lambda k: jnode.OrthoField((4,), lipschitz=0.0, key=k), "positive finite"),
        (lambda k: jnode.OrthoField((4,), activation="gelu", key=k), "relu, tanh"),
        (lambda k: jnode.GradientFlowField((4,), activation="maxmin", key=k), "monoto"),
        (lambda k: jnode.GradientFlowField((4,), decay=-1.0, key=k), "decay must be"),
        (lambda k: jnode.GradientFlowField((4,), potentials=0, key=k), "potentials"),
        (lambda k: jnode.SkewField((4,), activation="maxmin", key=k), "monotone"),
        (lambda k: jnode.SkewField((4,), damping=-0.1, key=k), "damping must be"),
        (lambda k: jnode.HamiltonianField((3,), key=k), "even number"),
        (
            lambda k: float("inf") * jnode.OrthoField((4,), key=k),
            "factor must be finite",
        ),
        (lambda k: Sum(()), "at least one field"),
        (lambda k: jnode.PiecewiseField([]), "at least one field"),
        (
            lambda k: jnode.PiecewiseField(
                [jnode.OrthoField((4,), key=k), jnode.SkewField((4,), key=k)]
            ),
            "alike but for their weights",
        ),
        (lambda k: jnode.FreeField((4, 4, 2), padding="same", key=k), "padding must"),
        (
            lambda k: jnode.OrthoField((3,), activation="maxmin", key=k)(
                0, jnp.ones(3)
            ),
            "even number",
        ),
    ],
)
def test_bad_fields(getkey, make, message):
    with pytest.raises(ValueError, match=message):
        make(getkey())
