#!/usr/bin/env bash
# restic: two backups, one forgotten and pruned; every byte of the repository is checked; both are restored.
set -euo pipefail
. "$(dirname "$0")/documented.sh"
documented restic > documented
# What is not documented is not set.
unset AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
. ./documented
export RESTIC_PASSWORD=secret RESTIC_CACHE_DIR="$PWD/cache"
restic() { command restic --quiet "$@"; }

mkdir -p tree/deep
for i in $(seq 1 300); do head -c $((i * 331)) /dev/urandom > "tree/deep/file $i"; done
head -c 40000000 /dev/urandom > tree/large
: > tree/empty
cp -r tree first

echo "== two backups"
restic init
restic backup tree
rm tree/deep/file\ 1*
head -c 20000000 /dev/urandom > tree/another
dd if=/dev/urandom of=tree/large bs=1M count=5 seek=10 conv=notrunc status=none
restic backup tree
[ "$(restic snapshots --json | grep -o '"short_id"' | wc -l)" = 2 ] || fail "snapshots"
restic check --read-data

echo "== the first restored"
oldest=$(restic snapshots --json | grep -o '"short_id":"[^"]*"' | head -1 | cut -d '"' -f 4)
restic restore "$oldest" --target back-first
diff -r first back-first/tree || fail "the first backup differs"

echo "== the first forgotten"
restic forget --keep-last 1 --prune
restic check --read-data
rm -rf cache
restic restore latest --target back
diff -r tree back/tree || fail "the last backup differs"
restic dump latest /tree/large | cmp - tree/large || fail "dump"
[ -z "$(restic list locks)" ] || fail "locks are left"
echo "done"
