#!/usr/bin/env bash
# duplicity with boto3: a full backup and an incremental one, encrypted, in volumes; verified and restored.
set -euo pipefail
. "$(dirname "$0")/documented.sh"
# gpg may leave an agent behind: it is that of this directory, and ends with this script.
export GNUPGHOME="$PWD/gnupg" PASSPHRASE=secret
mkdir -m 700 gnupg
trap 'gpgconf --kill gpg-agent' EXIT
documented duplicity | sed 's|/BUCKET/|/duplicity/|' > documented
aws --endpoint-url "$CAIRN_ENDPOINT" s3 mb s3://duplicity
# What is not documented is not set.
unset AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
. ./documented
# A retry would hide a failure.
options+=(--num-retries 1 --verbosity error --archive-dir "$PWD/archive")
run() { duplicity "$1" "${options[@]}" "${@:2}"; }

mkdir -p tree/deep
for i in $(seq 1 200); do head -c $((i * 331)) /dev/urandom > "tree/deep/file $i"; done
head -c 12000000 /dev/urandom > tree/large
: > tree/empty
cp -rp tree first

echo "== full"
run full --volsize 6 --s3-multipart-chunk-size 5 tree "$target"
sleep 1 # duplicity names backups by the second
echo "== incremental"
since=$(date +%s)
rm tree/deep/file\ 1*
dd if=/dev/urandom of=tree/large bs=1M count=3 seek=5 conv=notrunc status=none
head -c 3000000 /dev/urandom > tree/another
run incremental --volsize 6 tree "$target"
run verify --compare-data "$target" tree

echo "== restored without what is kept here"
rm -rf archive
run restore "$target" back
diff -r tree back || fail "the last backup differs"
run restore --restore-time "$((since - 1))" "$target" back-first
diff -r first back-first || fail "the first backup differs"
run restore --file-to-restore large "$target" back-large
cmp tree/large back-large || fail "one file differs"

echo "== removal"
[[ $(run collection-status "$target" | grep -c 'Full\|Incremental') -ge 2 ]] || fail "collection-status"
run remove-all-but-n-full 1 --force "$target"
run remove-older-than 0s --force "$target"
echo "done"
