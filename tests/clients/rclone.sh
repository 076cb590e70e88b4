#!/usr/bin/env bash
# rclone: a tree goes up and comes back, is compared by hash and byte by byte; syncs both ways, streams, moves,
# copies within the server, times and metadata, uploads left behind, purges.
set -euo pipefail
fail() { echo "FAILED: $*" >&2; exit 1; }
export RCLONE_CONFIG_CAIRN_TYPE=s3 RCLONE_CONFIG_CAIRN_PROVIDER=Other RCLONE_CONFIG_CAIRN_ENV_AUTH=true
export RCLONE_CONFIG_CAIRN_ENDPOINT="$CAIRN_ENDPOINT" RCLONE_CONFIG_CAIRN_REGION=us-east-1
export RCLONE_RETRIES=1 RCLONE_LOW_LEVEL_RETRIES=1 RCLONE_CONTIMEOUT=5s RCLONE_TIMEOUT=60s
# How many files it would send or delete: what it says with --dry-run.
pending() { rclone --dry-run "$@" 2>&1 | grep -c "as --dry-run is set" || true; }

echo "== a tree"
mkdir -p tree/a/b "tree/ü %2F & +/日本"
for i in $(seq 1 200); do head -c $((i * 331)) /dev/urandom > "tree/a/b/file $i"; done
head -c 20000000 /dev/urandom > tree/large
head -c 1000 /dev/urandom > "tree/ü %2F & +/日本/ä=#?;'\"~"
: > tree/empty
files=203
touch -d "2001-02-03 04:05:06.789 UTC" "tree/a/b/file 1"
rclone mkdir cairn:rclone
rclone copy tree cairn:rclone/up
same() { rclone check "$@" 2> differences || { cat differences >&2; return 1; }; }
same tree cairn:rclone/up || fail "check"
same --download tree cairn:rclone/up || fail "check --download"
rclone copy cairn:rclone/up back
diff -r tree back || fail "the tree that came back differs"
[ "$(rclone lsf -R --files-only cairn:rclone | wc -l)" = $files ] || fail "lsf"
[ "$(pending sync tree cairn:rclone/up)" = 0 ] || fail "there is something to do after a copy"

echo "== sync up, and down"
head -c 331 /dev/urandom > "tree/a/b/file 1"
touch -d "2001-02-03 04:05:06.789 UTC" "tree/a/b/file 1"
head -c 5000 /dev/urandom > "tree/a/b/file 2"
rm "tree/a/b/file 3"
mkdir tree/new && head -c 100 /dev/urandom > tree/new/file
# The same size and time: only the hash tells.
rclone sync --checksum tree cairn:rclone/up
same --download tree cairn:rclone/up || fail "after a sync up"
[ "$(rclone lsf -R --files-only cairn:rclone/up | wc -l)" = $files ] || fail "a sync up deletes what is gone"
printf 'of the other side' | rclone rcat cairn:rclone/up/other
rclone deletefile cairn:rclone/up/new/file
rclone sync --checksum cairn:rclone/up back
same --download back cairn:rclone/up || fail "after a sync down"
[ "$(cat back/other)" = "of the other side" ] && [ ! -e back/new/file ] || fail "what a sync down brought"
rclone sync --track-renames --track-renames-strategy hash tree cairn:rclone/up
mv tree/large tree/a/moved
rclone sync -v --track-renames --track-renames-strategy hash tree cairn:rclone/up 2> renames
grep -q "Renamed from \"large\"" renames || fail "a rename is sent again: $(cat renames)"
same --download tree cairn:rclone/up || fail "after a rename"

echo "== streams of unknown length"
for size in 0 10 200000 12345678; do
    head -c $size tree/a/moved > stream
    rclone rcat --s3-chunk-size 5M --s3-upload-cutoff 5M cairn:rclone/streams/$size < stream
    rclone cat cairn:rclone/streams/$size | cmp - stream || fail "rcat of $size bytes"
done
rclone cat --offset 7000000 --count 1000 cairn:rclone/streams/12345678 |
    cmp - <(tail -c +7000001 tree/a/moved | head -c 1000) || fail "a range"
rclone copyto --s3-upload-cutoff 5M --s3-chunk-size 5M tree/a/moved cairn:rclone/parts
rclone cat cairn:rclone/parts | cmp - tree/a/moved || fail "parts"
# rclone keeps the MD5 of what went up in parts as metadata.
sum=$(md5sum < tree/a/moved | cut -d' ' -f1)
[ "$(rclone md5sum cairn:rclone/parts | cut -d' ' -f1)" = "$sum" ] || fail "md5sum"

echo "== copies and moves within the server"
rclone copyto cairn:rclone/parts cairn:rclone/copied
rclone cat cairn:rclone/copied | cmp - tree/a/moved || fail "copyto"
# In parts, by UploadPartCopy.
rclone copyto --s3-copy-cutoff 5M --s3-chunk-size 5M cairn:rclone/parts cairn:rclone/copied-in-parts
rclone cat cairn:rclone/copied-in-parts | cmp - tree/a/moved || fail "copyto in parts"
rclone moveto cairn:rclone/copied cairn:rclone/renamed
rclone cat cairn:rclone/renamed | cmp - tree/a/moved || fail "moveto"
[ -z "$(rclone lsf cairn:rclone --include /copied)" ] || fail "the source of moveto is there"
rclone mkdir cairn:rclone-other
rclone move cairn:rclone/up cairn:rclone-other/moved
same --download tree cairn:rclone-other/moved || fail "move to another bucket"
[ -z "$(rclone lsf -R --files-only cairn:rclone/up)" ] || fail "the source of move is there"
rclone move back cairn:rclone/from-here
[ -z "$(find back -type f)" ] || fail "the source of move is here"

echo "== times, types, metadata"
file="cairn:rclone-other/moved/a/b/file 1"
modified() { rclone lsjson "$@" "$file" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["ModTime"][:23])'; }
[ "$(modified)" = 2001-02-03T04:05:06.789 ] || fail "ModTime"
rclone touch --timestamp 2011-12-13T14:15:16.25 "$file"
[ "$(modified)" = 2011-12-13T14:15:16.250 ] || fail "touch"
cmp "tree/a/b/file 1" <(rclone cat "$file") || fail "touch changed the file"
served=$(modified --use-server-modtime)
python3 - "$served" <<'PY' || fail "the server's time is $served"
import sys
from datetime import datetime, timezone
age = datetime.now(timezone.utc) - datetime.fromisoformat(sys.argv[1][:19] + "+00:00")
sys.exit(0 if -5 < age.total_seconds() < 300 else 1)
PY
printf text > file.txt
rclone copyto -M --metadata-set colour=blue --metadata-set content-type=text/x \
    --metadata-set cache-control=max-age=1 file.txt cairn:rclone/described
rclone copyto -M cairn:rclone/described cairn:rclone/described-copy
for name in described described-copy; do
    rclone lsjson -M --hash cairn:rclone/$name > json
    python3 - json <<'PY' || fail "lsjson -M of $name: $(cat json)"
import json, sys
[found] = json.load(open(sys.argv[1]))
wanted = {"colour": "blue", "content-type": "text/x", "cache-control": "max-age=1"}
assert wanted.items() <= found["Metadata"].items(), found
assert (found["Size"], found["MimeType"]) == (4, "text/x"), found
assert found["Hashes"]["md5"] == "1cb251ec0d568de6a929b520c4aed8d1", found
PY
done

echo "== uploads left behind"
python3 - <<'PY'
import boto3, os
s3 = boto3.client("s3", endpoint_url=os.environ["CAIRN_ENDPOINT"])
for key in ("left/1", "left/2"):
    upload = {"Bucket": "rclone", "Key": key}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    s3.upload_part(**upload, PartNumber=1, Body=b"x")
PY
uploads() { rclone backend list-multipart-uploads cairn:rclone | grep -c UploadId || true; }
[ "$(uploads)" = 2 ] || fail "$(uploads) of 2 uploads are listed"
# Those of the last day are kept unless it is told otherwise.
rclone cleanup cairn:rclone
[ "$(uploads)" = 2 ] || fail "cleanup ended uploads of today"
rclone backend cleanup -o max-age=0s cairn:rclone
[ "$(uploads)" = 0 ] || fail "$(uploads) uploads are left"
# It is ended in the middle, and may leave nothing but an upload.
(head -c 11000000 tree/a/moved; sleep 3) |
    timeout --signal KILL 2 rclone rcat --s3-chunk-size 5M cairn:rclone/ended 2> /dev/null &&
    fail "it was not ended"
[ -z "$(rclone lsf cairn:rclone --include /ended)" ] || fail "an upload that was ended is an object"
[ "$(uploads)" = 1 ] || fail "$(uploads) uploads of one that was ended"

echo "== the rest"
rclone size --json cairn:rclone-other/moved | grep -q "\"count\":$files," || fail "size"
url=$(rclone link --expire 60s cairn:rclone/parts)
curl --fail --silent --show-error --max-time 60 "$url" | cmp - tree/a/moved || fail "link"
rclone copyto --s3-use-presigned-request tree/empty cairn:rclone/presigned
[ "$(pending delete --min-size 30M cairn:rclone)" = 0 ] || fail "delete of what is larger"
rclone delete --include "streams/**" cairn:rclone
[ -z "$(rclone lsf -R --include "streams/**" cairn:rclone)" ] || fail "delete of a part"
rclone rmdir cairn:rclone 2> /dev/null && fail "a bucket that is not empty was deleted"
rclone purge cairn:rclone-other/moved/a
[ "$(rclone lsf -R --files-only cairn:rclone-other | wc -l)" = 3 ] || fail "purge of a part"
rclone purge cairn:rclone
rclone purge cairn:rclone-other
[ -z "$(rclone lsd cairn: | grep rclone || true)" ] || fail "purge"
echo "done"
