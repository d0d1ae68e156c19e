# What an array task does with its row, for array.sbatch and multinode.sbatch. Sourced with two arguments: the
# repository, and the folder of the submission. Expects SLURM's variables of a task.
# shellcheck shell=bash disable=SC2034
submission=$2
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$1/slurm/common.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

mapfile -d '' -t words < "$submission/$SLURM_ARRAY_TASK_ID"
# Words of slurm/submit.py: the row's name, the file of what happens to it, its processes a node, then its overrides.
name=${words[0]} events=${words[1]} processes=${words[2]}
arguments=("${words[@]:3}" "lock_wait=$OGPSA_LOCK_SECONDS")
restarts=${SLURM_RESTART_COUNT:-0}
# Where the processes of torchrun, which has exit codes of its own, say that they saved and left with 85.
saved=$submission/$SLURM_ARRAY_TASK_ID.saved
EXIT_REQUEUE=85
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# record WHAT [WHY]: one line to the row's events, whole or not at all.
record() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' \
    "$(date +%s)" "$1" "$job" "${SLURM_JOB_NODELIST:-}" "$restarts" "${2:-}" >> "$events"
}

fail() {
  record failed "$1"
  echo "error: $1" >&2
  exit 1
}

# The state in SLURM's words.
state() {
  scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p' | head -n 1
}

requeue() {
  # Someone cancelled it: it stays cancelled.
  if [[ $(state) == CANCELLED ]]; then
    record cancelled
    exit "$EXIT_REQUEUE"
  fi
  if ((restarts >= OGPSA_MOST_REQUEUES)); then
    fail "requeued $restarts times already, the most that OGPSA_MOST_REQUEUES allows"
  fi
  record requeued "saved and left"
  scontrol requeue "$SLURM_JOB_ID" || fail "saved, but scontrol requeue refused; submit the sweep again to go on"
  # SLURM ends this script.
  sleep 60
}

# The warning, from SLURM or from whoever typed scancel --batch --signal=USR1, goes to the run. Again and again: one that
# came before the run listens would be lost.
warn() {
  while kill -0 "$pid" 2> /dev/null; do
    scancel --signal=USR1 "$SLURM_JOB_ID.0" 2> /dev/null || true
    sleep 2
  done
}

# run COMMAND...: start the row by srun, wait for it, and do what its exit code asks for.
run() {
  local code=0 again=0 warned=
  if ((restarts > OGPSA_MOST_REQUEUES)); then
    fail "requeued $restarts times, more than OGPSA_MOST_REQUEUES allows"
  fi
  record started
  # Neither ends this script, which has to say how the row ended; srun and the run have their own.
  trap '[[ $warned ]] || { warned=yes; warn & }' USR1
  trap ':' TERM
  # Nothing but the run heeds the warning: it would end torchrun.
  srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec "$@"' _ "$@" &
  pid=$!
  while kill -0 "$pid" 2> /dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  # A signal ends wait as well; what it left unread is read now, and 127 says that nothing was.
  wait "$pid" || again=$?
  ((again == 127)) || code=$again
  if [[ -e $saved ]]; then
    rm -f "$saved"
    code=$EXIT_REQUEUE
  fi
  case $code in
    0)
      record finished
      "$python" -m slurm.front "$submission/../../.." || echo "the sweep's front was not refreshed; the row is done" >&2
      ;;
    "$EXIT_REQUEUE") requeue ;;
    *) record failed "exit code $code" ;;
  esac
  exit "$code"
}
