#!/usr/bin/env bash
# rclone: a tree goes up, is compared by hash, comes back; a rename; a purge.
set -euo pipefail
fail() { echo "FAILED: $*" >&2; exit 1; }
export RCLONE_CONFIG_CAIRN_TYPE=s3 RCLONE_CONFIG_CAIRN_PROVIDER=Other RCLONE_CONFIG_CAIRN_ENV_AUTH=true
export RCLONE_CONFIG_CAIRN_ENDPOINT="$CAIRN_ENDPOINT" RCLONE_CONFIG_CAIRN_REGION=us-east-1
rclone() { command rclone --retries 1 --low-level-retries 1 --contimeout 5s --timeout 60s "$@"; }

mkdir -p tree/a/b
for i in $(seq 1 200); do head -c $((i * 331)) /dev/urandom > "tree/a/b/file $i"; done
head -c 20000000 /dev/urandom > tree/large
: > tree/empty
rclone mkdir cairn:rclone
rclone copy tree cairn:rclone/up
rclone check tree cairn:rclone/up || fail "check"
rclone copy cairn:rclone/up back
diff -r tree back || fail "the tree that came back differs"
rclone moveto cairn:rclone/up/large cairn:rclone/up/renamed
rclone cat cairn:rclone/up/renamed | cmp - tree/large || fail "the renamed one differs"
[ "$(rclone lsf -R --files-only cairn:rclone | wc -l)" = 202 ] || fail "lsf"
rclone copyto --s3-upload-cutoff 5M --s3-chunk-size 5M tree/large cairn:rclone/parts
rclone cat --offset 7000000 --count 1000 cairn:rclone/parts | cmp - <(tail -c +7000001 tree/large | head -c 1000) || fail "a range"
rclone purge cairn:rclone
[ -z "$(rclone lsd cairn: | grep rclone || true)" ] || fail "purge"
echo "done"
