"""Checkpoints: what is kept, on how many devices, and what damaged ones do."""

import errno
import json
import logging
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnode import sharding
from jnode._process import hush_orbax
from jnode.train import RunDir, StorageError
from jnode.train.checkpoints import CheckpointMismatch, Checkpoints

ROOT = Path(__file__).parent.parent
FACTS = {"seed": 0}


def tree(value=1.0, n=8):
    return {"weights": jnp.full((n, 3), value), "step": jnp.asarray(7, jnp.int32)}


def saved(folder, losses):
    """A folder of checkpoints, at steps 1, 2, ..., with these losses."""
    kept = Checkpoints(folder, writing=True)
    for step, loss in enumerate(losses, 1):
        kept.save(step, tree(float(step)), FACTS, loss)
    kept.close()
    return Checkpoints(folder)


def restored(kept, like, step=None):
    """The tree and its step; there must be a checkpoint."""
    found = kept.restore(like, FACTS, step)
    assert found is not None
    return found


def truncate(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:40])


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    kept = saved(tmp_path, [3.0, 1.0, 2.0, None, 4.0])
    assert kept.steps() == [2, 4, 5]
    assert kept.best() == 2
    found, step = restored(kept, tree(0.0))
    assert step == 5 and (found["weights"] == 5.0).all() and found["step"] == 7
    found, _ = restored(kept, tree(0.0), 2)
    assert (found["weights"] == 2.0).all()
    facts = json.loads((kept.path(5) / "facts" / "metadata").read_text())
    assert facts["arrays"]["['weights']"]["shape"] == [8, 3]


def test_what_is_saved_is_not_what_comes_after(tmp_path):
    """The buffers are given away to the next step while they are being written."""
    forward = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    kept, now = Checkpoints(tmp_path, writing=True), tree(0.0, n=100_000)
    for step in range(1, 4):
        now = forward(now)
        kept.save(step, now, FACTS)
        for _ in range(20):
            now = forward(now)
    kept.close()
    found, _ = restored(Checkpoints(tmp_path), tree(0.0, n=100_000))
    assert (found["weights"] == 2 * 21 + 1).all()


def test_truncated_falls_back_and_says_so(tmp_path, capsys):
    kept = saved(tmp_path, [None, None])
    truncate(kept.path(2))
    kept = Checkpoints(tmp_path, writing=True)
    found, step = restored(kept, tree(0.0))
    assert step == 1 and (found["weights"] == 1.0).all()
    assert "step_000000002 is damaged" in capsys.readouterr().out
    kept.save(2, tree(9.0), FACTS)
    kept.close()
    truncate(Checkpoints(tmp_path).path(1))
    truncate(Checkpoints(tmp_path).path(2))
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        Checkpoints(tmp_path, writing=True).restore(tree(0.0), FACTS)
    assert len(list((tmp_path / "damaged").iterdir())) == 2


def test_only_orbax_is_hushed(monkeypatch):
    """What its threads and readers complain of; all else is told as before."""
    threads, unraisable = [], []
    monkeypatch.setattr(threading, "excepthook", threads.append)
    monkeypatch.setattr(sys, "unraisablehook", lambda u: unraisable.append(u.exc_value))
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)
    hush_orbax()

    class Writer(threading.Thread):
        __module__ = "orbax.checkpoint.futures"

    for thread in (Writer(), threading.Thread()):
        told: Any = types.SimpleNamespace(thread=thread)
        threading.excepthook(told)
    assert [type(args.thread) for args in threads] == [threading.Thread]
    other = RuntimeError("somebody else's")
    closed = RuntimeError("Event loop is closed")
    unbegun = RuntimeWarning("coroutine 'read' was never awaited")
    for error in (closed, other, unbegun):
        told = types.SimpleNamespace(exc_value=error)
        sys.unraisablehook(told)
    assert unraisable == [other]


@pytest.mark.slow
def test_damaged_checkpoints_are_told_of_in_a_script_once(tmp_path):
    """Really, with Orbax: readers are left behind, and nothing comes from them."""
    many = tree() | {f"more{i}": jnp.full((5,), 1.0) for i in range(30)}
    kept = Checkpoints(tmp_path, writing=True)
    for step in (1, 2):
        kept.save(step, many, FACTS)
    kept.close()
    truncate(kept.path(2))
    code = f"""
    import time
    from pathlib import Path
    import jax.numpy as jnp
    from jnode._process import run
    from jnode.train.checkpoints import Checkpoints

    def main():
        many = {{"weights": jnp.zeros((8, 3)), "step": jnp.zeros((), "int32")}}
        many |= {{f"more{{i}}": jnp.zeros((5,)) for i in range(30)}}
        kept = Checkpoints(Path({str(tmp_path)!r}), writing=True)
        assert kept.restore(many, {FACTS})[1] == 1
        kept.close()
        time.sleep(1)

    run(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("is damaged") == 1


def test_many_arrays_fail_at_once(tmp_path, recwarn):
    """Really, with Orbax: as many readers as there are arrays are left behind."""
    many = tree() | {f"more{i}": jnp.full((5,), 1.0) for i in range(30)}
    kept = Checkpoints(tmp_path, writing=True)
    for step in (1, 2, 3):
        kept.save(step, many, FACTS)
    kept.close()
    truncate(kept.path(3))
    kept = Checkpoints(tmp_path, writing=True)
    assert restored(kept, many)[1] == 2
    kept.save(3, many, FACTS)  # by a manager that never failed
    kept.close()
    assert restored(Checkpoints(tmp_path), many)[1] == 3


def test_precision_is_no_architecture(tmp_path):
    kept = saved(tmp_path, [None])
    with jax.enable_x64(True):
        like = tree(0.0) | {"weights": jnp.zeros((8, 3), jnp.float64)}
        found, _ = restored(kept, like)
        assert found["weights"].dtype == jnp.float32
        assert (found["weights"] == np.float32(1.0)).all()
        with pytest.raises(
            CheckpointMismatch, match="step.* is int32.* there and float"
        ):
            kept.restore(like | {"step": jnp.zeros(())}, FACTS)


def test_a_flipped_value_is_noticed(tmp_path, monkeypatch, capsys):
    kept = saved(tmp_path, [None, None])
    path = kept.path(2) / "facts" / "metadata"
    facts = json.loads(path.read_text())
    facts["arrays"]["['weights']"]["crc32"] ^= 1
    path.write_text(json.dumps(facts))
    _, step = restored(Checkpoints(tmp_path, writing=True), tree(0.0))
    assert step == 1 and "not what was written" in capsys.readouterr().out


def test_another_architecture_or_seed(tmp_path):
    kept = saved(tmp_path, [None])
    with pytest.raises(CheckpointMismatch, match=r"float32\[8, 3\] there and .*\[9, 3"):
        kept.restore(tree(n=9), FACTS)
    with pytest.raises(CheckpointMismatch, match="bias.* absent there"):
        kept.restore(tree() | {"bias": jnp.zeros(3)}, FACTS)
    with pytest.raises(CheckpointMismatch, match="seed 0, this run has 1"):
        kept.restore(tree(), {"seed": 1})
    assert restored(kept, tree())[1] == 1  # nothing was lost


def test_half_written_ones_are_cleared_away(tmp_path):
    saved(tmp_path, [None])
    half = tmp_path / "checkpoints" / "step_000000002.orbax-checkpoint-tmp-123"
    half.mkdir()
    (half / "state").write_text("half")
    assert Checkpoints(tmp_path).steps() == [1]
    kept = Checkpoints(tmp_path, writing=True)
    kept.save(2, tree(), FACTS)
    kept.close()
    assert Checkpoints(tmp_path).steps() == [1, 2] and not half.exists()


@pytest.mark.slow
def test_onto_another_number_of_devices(tmp_path):
    """Saved spread over two devices, read on one, and on eight in another process."""
    two = sharding.data_mesh(jax.devices()[:2])
    spread = sharding.shard_batch({"weights": np.arange(24.0).reshape(8, 3)}, two)
    kept = Checkpoints(tmp_path, writing=True)
    kept.save(1, sharding.replicate(tree(2.0), two) | spread, FACTS)
    kept.close()
    found, _ = restored(Checkpoints(tmp_path), tree())
    assert len(found["weights"].sharding.device_set) == 1
    assert (found["weights"] == np.arange(24.0).reshape(8, 3)).all()
    code = f"""
    import jax, numpy as np
    from jnode import sharding
    from jnode.train.checkpoints import Checkpoints
    eight = sharding.data_mesh()
    like = sharding.replicate({{"step": jax.numpy.zeros((), "int32")}}, eight)
    like |= sharding.shard_batch({{"weights": np.zeros((8, 3), "float32")}}, eight)
    from pathlib import Path
    found, _ = Checkpoints(Path({str(tmp_path)!r})).restore(like, {FACTS})
    assert len(found["weights"].sharding.device_set) == 8
    assert found["weights"].addressable_data(5).shape == (1, 3)
    assert (np.asarray(found["weights"]) == np.arange(24.0).reshape(8, 3)).all()
    print("eight")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PATH": ""},
    )
    assert done.stdout == "eight\n", done.stderr


def test_a_full_disk_loses_nothing(tmp_path):
    """No file may grow past 2 KiB here: the writer's own thread meets the limit."""
    resource = pytest.importorskip("resource")
    kept = Checkpoints(tmp_path, writing=True)
    kept.save(1, tree(), FACTS)
    kept.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = Checkpoints(tmp_path, writing=True)
    noise = {"weights": jax.random.normal(jax.random.key(0), (9999,))}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
        with pytest.raises(StorageError, match=r"cannot be written .* --resume"):
            kept.save(2, noise, FACTS)
            kept.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert restored(Checkpoints(tmp_path), tree(0.0))[1] == 1


def test_read_only_folder(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Read-only file system"):
        RunDir(tmp_path / "run").create(overwrite=False)
