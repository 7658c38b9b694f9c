#!/bin/bash
# The same line on every machine, for clusters without a scheduler. HEAD is the first machine's name or address.
#
#   HEAD=node0 NODES=2 clusters/torchrun.sh /shared/runs/my.yaml --out /shared/runs/my
#
# A machine that is lost and comes back joins again by the same line; the others wait for it, and all go on from the
# newest checkpoint. To go on with fewer, say NODES=1:2 (at least one, at most two).
set -u
: "${HEAD:?set HEAD to the first machine, such as node0}"
: "${NODES:?set NODES to the number of machines}"
if [ $# -lt 1 ]; then
  echo "usage: HEAD=node0 NODES=2 $0 CONFIG [--setting value ...]" >&2
  exit 2
fi

# without it, ranks that are started again may meet the store of the round before, and wait for ever
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

exec torchrun \
  --nnodes "$NODES" --nproc-per-node "${RANKS:-gpu}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29400}" --rdzv-id "${RUN_ID:-plait}" \
  --max-restarts "${RESTARTS:-20}" \
  -m plait train "$@"
