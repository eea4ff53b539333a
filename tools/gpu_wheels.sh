#!/usr/bin/env bash
# Collects what flatq needs on a GPU machine without a network, for tools/gpu_run.sh.
#
#   tools/gpu_wheels.sh [FOLDER]     default: gpu/wheels
#
# For Linux x86-64 with Python 3.12 that has torch 2.11 for CUDA 13, onnx, onnxscript, onnxruntime, accelerate,
# safetensors, huggingface-hub 1.32 or newer, scikit-learn, scipy, pillow, rich, jinja2, pytest. 14 MB.
set -euo pipefail

folder=${1:-gpu/wheels}
packages=(
    diffusers==0.42.1 importlib_metadata==10.2.0 lazy-importer==0.1.0
    torchao==0.18.0
    pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5
    typer==0.29.2 annotated-doc==0.0.7
    setuptools==81.0.0 # builds flatq itself; torch 2.11 refuses 82
)
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${platform}_x86_64")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl # two versions of one package would stop the installation
"${PYTHON:-python3}" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]}" -d "$folder" "${packages[@]}"
du -sh "$folder"
