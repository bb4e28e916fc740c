#!/usr/bin/env bash
# Makes the environments of the peers: other people's software, which our tests and benchmarks are held against.
#
#   scripts/make_peers.sh [DIR]      DIR defaults to .venv-peers; PYTHON=python3.12 chooses another interpreter
#
# DIR holds GPTQ software. DIR-tokenizers holds a tokenizers that reads the files which later ones refuse.
# DIR-llama-cpp holds llama.cpp as a wheel of xllamacpp; llama-cpp-python would compile for minutes.
# An environment of its own because gptqmodel asks for a torch that quantkit does not need, and because a witness should
# share as little as possible with what it witnesses. Does nothing when DIR already holds these versions.
set -euo pipefail

dir=${1:-.venv-peers}
python=${PYTHON:-python3}

torch=torch==2.13.0
# Installed with what they depend on. From Defuser on: what gptqmodel and auto-round import.
with_dependencies=(
  transformers==5.23.0 accelerate==1.15.0 optimum==2.3.0
  Defuser==0.0.28 Device-SMI==0.5.7 LogBar==0.4.15 PyPcre==0.6.4 TokeNicer==0.0.14
  datasets==5.2.0 ninja==1.13.2 pillow==13.0.0 py-cpuinfo==9.0.0 requests==2.34.2 threadpoolctl==3.8.0
)
# Installed alone: gptqmodel 7.7.0 declares torch >= 2.14.1, which would bring CUDA wheels, but runs on 2.13 on a CPU.
alone=(gptqmodel==7.7.0 torchao==0.18.0 auto-round==0.16.1)

# Installed alone, without what it depends on: make_small DIR MODULE REQUIREMENT ...
make_small() {
  local env=$1 module=$2
  shift 2
  if [[ -f $env/peers.txt && $(<"$env/peers.txt") == "$*" ]]; then
    echo "$env is up to date"
    return
  fi
  rm -rf "$env"
  "$python" -m venv "$env"
  echo "*" >"$env/.gitignore"
  "$env/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: "$@"
  "$env/bin/python" -c "import $module"
  echo "$*" >"$env/peers.txt"
  echo "$env is ready"
}

make_small "$dir-tokenizers" tokenizers tokenizers==0.15.2  # the last one before prepend_scheme had to agree
make_small "$dir-llama-cpp" xllamacpp xllamacpp==2026.10.11549 numpy==2.4.6

wanted=$("$python" --version; printf '%s\n' "$torch" "${with_dependencies[@]}" "${alone[@]}")
stamp=$dir/peers.txt
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  echo "$dir is up to date"
  exit 0
fi

fail() { echo "make_peers: $*" >&2; exit 1; }

# --no-compile: of 13,000 files a third is ever imported; the check at the end compiles those.
install() { "$dir/bin/python" -m pip install -qq --no-compile --no-warn-conflicts --disable-pip-version-check "$@"; }

cuda_packages() { (cd "$dir"/lib/python*/site-packages && compgen -G '*.dist-info' | grep -iE '^(nvidia|cuda|triton)' || true); }

rm -rf "$dir"
"$python" -m venv "$dir"
echo "*" >"$dir/.gitignore"
install pip==26.3  # resolves and unpacks in half the time of the one that venv brings
install "$torch"
[[ -z $(cuda_packages) ]] ||
  fail "pip chose a CUDA build of $torch. Point pip at PyTorch's CPU packages (PIP_EXTRA_INDEX_URL) and run this again."
install "$torch" "${with_dependencies[@]}"
install --no-deps "${alone[@]}"
[[ -z $(cuda_packages) ]] || fail "CUDA packages came along: $(cuda_packages | xargs)"

env -u PYTHONDONTWRITEBYTECODE GPTQMODEL_CPU_WORKERS=2 TORCH_COMPILE_DISABLE=1 HF_HUB_OFFLINE=1 \
  "$dir/bin/python" -c '
import auto_round, gptqmodel, optimum.gptq, torch._inductor.compile_fx, transformers.models.llama.modeling_llama
' >"$dir/check.log" 2>&1 || { tail -n 20 "$dir/check.log" >&2; fail "the peers do not import: see $dir/check.log"; }

printf '%s\n' "$wanted" >"$stamp"
echo "$dir is ready"
