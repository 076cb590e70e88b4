#!/usr/bin/env bash
# aws-cli: a tree of 2,100 files goes up and comes back; ls, cp between keys, rm; presigned GET and PUT with curl.
set -euo pipefail
aws() { command aws --endpoint-url "$CAIRN_ENDPOINT" "$@"; }
# aws-cli 1 presigns with version 2 unless it is told otherwise.
export AWS_CONFIG_FILE="$PWD/aws-config"
printf '[default]\ns3 =\n    signature_version = s3v4\n' > "$AWS_CONFIG_FILE"
fail() { echo "FAILED: $*" >&2; exit 1; }

echo "== a tree of 2,100 files"
python3 - <<'PY'
import os, random
rng = random.Random(3)
for i in range(2100):
    folder = os.path.join("tree", f"dir-{i % 37}", *(["deep", "er"] if i % 11 == 0 else []))
    os.makedirs(folder, exist_ok=True)
    size = rng.choice([0, 1, 100, 4096, 20_000]) if i % 500 else 9_000_000
    name = f"file {i} ü.bin" if i % 13 == 0 else f"file-{i}.bin"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(rng.randbytes(size))
PY
aws s3 mb s3://tree
aws s3 sync --no-progress --quiet tree s3://tree/up
aws s3 sync --no-progress --quiet s3://tree/up back
diff -r tree back || fail "the tree that came back differs"
[ "$(find back -type f | wc -l)" = 2100 ] || fail "files are missing"

echo "== a second sync has nothing to do"
again=$(aws s3 sync --no-progress tree s3://tree/up)
[ -z "$again" ] || fail "sync again: $again"

echo "== ls --recursive"
listed=$(aws s3 ls --recursive s3://tree/up/ | wc -l)
[ "$listed" = 2100 ] || fail "$listed of 2100 listed"
listed=$(aws s3 ls s3://tree/up/ | grep -c PRE)
[ "$listed" = 37 ] || fail "$listed of 37 folders listed"

echo "== cp between keys"
aws s3 cp --quiet s3://tree/up/dir-0/file-37.bin s3://tree/copied
aws s3 cp --quiet s3://tree/copied copied
cmp copied tree/dir-0/file-37.bin || fail "the copy differs"
head -c 30000000 /dev/urandom > large
aws s3 cp --quiet large s3://tree/large
aws s3 cp --quiet s3://tree/large s3://tree/large-copied
aws s3 cp --quiet s3://tree/large-copied large-back
cmp large large-back || fail "the large copy differs"
aws s3 cp --quiet - s3://tree/piped < large
aws s3 cp --quiet s3://tree/piped - | cmp - large || fail "the piped one differs"

echo "== presigned GET with curl"
url=$(aws s3 presign s3://tree/large --expires-in 60)
curl --fail --silent --show-error --max-time 60 "$url" -o large-curl
cmp large large-curl || fail "presigned GET differs"
status=$(curl --silent --max-time 10 -o refusal -w '%{http_code}' "${url%?}$([ "${url: -1}" = a ] && echo b || echo a)")
[ "$status" = 403 ] && grep -q SignatureDoesNotMatch refusal || fail "a wrong signature: $status $(cat refusal)"

echo "== presigned PUT with curl"
url=$(python3 -c '
import boto3, os
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["CAIRN_ENDPOINT"], config=Config(signature_version="s3v4"))
print(s3.generate_presigned_url("put_object", Params={"Bucket": "tree", "Key": "put-by-curl"}, ExpiresIn=60))')
curl --fail --silent --show-error --max-time 60 -o /dev/null --upload-file large "$url"
aws s3 cp --quiet s3://tree/put-by-curl - | cmp - large || fail "presigned PUT differs"

echo "== rm --recursive"
aws s3 rm --recursive --quiet s3://tree/
left=$(aws s3 ls --recursive s3://tree/ | wc -l)
[ "$left" = 0 ] || fail "$left are left"
aws s3 rb s3://tree
echo "done"
