"""The options of scripts that run in several processes as one."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext

from jnode.sharding import distributed_context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """Which processes this one works with."""

    distributed: bool = False
    """Join the processes on several hosts (docs/distributed.md)."""

    coordinator: str | None = None
    """With --distributed, outside of TPU pods and SLURM: HOST:PORT of process 0."""

    num_processes: int | None = None
    """With --coordinator: how many processes there are."""

    process_id: int | None = None
    """With --coordinator: which of them this is, from 0."""

    def joined(self) -> AbstractContextManager[None]:
        """A block in which the processes are joined, if they shall be.

        **Raises:** `ValueError` for the address of others without `distributed`.
        """
        where = self.coordinator, self.num_processes, self.process_id
        if self.distributed:
            return distributed_context(*where)
        if any(value is not None for value in where):
            raise ValueError(
                "--coordinator, --num-processes and --process-id must be left out "
                "without --distributed: add it."
            )
        return nullcontext()
