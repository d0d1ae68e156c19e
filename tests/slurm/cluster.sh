#!/usr/bin/env bash
# A SLURM of two nodes on this machine, for the tests: no accounting, no cgroups, no systemd. Needs root, slurm-wlm
# and munge. The daemons are found again, and stopped, by the pid files in DIR.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: tests/slurm/cluster.sh start DIR        start the cluster with its state in DIR, and wait until it is idle
       tests/slurm/cluster.sh stop DIR         stop it
       tests/slurm/cluster.sh controller DIR   start its controller again
       tests/slurm/cluster.sh node DIR NAME    start the daemon of one node again

Clients find it by SLURM_CONF=DIR/slurm.conf. OGPSA_TEST_PORT is the first of its three ports (16817).
EOF
}

configure() {
  local host port cores
  host=$(hostname -s)
  port=${OGPSA_TEST_PORT:-16817}
  cores=2
  mkdir -p "$directory/state" "$directory/log" "$directory/run"
  chmod 755 "$directory/run"
  (umask 077 && head -c 1024 /dev/urandom > "$directory/munge.key")
  # cred_expire: a requeued job is held until its old credential is out. SlurmdTimeout: how soon a dead node is noticed.
  cat > "$directory/slurm.conf" <<EOF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/run/munge.socket,cred_expire=5
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool.%n
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmdPidFile=$directory/run/slurmd.%n.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_setup_env_fail
KillWait=5
MinJobAge=3600
ReturnToService=2
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cores RealMemory=2000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
EOF
}

munge() {
  munged --key-file="$directory/munge.key" --socket="$directory/run/munge.socket" --force \
    --pid-file="$directory/run/munged.pid" --log-file="$directory/log/munged.log" --seed-file="$directory/munge.seed"
}

# await SECONDS WHAT COMMAND...
await() {
  local left=$(($1 * 5)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    if ((--left == 0)); then
      echo "cluster.sh: $what did not come about; see $directory/log" >&2
      exit 1
    fi
    sleep 0.2
  done
}

idle() {
  [[ $(sinfo --noheader --format=%T | sort -u) == idle ]]
}

stop_by() {
  local file=$1 pid
  [[ -f $file ]] || return 0
  pid=$(< "$file")
  kill "$pid" 2> /dev/null || return 0
  await 20 "the end of process $pid" eval "! kill -0 $pid"
}

case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
esac
if (($# < 2)); then
  usage >&2
  exit 2
fi
mkdir -p "$2"
directory=$(cd "$2" && pwd)
export SLURM_CONF=$directory/slurm.conf
case $1 in
  start)
    configure
    munge
    slurmctld -c
    slurmd -c -N n1
    slurmd -c -N n2
    await 30 "an idle cluster" idle
    ;;
  stop)
    # Jobs would live on without their daemons.
    scancel --user=root > /dev/null 2>&1 || true
    scancel --signal=KILL --user=root > /dev/null 2>&1 || true
    for file in "$directory"/run/slurmd.*.pid "$directory"/run/slurmctld.pid "$directory"/run/munged.pid; do
      stop_by "$file"
    done
    ;;
  controller)
    slurmctld
    await 30 "an answer of the controller" scontrol ping
    ;;
  node)
    slurmd -N "$3"
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
