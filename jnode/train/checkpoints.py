"""Checkpoints, written atomically while training continues, and read by name.

Orbax writes each into a folder under another name and renames it at the end; nothing
in it is pickled, and reading it runs no code.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jnode._files import absolute, move, remove
from jnode.models import ODEClassifier
from jnode.train.run_dir import RunDir, explained
from jnode.train.step import empty_metrics, init_state

KEEP = 2  # the newest, and one more in case that is damaged


def load_best(run_dir: str | os.PathLike) -> ODEClassifier:
    """The model of a run's checkpoint with the lowest training loss, constrained.

    The run need not have ended.

    **Raises:** `FileNotFoundError` for a folder that is not a run or has no checkpoint
    of a whole epoch, `ValueError` for a damaged one.
    """
    run = RunDir(run_dir)
    config, facts = run.read_config()
    sizes = {"image_shape": facts["image_shape"], "classes": facts["classes"]}
    checkpoints = Checkpoints(run.path)
    step = checkpoints.best()
    if step is None:
        raise FileNotFoundError(
            f"{run.path} has no checkpoint of a whole epoch: go on training it with "
            "scripts/train.py --resume."
        )
    like = init_state(config, **sizes, total_steps=1), empty_metrics(config.loss)
    found = checkpoints.restore(like, {}, step)
    assert found is not None
    return found[0][0].model


class CheckpointMismatch(ValueError):
    """The checkpoint has another architecture, seed or kind of random numbers."""


class Checkpoints:
    """The checkpoints in a run's folder: the newest two, and the best.

    The best is the one with the lowest `loss`, among those saved with a loss.

    **Arguments:** the run's folder; whether to write there, which also removes
    incomplete checkpoints of a killed process.
    """

    def __init__(self, run_dir: Path, *, writing: bool = False):
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints"
        self._writing = writing
        self._open: Any = None

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        with self._manager() as manager:
            return sorted(manager.all_steps()) if manager is not None else []

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step_{step:09d}"

    def best(self) -> int | None:
        """The step of the checkpoint with the lowest loss, if there is one."""
        with self._manager() as manager:
            return manager.best_step() if manager is not None else None

    def save(
        self, step: int, tree: PyTree, facts: dict[str, Any], loss: float | None = None
    ) -> Path:
        """Copies the arrays of a tree, and writes them in the background.

        **Arguments:** the step; the tree; facts for JSON, which `restore` compares;
        a loss by which the best checkpoint is kept.

        **Raises:** `StorageError` if this or the last checkpoint could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self.steps():
            return self.path(step)
        # Copied, since the next step donates its buffers.
        arrays = {k: jnp.copy(x) for k, x in _arrays(tree).items()}
        facts = facts | {"arrays": {k: _describe(x) for k, x in arrays.items()}}
        with self._manager() as manager, explained(self.run_dir, writing=True):
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    facts=ocp.args.JsonSave(facts),
                ),
                metrics=None if loss is None else {"loss": loss},
            )
        return self.path(step)

    def check(self) -> None:
        """Raises `StorageError` if a checkpoint failed while it was being written."""
        if self._open is not None:
            with explained(self.run_dir, writing=True):
                self._open.check_for_errors()

    def close(self) -> None:
        """Waits until everything is written; raises `StorageError` if it was not."""
        if self._open is not None:
            manager, self._open = self._open, None
            with explained(self.run_dir, writing=self._writing):
                manager.wait_until_finished()
                manager.close()

    def restore(
        self, like: PyTree, facts: dict[str, Any], step: int | None = None
    ) -> tuple[PyTree, int] | None:
        """The newest undamaged checkpoint, with the shardings of `like`.

        Damaged ones are reported, and moved to `damaged/` in the run's folder.

        Floating-point arrays keep the dtype of the checkpoint, except that float64 is
        rounded to float32 without `jax_enable_x64`.

        **Arguments:** a tree of the same structure, on the devices of the result; the
        facts that must be equal; a step, by default the newest.

        **Returns:** the tree and its step, or `None` if there is no checkpoint.

        **Raises:** `CheckpointMismatch`; `ValueError` if all checkpoints are damaged.
        """
        steps = self.steps() if step is None else [step]
        if not steps:
            return None
        for number in reversed(steps):
            try:
                return self._read(number, like, facts), number
            except CheckpointMismatch:
                raise
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
            if len(reason) > 80:  # TensorStore's long message, which begins with a code
                reason = reason.split(":")[0]
            print(f"{self.path(number)} is damaged ({reason}).")
            # The manager's state is unknown after a failure, so the next read uses a
            # new one.
            self.close()
            if step is None:
                self._set_aside(number)
                print("Falling back to the checkpoint before.")
        raise ValueError(
            f"{self.run_dir} has no checkpoint that can be read: all of them are "
            "damaged; start anew with --overwrite."
        )

    def _read(self, step, like, facts):
        import orbax.checkpoint as ocp

        names = _arrays(like)
        with self._manager() as manager:
            metadata = manager.restore(
                step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
            )["facts"]
            self._compare(step, names, metadata, facts)
            abstract = {
                k: jax.ShapeDtypeStruct(
                    x.shape,
                    jax.dtypes.canonicalize_dtype(metadata["arrays"][k]["dtype"]),
                    sharding=x.sharding,
                )
                for k, x in names.items()
            }
            arrays = manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
        for name, x in arrays.items():
            here, there = _describe(x), metadata["arrays"][name]
            sums = {here["crc32"], there["crc32"]}
            # None for arrays sharded over devices, here or there. Rounded ones have no
            # sum.
            known = None not in sums and here["dtype"] == there["dtype"]
            if known and len(sums) > 1:
                raise ValueError(f"{name} is not what was written")
        dynamic, static = eqx.partition(like, eqx.is_array)
        leaves = [arrays[k] for k in names]
        dynamic = jax.tree.unflatten(jax.tree.structure(dynamic), leaves)
        return eqx.combine(dynamic, static)

    def _compare(self, step, names, metadata, facts):
        there = {k: (v["shape"], v["dtype"]) for k, v in metadata["arrays"].items()}
        here = {k: (list(x.shape), str(x.dtype)) for k, x in names.items()}
        for name in sorted(there.keys() | here.keys()):
            if _kind(there.get(name)) != _kind(here.get(name)):
                a, b = (_say(x.get(name)) for x in (there, here))
                raise CheckpointMismatch(
                    f"{self.path(step)} is of another architecture: {name} is {a} "
                    f"there and {b} here. It is left as it is; resume with the "
                    "configuration that wrote it, or choose another folder."
                )
        for name, value in facts.items():
            if metadata.get(name) != value:
                raise CheckpointMismatch(
                    f"{self.path(step)} has {name} {metadata.get(name)}, this run "
                    f"has {value}, and would continue differently. It is left as it is."
                )

    def _set_aside(self, step):
        target = self.run_dir / "damaged" / self.path(step).name
        remove(target)
        move(self.path(step), target)

    @contextmanager
    def _manager(self) -> Iterator[Any]:
        """Orbax's manager, or `None` if there is nothing to read. A writing manager
        stays open until `close`."""
        if self._open is None and (self._writing or self.folder.is_dir()):
            import orbax.checkpoint as ocp
            from orbax.checkpoint import checkpoint_managers as managers

            keep = managers.AnyPreservationPolicy(
                [
                    managers.LatestN(KEEP),
                    managers.BestN(
                        get_metric_fn=_loss,
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_loss,
                best_mode="min",
                step_prefix="step",
                step_format_fixed_length=9,
                create=self._writing,
                cleanup_tmp_directories=self._writing,
            )
            with explained(self.run_dir, writing=self._writing):
                self._open = ocp.CheckpointManager(
                    absolute(self.folder), options=options
                )
        try:
            yield self._open
        finally:
            if not self._writing:
                self.close()


def _loss(metrics):
    return metrics["loss"]


def _arrays(tree: PyTree) -> dict[str, jax.Array]:
    """The arrays of a tree by their paths in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path).lstrip("."): x for path, x in leaves}


def _describe(x: jax.Array) -> dict[str, Any]:
    whole = x.addressable_data(0) if x.is_fully_replicated else None
    crc = None if whole is None else zlib.crc32(np.asarray(whole).tobytes())
    return {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": crc}


def _kind(description):
    """What must agree: everything but the precision of floating-point arrays."""
    if description is None:
        return None
    shape, dtype = description
    floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    return tuple(shape), "floating" if floating else dtype


def _say(description) -> str:
    return "absent" if description is None else "{1}{0}".format(*description)
