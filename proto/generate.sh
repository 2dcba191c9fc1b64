#!/bin/sh
# Regenerates fs3/pb from proto/. With --check: fails if what is committed differs.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    proto/fs3/pb/*.proto proto/fs3/pb/etcd/*.proto
for package in "$out/fs3/pb" "$out/fs3/pb/etcd"; do
    printf '"""Generated from proto/ by proto/generate.sh; do not edit."""\n' >"$package/__init__.py"
done
# Messages without services need no _grpc module.
rm -f "$out"/fs3/pb/common_pb2_grpc.py "$out"/fs3/pb/storage_pb2_grpc.py "$out"/fs3/pb/etcd/etcd_pb2_grpc.py
if [ "${1:-}" = "--check" ]; then
    diff -r -x __pycache__ "$out/fs3/pb" fs3/pb || { echo "fs3/pb is stale: run proto/generate.sh and commit" >&2; exit 1; }
else
    rm -rf fs3/pb && cp -r "$out/fs3/pb" fs3/pb
fi
