#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
usage: slurm/submit.sh SWEEP [--test-only] [sbatch options]

Queue the rows of SWEEP, a file of one run's Hydra overrides a line, as a SLURM array. Every row is validated before
anything is queued: composition, values, paths, benchmarks, and whether its model fits. Rows that are done, queued or
running, for another sweep too, are left out, so the same command resumes after a failure or after rows were appended.

  --test-only      validate, and say what would be queued; needs no SLURM
  sbatch options   as --partition=gpu --time=8:00:00; they win over SBATCH_OPTIONS in slurm/env.sh.
                   --nodes=2 or more: every row runs on that many nodes (slurm/multinode.sbatch)

Runs go to outputs/SWEEP below the folder this is typed in, unless a row says hydra.run.dir=DIR. See them with
slurm/status.sh SWEEP. Settings of the cluster: slurm/env.sh (slurm/env.sh.example).
EOF
}

needs=1
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export OGPSA_PROCESSES OGPSA_GPU_MEMORY_GB OGPSA_ROWS_AT_ONCE OGPSA_WARNING_SECONDS OGPSA_MOST_REQUEUES
export OGPSA_LOCK_SECONDS
sweep=$1
shift
exec "$python" -m slurm.submit "$sweep" ${SBATCH_OPTIONS[@]+"${SBATCH_OPTIONS[@]}"} "$@"
