#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
usage: slurm/sync_wandb.sh [DIR] [wandb sync options]

Upload every W&B run that was kept offline below DIR (outputs), one at a time: a run that cannot be read stops no other.
What has been uploaded is remembered beside it and left out the next time. Needs WANDB_API_KEY, or a stored login, and a network.
EOF
}

needs=0
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
directory=${1:-outputs}
shift || true
if [[ ! -d $directory ]]; then
  echo "error: $directory: no such folder" >&2
  exit 2
fi
if [[ -z ${WANDB_API_KEY:-} && ! -f ${NETRC:-$HOME/.netrc} ]]; then
  echo "error: WANDB_API_KEY: not set, and no login is stored; wandb sync needs one of them" >&2
  exit 2
fi

mapfile -d '' -t runs < <(find "$directory" -type d -name 'offline-run-*' -print0 | sort -z)
# wandb sync also ends with 0 for a run that it cannot read; what it has read to the end it marks.
complete() {
  local file
  for file in "$1"/*.wandb; do
    [[ -f $file.synced && ! $file -nt $file.synced ]] || return 1
  done
}

uploaded=0 before=0 failed=()
for run in "${runs[@]}"; do
  if complete "$run"; then
    before=$((before + 1))
  elif "$python" -m wandb sync "$@" "$run" && complete "$run"; then
    uploaded=$((uploaded + 1))
  else
    failed+=("$run")
  fi
done
echo "${#runs[@]} runs: $uploaded uploaded, $before uploaded before, ${#failed[@]} failed"
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
