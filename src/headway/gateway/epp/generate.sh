#!/usr/bin/env bash
# Makes `ext_proc_messages.py` and its types of `ext_proc.proto`. PYTHON needs the packages grpcio-tools 1.74.0, whose
# output every protobuf from 6.31.1 on can load, and mypy-protobuf 5.1.0:
#     PYTHON=python3 src/headway/gateway/epp/generate.sh
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="$(command -v "${PYTHON:-python3}")"
made="$(mktemp -d)"
trap 'rm -rf "$made"' EXIT
cd "$here/../../.."
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc \
    --proto_path=. --python_out="$made" --mypy_out="quiet:$made" headway/gateway/epp/ext_proc.proto
made_py="$made/headway/gateway/epp/ext_proc_pb2"
{
    echo '"""Messages of `ext_proc.proto`, made by `generate.sh`. Do not edit."""'
    sed 's/ext_proc_pb2/ext_proc_messages/' "$made_py.py"
} > "$here/ext_proc_messages.py"
cp "$made_py.pyi" "$here/ext_proc_messages.pyi"
