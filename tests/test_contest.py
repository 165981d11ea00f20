"""The contest with published models: the rebuilt parts, and what the page says."""

import json
import sys
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "contest"))

import checkpoints
import gains
import structured
import tisode
from table import table

from jnode.linear import Conv
from jnode.models import ODEBlock
from jnode.solvers import Solver

RESULTS = ROOT / "benchmarks" / "results"
FOUND = json.loads((RESULTS / "contest.json").read_text())


@pytest.fixture(autouse=True)
def promotion():
    """Benchmarks promote ranks, as users may."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", FOUND)
def test_published_clean_accuracy_is_reached(name):
    """Within 0.3 points on the images of the published figure."""
    entry = FOUND[name]
    if entry["published"]:
        stated = entry["published"][0]["accuracy"]
        assert abs(entry["clean_as_published"] - stated) <= 0.003


def test_certified_accuracy_is_below_robust_accuracy():
    for entry in FOUND.values():
        proven = {r["radius"]: r for r in entry.get("certified_accuracy", ())}
        for row in entry["rows"].values():
            (worst,) = row["worst_case"]
            if worst["norm"] == "l2" and worst["epsilon"] in proven:
                lower = proven[worst["epsilon"]]["certified_accuracy"]
                # They are measured on different numbers of images.
                assert lower <= worst["robust_accuracy"] + 0.05


def test_the_table_is_that_of_the_results():
    text = table(FOUND)
    assert (RESULTS / "contest.md").read_text() == text
    assert text in (ROOT / "docs" / "contest.md").read_text()


def controlled(field, y, first):
    """The published step control of one sample, as a plain loop in float64.

    **Returns:** the state at 1, and the lengths of all attempts.
    """
    tableau = diffrax.Dopri5.tableau
    rows = [np.zeros(0), *(np.asarray(a) for a in tableau.a_lower)]
    weights, error = np.asarray(tableau.b_sol), np.asarray(tableau.b_error)
    t, h, flag, refused, tried = 0.0, first, False, 0, []
    while t < 1 - 1e-7:
        tried.append(h)
        k = []
        for row in rows:
            k.append(field(y + h * (row @ k if k else 0 * y)))
        ratio = np.abs(h * error @ k).sum() / 0.005
        if flag or ratio <= 1:
            y, t = y + h * weights @ k, t + h
        if flag:
            h = min(h, 1 - t)
            continue
        if ratio <= 2.0**-5:
            new = 2 * h
        elif ratio <= 1:
            new = h
        else:
            new = h / 2
            refused += refused > 0
            if (new < 0.02 and refused == 0) or refused > 2:
                flag = True
                continue
        if t + new > 1:
            new, refused = 1 - t, max(refused, 1)
        h = new
    return y, tried


@pytest.mark.parametrize("rate", [1.0, 20.0, 60.0])
def test_steps_double_and_halve_as_published(rate):
    field = lambda y: -rate * np.sin(y) + np.cos(rate * y)
    start = np.linspace(0.2, 0.9, 5)
    expected, tried = controlled(field, start, 0.04)
    with jax.enable_x64(True):
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -rate * jnp.sin(y) + jnp.cos(rate * y)),
            diffrax.Dopri5(),
            0.0,
            1.0,
            None,
            jnp.asarray(start),
            stepsize_controller=gains.Doubling(jnp.asarray(0.04)),
            max_steps=512,
        )
        assert int(found.stats["num_steps"]) == len(tried)
        assert found.ys is not None
        assert np.allclose(found.ys[-1], expected, rtol=1e-6)
    assert len(set(np.round(tried, 6))) > 1  # the length did change


@pytest.mark.parametrize("sign", [-1, 1])
def test_bounds_of_a_step_hold(getkey, sign):
    kernel = jr.normal(getkey(), (3, 3, 2, 3)) / 3
    conv = Conv(kernel, (4, 4))
    field = structured.Gradient(
        conv, jr.normal(getkey(), (3,)), jnp.asarray(0.7 * sign), 0.5
    )
    y = jr.normal(getkey(), (4, 4, 2))
    flat = lambda v: field(0.0, v.reshape(y.shape)).ravel()
    jacobian = np.asarray(jax.jacobian(flat)(y.ravel()))
    assert np.allclose(jacobian, jacobian.T, atol=1e-5)
    values, bounds = np.linalg.eigvalsh(jacobian), field.bounds()
    low, high = (float(mu) for mu in bounds.log_norm)
    assert low <= values.min() and values.max() <= high
    assert np.abs(values).max() <= float(bounds.lipschitz)
    step = ODEBlock(field, Solver("euler", steps=1))
    moved = np.linalg.norm(np.eye(len(jacobian)) + jacobian, 2)
    assert moved <= float(step.lipschitz())
    other = structured.Layer(conv, jnp.zeros(3), jnp.asarray(-0.7), 0.5)
    jacobian = jax.jacobian(lambda v: other(0.0, v.reshape(y.shape)).ravel())(y.ravel())
    assert np.linalg.norm(jacobian, 2) <= float(other.bounds().lipschitz)


def test_lift_and_pool_hold_their_constants(getkey):
    lift = structured.Lift(
        Conv(jr.normal(getkey(), (3, 3, 2, 3)), (4, 4)),
        jnp.asarray(-1.5),
        jnp.asarray([0.4, 0.5]),
        jnp.asarray([0.2, 0.25]),
    )
    x = jr.normal(getkey(), (4, 4, 2))
    for layer in (lift, structured.Pool()):
        jacobian = jax.jacobian(lambda v, f=layer: f(v.reshape(x.shape)).ravel())
        found = np.linalg.norm(jacobian(x.ravel()), 2)
        assert found <= float(layer.lipschitz()) * (1 + 1e-6)


def test_a_normalised_convolution_is_equinox_s(getkey):
    conv = eqx.nn.Conv2d(33, 64, 3, padding=1, key=getkey())
    norm = eqx.nn.GroupNorm(32, 64)
    assert conv.bias is not None and norm.bias is not None and norm.weight is not None
    ours = tisode.NormedConv(
        jnp.asarray(checkpoints.kernel(np.asarray(conv.weight))),
        conv.bias.ravel(),
        norm.weight,
        norm.bias,
    )
    x, t = jr.normal(getkey(), (5, 5, 32)), 0.3
    timed = jnp.concatenate([jnp.full((1, 5, 5), t), jnp.moveaxis(x, -1, 0)])
    expected = jnp.moveaxis(jax.nn.relu(norm(conv(timed))), 0, -1)
    assert jnp.allclose(ours(t, x), expected, atol=1e-4)


def test_the_original_order_of_mnist():
    """TFDS sorts by the hash of the number, salted by the split."""
    hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
    hasher = hashing.Hasher("test")
    order = checkpoints.original_order("mnist", 50, None)
    stored = sorted(range(50), key=hasher.hash_key)
    assert [stored[place] for place in order] == list(range(50))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Harm:
        def __reduce__(self):
            return (print, ("this was run",))

    torch.save({"w": Harm()}, tmp_path / "w.pt")
    with pytest.raises(Exception, match="Unsupported global|weights_only"):
        checkpoints.arrays(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="FOLDER must hold checkouts"):
        checkpoints.arrays(tmp_path / "none.pt")
