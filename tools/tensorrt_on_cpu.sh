#!/usr/bin/env bash
# TensorRT for tests on a machine without a GPU (Linux x86-64): its real parser and its real builder.
#
#   tools/tensorrt_on_cpu.sh FOLDER [PYTHON]      fills FOLDER once, from PyPI
#   source FOLDER/activate                        then `import tensorrt` works
#
# The Python bindings of TensorRT are a wheel of their own; the libraries behind them are not on PyPI. Those of
# TensorRT-RTX are, inside the wheel of an ONNX Runtime provider, and they have the same interface. They build
# engines on a CPU, and can neither load nor run one: that takes a driver. A graph that passes is legal, and the
# calls are right; nothing follows about speed. Never install it beside a real TensorRT.
set -euo pipefail

folder=${1:?usage: tools/tensorrt_on_cpu.sh FOLDER [PYTHON]}
python=${2:-python3}
bindings=tensorrt-cu13-bindings==11.4.0.106
libraries=onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
stamp="$bindings $libraries $folder $("$python" -c 'import sys; print(sys.version_info[:2])')"
[[ -f $folder/stamp && $(<"$folder/stamp") == "$stamp" ]] && exit 0

rm -rf "$folder/packages" "$folder/libraries" "$folder/stamp"
mkdir -p "$folder/packages/tensorrt" "$folder/libraries"
"$python" -m pip --disable-pip-version-check install -q --no-deps --no-compile \
    --target "$folder/packages" "$bindings" "$libraries"

# The package `tensorrt` proper only hands on its bindings.
cat > "$folder/packages/tensorrt/__init__.py" <<'PYTHON'
from tensorrt_bindings import *
from tensorrt_bindings import __version__
PYTHON

# The bindings look for the libraries by TensorRT's own names.
wheel=$folder/packages/onnxruntime_ep_nv_tensorrt_rtx
builder=("$wheel"/libtensorrt_rtx.so.*)
parser=("$wheel"/libtensorrt_onnxparser_rtx.so.*)
ln -s "${builder[0]}" "$folder/libraries/libnvinfer.so.11"
ln -s "${builder[0]}" "$folder/libraries/libtensorrt_rtx.so.1"
ln -s "${parser[0]}" "$folder/libraries/libnvonnxparser.so.11"
# The plugins would ask for a driver. There are none in flatq's graphs, so an empty library does.
echo 'int initLibNvInferPlugins(void *logger, const char *name) { return logger == name || 1; }' |
    cc -shared -fPIC -Wl,-soname,libnvinfer_plugin.so.11 -o "$folder/libraries/libnvinfer_plugin.so.11" -x c -

cat > "$folder/activate" <<SHELL
export PYTHONPATH="$folder/packages\${PYTHONPATH:+:\$PYTHONPATH}"
export LD_LIBRARY_PATH="$folder/libraries:$wheel\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
SHELL
echo "$stamp" > "$folder/stamp"
