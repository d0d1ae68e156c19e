#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
usage: slurm/status.sh SWEEP [--failed]

A table of SWEEP's rows: state, step of the stage, safety and utility, time spent, requeues, node, last error. It comes
from the run directories and from squeue; sacct is not needed. Type it where submit.sh was typed.

  --failed   only rows that failed, stopped or were cancelled, with the logs of their last tasks
EOF
}

needs=1
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$python" -m slurm.status "$@"
