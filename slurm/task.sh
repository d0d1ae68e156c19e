# What an array task does with its row, for array.sbatch and multinode.sbatch. Sourced with their two arguments: the
# repository, and the folder of the submission. Expects SLURM's variables of a task.
# shellcheck shell=bash disable=SC2034
submission=$2
EXIT_REQUEUE=85
# Both names: one task of every array has the array's own number, which means all of them.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restarts=${SLURM_RESTART_COUNT:-0}

mapfile -d '' -t words < "$submission/$SLURM_ARRAY_TASK_ID"
# Words of slurm/submit.py: the row's name, the file of what happens to it, its processes a node, the file that is there
# once it is done, then its overrides.
events=${words[1]} processes=${words[2]} result=${words[3]} arguments=("${words[@]:4}")
# Where the processes of torchrun, which has exit codes of its own, say that they saved and left with 85.
saved=$submission/$SLURM_ARRAY_TASK_ID.saved
# SLURM asked this script to end: cancelled, out of time, or requeued by someone else. What follows is SLURM's business.
ended=
# SLURM warned it; pid: of the srun of its run, which that is for.
warned=
pid=
recorded=

# record WHAT [WHY]: one line to the row's events.
record() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' \
    "$(date +%s)" "$1" "$job" "${SLURM_JOB_NODELIST:-}" "$restarts" "${2:-}" >> "$events"
  recorded=$1
}

# However this script ends, the row's events say so.
last_word() {
  local code=$?
  [[ $recorded && $recorded != started ]] || record failed "the task ended with exit code $code"
}
trap last_word EXIT
trap '[[ $warned ]] || { warned=yes; [[ ! $pid ]] || warn & }' USR1
# At once, since it may be killed before the run has left.
trap '[[ $ended ]] || { ended=yes; record ended; }' TERM

echo "slurm: task $job, start $((restarts + 1)), on ${SLURM_JOB_NODELIST:-?}"
# shellcheck source=common.sh
source "$1/slurm/common.sh"
arguments+=("lock_wait=$OGPSA_LOCK_SECONDS")
cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
# srun does not take it from sbatch. Without it, a step has all of the job's cores.
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

fail() {
  record failed "$1"
  echo "error: $1" >&2
  exit 1
}

# Until SLURM ends or requeues the job: one that left by itself would not be requeued.
leave_it_to_slurm() {
  sleep 120
  exit "$1"
}

# requeue WHY: have SLURM start this task anew.
requeue() {
  local facts now pause
  facts=$(scontrol --oneliner show job "$job")
  # A task that SLURM lost sight of must not requeue the one that took its place.
  now=$(sed -n 's/.* Restarts=\([0-9]*\) .*/\1/p' <<< "$facts")
  if [[ ${now:-$restarts} != "$restarts" ]]; then
    record ended "SLURM had started it anew"
    exit "$EXIT_REQUEUE"
  fi
  # Nor one that was cancelled meanwhile.
  if [[ $ended || $facts == *" JobState=CANCELLED "* ]]; then
    [[ $ended ]] || record ended
    leave_it_to_slurm "$EXIT_REQUEUE"
  fi
  if ((restarts >= OGPSA_MOST_REQUEUES)); then
    fail "requeued $restarts times already, the most that OGPSA_MOST_REQUEUES allows"
  fi
  record requeued "$1"
  # The TERM that follows is of this requeue.
  ended=yes
  # The controller may be away for a moment.
  for pause in 2 10 30 60; do
    if scontrol requeue "$job"; then
      leave_it_to_slurm "$EXIT_REQUEUE"
    fi
    sleep "$pause"
  done
  fail "$1, but scontrol requeue refused; submit the sweep again to go on"
}

# The warning, from SLURM or from whoever typed scancel --batch --signal=USR1, goes to the run. Again and again, ever more
# slowly: one that came before the run listens would be lost.
warn() {
  local pause=2
  while kill -0 "$pid" 2> /dev/null; do
    scancel --signal=USR1 "$job.0" 2> /dev/null || true
    sleep "$pause"
    ((pause < 20)) && pause=$((pause + 2))
  done
}

# run COMMAND...: start the row by srun, a task a node, wait for it, and do what its exit code asks for.
run() {
  local code=0 again=0
  if ((restarts > OGPSA_MOST_REQUEUES)); then
    fail "requeued $restarts times, more than OGPSA_MOST_REQUEUES allows"
  fi
  rm -f "$saved"
  record started
  if [[ $ended ]]; then
    record ended
    leave_it_to_slurm "$EXIT_REQUEUE"
  elif [[ $warned ]]; then
    requeue "warned before the run began"
  fi
  # Nothing but the run heeds these signals, which reach every process of a step: they would end torchrun.
  # Whatever sbatch exported, the step gets what env.sh has set up.
  srun --export=ALL --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    bash -c 'trap "" USR1 TERM; exec "$@"' _ "$@" &
  pid=$!
  # It may have come just now.
  [[ ! $warned ]] || warn &
  while kill -0 "$pid" 2> /dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  # A signal ends wait as well; what it left unread is read now, and 127 says that nothing was.
  wait "$pid" || again=$?
  ((again == 127)) || code=$again
  if ((code)) && [[ -e $saved ]]; then
    code=$EXIT_REQUEUE
  fi
  rm -f "$saved"
  if ((code == 0)) && [[ ! -e $result ]]; then
    # srun's word for a node that SLURM has lost.
    [[ $ended ]] || record ended "srun ended with 0, but there is no result"
    leave_it_to_slurm 1
  elif ((code == 0)); then
    record finished
    timeout 600 "$python" -m slurm.front "$submission/../../.." ||
      echo "the sweep's front was not refreshed; the row is done" >&2
  elif [[ $ended ]]; then
    leave_it_to_slurm "$code"
  elif ((code == EXIT_REQUEUE || code == 128 + 15)); then
    # 143: SIGTERM came to the step alone, and before anything of it listened.
    requeue "saved and left"
  else
    record failed "exit code $code"
  fi
  exit "$code"
}
