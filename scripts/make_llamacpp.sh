#!/usr/bin/env bash
# Makes an environment with llama.cpp's quantizer and converter: the witness of the type mixtures, a peer in benchmarks.
#
#   scripts/make_llamacpp.sh [DIR]      DIR defaults to .venv-peers-llama-quantize; PYTHON=python3.12 chooses another
#
# llama-cpp-python is published as source alone, so this compiles llama.cpp: a C++ compiler and ten minutes on two cores.
# DIR/llama.cpp holds the converter, which the source brings and the package does not: convert_hf_to_gguf.py, its
# modules and its gguf-py. It runs in quantkit's own .venv, which has the torch and transformers that it needs.
# Not part of `make peers`: xllamacpp, the wheel used there, does not contain the quantizer.
set -euo pipefail

dir=${1:-.venv-peers-llama-quantize}
python=${PYTHON:-python3}
wanted=llama-cpp-python==0.3.36

if [[ -f $dir/peers.txt && $(<"$dir/peers.txt") == "$wanted" ]]; then
  echo "$dir is up to date"
  exit 0
fi

rm -rf "$dir"
"$python" -m venv "$dir"
echo "*" >"$dir/.gitignore"
pip() { "$dir/bin/python" -m pip "$@" --disable-pip-version-check; }
pip download -qq --no-deps --no-binary :all: --dest "$dir/source" "$wanted"
archive=$(echo "$dir"/source/llama_cpp_python-*.tar.gz)
echo "compiling $wanted: this takes minutes"
pip install -qq "$archive"
"$dir/bin/python" -c 'import llama_cpp; llama_cpp.llama_model_quantize_default_params()'

mkdir "$dir/llama.cpp"
tar -xzf "$archive" -C "$dir/llama.cpp" --strip-components=3 --wildcards \
  '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
rm -r "$dir/source"
echo "$wanted" >"$dir/peers.txt"
echo "$dir is ready"
