#!/usr/bin/env bash
# s5cmd: globs, sync, parts, pipes, copies, presigned URLs; 2,000 objects at once.
set -euo pipefail
. "$(dirname "$0")/documented.sh"
documented s5cmd > documented
# What is not documented is not set.
unset AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
. ./documented
# A retry would hide a failure.
s5() { s5cmd --retry-count 0 "$@"; }
quiet() { s5 --log error "$@"; }

echo "== a tree of 2,000 files"
python3 - <<'PY'
import os, random
rng = random.Random(5)
for i in range(2000):
    folder = os.path.join("tree", f"dir-{i % 7}", *(["deep"] if i % 11 == 0 else []))
    os.makedirs(folder, exist_ok=True)
    name = f"file {i} ü+&.bin" if i % 13 == 0 else f"file-{i}.bin"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(rng.randbytes(rng.choice([0, 1, 100, 4096, 20_000])))
PY
quiet mb s3://s5cmd
quiet cp tree/ s3://s5cmd/tree/
quiet cp 's3://s5cmd/tree/*' back/
diff -r tree back || fail "the tree that came back differs"
[ "$(s5 ls 's3://s5cmd/tree/*' | wc -l)" = 2000 ] || fail "ls"
bytes=$(find tree -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
used=$(s5 du 's3://s5cmd/tree/*')
[[ $used == "$bytes bytes in 2000 objects"* ]] || fail "du: $used, not $bytes"

echo "== globs"
quiet cp 'tree/dir-1/file-1*.bin' s3://s5cmd/some/
quiet cp 's3://s5cmd/some/file-1??.bin' some/
[ "$(ls some)" = "$(cd tree/dir-1 && ls file-1??.bin)" ] || fail "a glob"
for name in $(ls some); do cmp "some/$name" "tree/dir-1/$name" || fail "$name"; done

echo "== sync"
rm tree/dir-2/file-2.bin
echo changed > tree/dir-3/file-3.bin
quiet sync --size-only --delete tree/ s3://s5cmd/tree/
again=$(s5 sync --size-only --delete tree/ s3://s5cmd/tree/)
[ -z "$again" ] || fail "sync again: $again"
quiet sync --delete 's3://s5cmd/tree/*' back/
diff -r tree back || fail "the changed tree differs"

echo "== parts, pipes and ranges"
head -c 30000000 /dev/urandom > large
quiet cp --part-size 5 --concurrency 4 large s3://s5cmd/large
quiet cp --part-size 5 --concurrency 4 s3://s5cmd/large large-back
cmp large large-back || fail "the large one differs"
s5 cat s3://s5cmd/large | cmp - large || fail "cat"
quiet pipe --part-size 5 s3://s5cmd/piped < large
s5 cat s3://s5cmd/piped | cmp - large || fail "pipe"
: | quiet pipe s3://s5cmd/nothing
[ -z "$(s5 cat s3://s5cmd/nothing)" ] || fail "a pipe of nothing"
quiet cp --metadata colour=red --content-type text/x large s3://s5cmd/described
described=$(s5 head s3://s5cmd/described)
[[ $described == *'"colour":"red"'* ]] || fail "head: $described"

echo "== copies and moves"
quiet cp s3://s5cmd/large s3://s5cmd/copied
quiet mv s3://s5cmd/copied s3://s5cmd/moved
s5 cat s3://s5cmd/moved | cmp - large || fail "the moved one differs"
s5 ls s3://s5cmd/copied 2> /dev/null && fail "mv left its source"
quiet cp 's3://s5cmd/some/*' s3://s5cmd/other/
copies=$(s5 ls 's3://s5cmd/other/*' | wc -l)
[ "$copies" = "$(s5 ls 's3://s5cmd/some/*' | wc -l)" ] || fail "a glob of copies: $copies"
url=$(s5 presign --expire 10m s3://s5cmd/moved)
curl --fail --silent --show-error --max-time 30 "$url" | cmp - large || fail "presign"

echo "== removal"
quiet rm 's3://s5cmd/tree/*'
left=$(s5 ls 's3://s5cmd/tree/*' 2>&1 || true)
[[ $left == *"no object found"* ]] || fail "rm: $left"
quiet rb s3://s5cmd 2> said && fail "rb of a bucket that is not empty"
grep -q BucketNotEmpty said || fail "rb: $(cat said)"
quiet rm 's3://s5cmd/*'
quiet rb s3://s5cmd
[ -z "$(s5 ls)" ] || fail "rb: $(s5 ls)"
echo "done"
