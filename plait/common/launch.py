"""What a launcher tells a process: torchrun, or srun, start many and set who they are in the environment."""

import os
import re
from dataclasses import dataclass

STOPPED = 130
"""Exit code of a run that was asked to stop, and saved."""


@dataclass(frozen=True)
class Launch:
    """A process among those that a launcher started: its rank of all, its rank on its machine, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    by: str
    """torchrun or srun."""


def launch() -> Launch | None:
    """Return what the environment says; None where one process was started alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size, local = env["RANK"], env["WORLD_SIZE"], env.get("LOCAL_RANK", "0")
        address, port, by = env.get("MASTER_ADDR", "localhost"), env.get("MASTER_PORT", "29500"), "torchrun"
    elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:  # the second is srun's alone, sbatch sets the first
        rank, size, local = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"], env["SLURM_LOCALID"]
        address = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
        port, by = env.get("MASTER_PORT") or str(20000 + int(env["SLURM_JOB_ID"]) % 20000), "srun"
    else:
        return None
    return Launch(int(rank), int(size), int(local), address, int(port), by) if int(size) > 1 else None


def is_first() -> bool:
    """Whether this process is rank 0, which alone prints and writes, or was started alone."""
    launched = launch()
    return launched is None or launched.rank == 0


def first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it, such as ``node[003-010,021],login1``."""
    match = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\])?([^,]*)", hosts)
    assert match is not None, "each of the three parts may be empty"
    prefix, number, suffix = match.groups("")
    return prefix + number + suffix
