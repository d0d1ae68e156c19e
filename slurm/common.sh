# What all scripts of this folder begin with: --help, the repository, its Python, and env.sh with its defaults. A script
# that users type defines usage, and in needs the least number of its arguments; --help then works without any of the rest.
# shellcheck shell=bash disable=SC2034
if [[ ${needs:-} ]]; then
  for word in "$@"; do
    case $word in
      -h | --help)
        usage
        exit
        ;;
    esac
  done
  if (($# < needs)); then
    usage >&2
    exit 2
  fi
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SBATCH_OPTIONS=()
OGPSA_PROCESSES=${OGPSA_PROCESSES:-}
OGPSA_GPU_MEMORY_GB=${OGPSA_GPU_MEMORY_GB:-}
OGPSA_ROWS_AT_ONCE=${OGPSA_ROWS_AT_ONCE:-}
OGPSA_WARNING_SECONDS=${OGPSA_WARNING_SECONDS:-300}
OGPSA_MOST_REQUEUES=${OGPSA_MOST_REQUEUES:-20}
OGPSA_LOCK_SECONDS=${OGPSA_LOCK_SECONDS:-120}
OGPSA_PYTHON=${OGPSA_PYTHON:-}
environment=${OGPSA_ENVIRONMENT:-$repository/slurm/env.sh}
if [[ -f $environment ]]; then
  # Modules and conda are not written for these.
  strict=$(set +o | grep -E 'errexit|nounset')
  set +eu
  # Nor for arguments, which they would take for their own.
  given=("$@")
  set --
  # shellcheck source=/dev/null
  source "$environment"
  set -- ${given[@]+"${given[@]}"}
  eval "$strict"
fi
python=${OGPSA_PYTHON:-$repository/.venv/bin/python}
if [[ ! -x $python ]] && ! command -v "$python" > /dev/null; then
  echo "error: $python: no such program; type make install, or set OGPSA_PYTHON in slurm/env.sh" >&2
  exit 2
fi
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
