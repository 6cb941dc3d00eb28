#!/usr/bin/env bash
# Everything that is proved or measured on a GPU, with vLLM in the environment that `python3` is in:
#
#   benchmarks/gpu.sh OUT [STAGE ...]
#
# Stages, all of them unless named; minutes are those of an H100 or H200, reckoned where there is a ~:
#   tests      tests/gpu                                            12
#   rounds     whole rounds of the 0.6B and the 8B shape             6
#   bench      a round beside its forward, the published algorithm and a limit: poc bench  ~14
#   timeline   what the device does in one batch of the 0.6B shape   2
#   last_layer forwards whole, pruned and fused, of the 0.6B and the 8B shape               ~8
#   float8     rounds with float8 weights, by each family of kernels: poc bench            ~10
#   numerics   the tables of docs/numerics.md                      ~35
# Logs and figures go to the directory OUT; models are made in a temporary one. A stage that
# fails does not keep the others from running; the exit status says whether one did.
set -uo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
case ${1:-} in -h | --help) usage; exit 0 ;; "" | -*) usage >&2; exit 2 ;; esac
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
stages=("$@")
[ $# -gt 0 ] || stages=(tests rounds bench timeline last_layer float8 numerics)
for stage in "${stages[@]}"; do
  case $stage in tests | rounds | bench | timeline | last_layer | float8 | numerics) ;; *)
    echo "gpu.sh: there is no stage $stage" >&2; usage >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/.."
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
failed=0

# What the worker has in production, but room for rounds only.
VLLM=(env POC_ENGINE=vllm POC_GPU_MEMORY_UTILIZATION=0.8 POC_MAX_MODEL_LEN=512)

step() { # NAME COMMAND...: run it, its output in OUT/NAME.log
  local name=$1 began=$SECONDS
  shift
  if "$@" > "$out/$name.log" 2>&1; then
    echo "$name: done in $((SECONDS - began)) s"
  else
    echo "$name: FAILED with status $? after $((SECONDS - began)) s, see $out/$name.log" >&2
    failed=1
  fi
}

model() { # NAME SHAPE [LAYERS]: a random Qwen3 of that shape
  [ -d "$models/$1" ] || python3 benchmarks/gpu_round.py --make "$models/$1" --shape "$2" ${3:+--layers "$3"}
}

tests() { step tests python3 -m pytest -m gpu tests/gpu; }

rounds() {
  local shape
  for shape in 0.6B 8B; do
    step "round-$shape" "${VLLM[@]}" python3 benchmarks/gpu_round.py --shape "$shape" --seconds 20
  done
}

float8_model() { # NAME SHAPE [LAYERS]: random weights in float8, and in bfloat16 as NAME-plain
  [ -d "$models/$1" ] || python3 benchmarks/block_fp8.py --shape "$2" ${3:+--layers "$3"} \
    --plain "$models/$1-plain" "$models/$1"
}

experts_by() { # FAMILY COMMAND...: with experts by these kernels, and all else by CUTLASS
  local family=$1
  shift
  env POC_VLLM_OPTIONS="{\"linear_backend\": \"cutlass\", \"moe_backend\": \"$family\"}" "$@"
}

bench() {
  step model-0.6B model 0.6B 0.6B
  step bench-0.6B "${VLLM[@]}" python3 -m worker.cli bench --gpu --model "$models/0.6B" \
    --seconds 20 --rounds 10 --picture "$out/bench-0.6B.svg"
  step bench-0.6B-tiles "${VLLM[@]}" python3 -m worker.cli bench --gpu --model "$models/0.6B" \
    --seconds 10 --sweep tile=16,32,64
  step bench-0.6B-artifact "${VLLM[@]}" python3 -m worker.cli bench --gpu --scheme artifact \
    --model "$models/0.6B" --seconds 12 --rounds 6
  step model-8B model 8B 8B
  local b8=("${VLLM[@]}" POC_TILE=32 POC_GPU_MEMORY_UTILIZATION=0.6 python3 -m worker.cli bench
    --gpu --model "$models/8B" --seconds 12 --rounds 6)
  step bench-8B "${b8[@]}"
  step bench-8B-artifact "${b8[@]}" --scheme artifact
  step generator python3 benchmarks/generator.py --device cuda --nonces 32
  step generator-8B python3 benchmarks/generator.py --device cuda --nonces 32 --hidden-size 4096
}

timeline() {
  step model-0.6B model 0.6B 0.6B
  step timeline "${VLLM[@]}" python3 benchmarks/timeline.py --model "$models/0.6B"
}

last_layer() {
  local shape
  for shape in 0.6B 8B; do
    step "model-$shape" model "$shape" "$shape"
    step "last-layer-$shape" "${VLLM[@]}" POC_GPU_MEMORY_UTILIZATION=0.6 \
      python3 benchmarks/last_layer.py --model "$models/$shape"
  done
  step gated-0.6B python3 benchmarks/gated.py
  step gated-8B python3 benchmarks/gated.py --hidden-size 4096 --intermediate-size 12288
}

float8() {
  local b=("${VLLM[@]}" POC_TILE=32 python3 -m worker.cli bench --seconds 6 --rounds 3 --model)
  local family
  step float8-8B float8_model float8-8B 8B 8
  step float8-8B-plain "${b[@]}" "$models/float8-8B-plain"
  for family in cutlass triton deep_gemm; do
    step "float8-8B-$family" env POC_VLLM_OPTIONS="{\"linear_backend\": \"$family\"}" \
      "${b[@]}" "$models/float8-8B"
  done
  step float8-experts float8_model float8-experts experts
  step float8-experts-plain "${b[@]}" "$models/float8-experts-plain"
  for family in triton deep_gemm; do
    step "float8-experts-$family" experts_by "$family" "${b[@]}" "$models/float8-experts"
  done
}

numerics() {
  local n=(env POC_TILE=32 python3 benchmarks/numerics.py)
  step model-0.6B model 0.6B 0.6B
  step model-half model half 0.6B 14
  step numerics-vllm "${VLLM[@]}" "${n[@]}" compute "$out/vllm.json" \
    --engine vllm --model "$models/0.6B" --nonces 8192 --batches 32,1,7,33
  step numerics-transformers "${n[@]}" compute "$out/transformers.json" \
    --engine transformers --model "$models/0.6B" --nonces 4096
  step numerics-float32 "${n[@]}" compute "$out/float32.json" \
    --engine transformers --dtype float32 --model "$models/0.6B" --nonces 2048
  step numerics-half "${n[@]}" compute "$out/half.json" \
    --engine transformers --model "$models/half" --nonces 2048
  step numerics-fp8 "${VLLM[@]}" POC_QUANTIZATION=fp8 "${n[@]}" compute "$out/fp8.json" \
    --engine vllm --model "$models/0.6B" --nonces 8192
  step numerics-invariant "${VLLM[@]}" VLLM_BATCH_INVARIANT=1 "${n[@]}" compute \
    "$out/invariant.json" --engine vllm --model "$models/0.6B" --nonces 8192 --batches 32,7
  report numerics vllm transformers float32 half fp8 invariant

  local a=("${n[@]}" compute --scheme artifact --engine transformers --nonces)
  step artifact "${a[@]}" 512 --model "$models/0.6B" "$out/artifact.json"
  step artifact-tiles "${a[@]}" 512 --model "$models/0.6B" --tile 8 "$out/artifact-tiles.json"
  local dtype scheme family
  for dtype in float32 float16; do
    step "artifact-$dtype" "${a[@]}" 256 --model "$models/0.6B" --dtype $dtype \
      "$out/artifact-$dtype.json"
  done
  step artifact-half "${a[@]}" 256 --model "$models/half" "$out/artifact-half.json"
  report artifacts artifact artifact-tiles artifact-float32 artifact-float16 artifact-half

  step float8-0.6B float8_model float8-0.6B 0.6B
  step float8-experts float8_model float8-experts experts
  for scheme in distance artifact; do
    local v=("${VLLM[@]}" POC_TILE=32 "${n[@]}" compute --scheme $scheme --engine vllm
      --nonces 2048 --batches 32,7)
    step "$scheme-plain" "${v[@]}" --model "$models/float8-0.6B-plain" "$out/$scheme-plain.json"
    for family in cutlass triton deep_gemm; do
      step "$scheme-$family" env POC_VLLM_OPTIONS="{\"linear_backend\": \"$family\"}" \
        "${v[@]}" --model "$models/float8-0.6B" "$out/$scheme-$family.json"
    done
    report "$scheme-bfloat16" $scheme-{plain,cutlass,triton,deep_gemm}
    report "$scheme-kernels" $scheme-{cutlass,triton,deep_gemm}

    step "experts-$scheme-plain" "${v[@]}" --model "$models/float8-experts-plain" \
      "$out/experts-$scheme-plain.json"
    for family in triton deep_gemm; do
      step "experts-$scheme-$family" experts_by "$family" \
        "${v[@]}" --model "$models/float8-experts" "$out/experts-$scheme-$family.json"
    done
    report "experts-$scheme-bfloat16" experts-$scheme-{plain,triton,deep_gemm}
    report "experts-$scheme-kernels" experts-$scheme-{triton,deep_gemm}
  done
}

report() { # NAME FILE...: compare those there are of OUT/FILE.json with the first
  local name=$1 each files=()
  shift
  for each in "$@"; do
    [ ! -f "$out/$each.json" ] || files+=("$out/$each.json")
  done
  step "$name" python3 benchmarks/numerics.py report "${files[@]}"
  cat "$out/$name.log"
}

for stage in "${stages[@]}"; do $stage; done
exit $failed
