#!/bin/bash
# Trains on several machines under Slurm; goes on by itself after the time limit or a preemption.
#
#   sbatch --nodes 4 clusters/slurm.sh /shared/runs/my.yaml --out /shared/runs/my
#
# Set the partition, the account and the environment for your cluster. One task a GPU: srun starts the ranks itself.
#SBATCH --job-name=plait
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=plait-%j.log
# every rank gets SIGTERM 300 seconds before the time limit: it finishes its step, saves and ends with code 130
#SBATCH --signal=TERM@300

set -u
if [ $# -lt 1 ]; then
  echo "usage: sbatch $0 CONFIG [--setting value ...]" >&2
  exit 2
fi

# the environment on every machine, on a filesystem that all of them see
source "${PLAIT_VENV:-.venv}/bin/activate"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}

srun --kill-on-bad-exit=1 python -m plait train "$@"
code=$?

# stopped and saved: the same job again, which goes on from there
if [ $code -eq 130 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
