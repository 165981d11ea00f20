"""Contestants of benchmarks/speed.py that run in a process of their own.

A worker imports everything under its own environment, keeps what it compiled, and runs
one operation when it is asked to, so that it takes its turn like all others.
"""

import json
import os
import select
import subprocess
import sys
import time

LIMIT = 300  # seconds that compiling and the first run may take


class Worker:
    """A process that runs one contestant's operations."""

    def __init__(self, sizes, group: str, name: str, env: dict[str, str]):
        self.contestant = [*sizes], group, name
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | env,
            text=True,
        )

    def time(self, operation):
        """Wall and processor seconds of one run.

        **Raises:** `RuntimeError` if it failed, or took more than `LIMIT` seconds.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        print(
            json.dumps([*self.contestant, operation]),
            file=self.process.stdin,
            flush=True,
        )
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.process.kill()
            raise RuntimeError(f"not compiled and run within {LIMIT} seconds")
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": "its process died"}
        if "error" in found:
            raise RuntimeError(found["error"])
        return found["seconds"], found["cpu"]

    def close(self):
        self.process.kill()
        self.process.wait()


def timed(run):
    """Wall and processor seconds of a call, the latter of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def serve():
    """Answers requests, a line each, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    import torch
    from speed_contestants import Sizes, contestants

    from jnode._process import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    made = {}
    for line in sys.stdin:
        sizes, group, name, operation = json.loads(line)
        try:
            if not made:
                made.update(contestants(Sizes(*sizes))[group][name]())
            seconds, cpu = timed(made[operation])
            answer = {"seconds": seconds, "cpu": cpu}
        except Exception as error:  # whatever a peer raises is a result
            text = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {text[0][:100]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
