#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
usage: slurm/sync_wandb.sh [DIR] [wandb sync options]

Upload every W&B run that was kept offline below DIR (outputs), one at a time: a run that cannot be read stops no other.
The sessions of a run that was requeued are uploaded as one, whole and each step once.
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
if [[ -z ${WANDB_API_KEY:-} && ! -f ${NETRC:-${HOME:-}/.netrc} ]]; then
  echo "error: WANDB_API_KEY: not set, and no login is stored; wandb sync needs one of them" >&2
  exit 2
fi

# wandb sync also ends with 0 for a run that it cannot read; what it has read to the end it marks.
complete() {
  local file
  for file in "$1"/*.wandb; do
    [[ -f $file.synced && ! $file -nt $file.synced ]] || return 1
  done
}

# all_complete SESSION...
all_complete() {
  local session
  for session in "$@"; do
    complete "$session" || return 1
  done
}

# Of each run the folder to upload, the folders of its sessions, and an empty word.
listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
"$python" -m slurm.wandb_sessions "$directory" > "$listed"
export WANDB_ERROR_REPORTING=false
runs=0 uploaded=0 before=0 failed=()
while IFS= read -r -d '' run; do
  sessions=()
  while IFS= read -r -d '' session && [[ $session ]]; do
    sessions+=("$session")
  done
  runs=$((runs + 1))
  if all_complete "${sessions[@]}"; then
    before=$((before + 1))
  elif "$python" -m wandb sync "$@" "$run" < /dev/null && complete "$run"; then
    uploaded=$((uploaded + 1))
    for session in "${sessions[@]}"; do
      for file in "$session"/*.wandb; do
        touch "$file.synced"
      done
    done
  else
    failed+=("$run")
  fi
done < "$listed"
echo "$runs runs: $uploaded uploaded, $before uploaded before, ${#failed[@]} failed"
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
