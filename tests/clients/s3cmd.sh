#!/usr/bin/env bash
# s3cmd with the whole configuration that it writes itself, and what docs/clients.md says: trees, parts,
# copies, metadata, presigned URLs, buckets; and refusals that it must tell of.
set -euo pipefail
. "$(dirname "$0")/documented.sh"
documented s3cmd > documented
s3cmd -c documented --dump-config > s3cfg
s3() { s3cmd -c s3cfg --no-progress --quiet "$@"; }
refused() {
    local said
    said=$(s3 "${@:2}" 2>&1) && fail "not refused: ${*:2}"
    [[ $said == *"($1)"* ]] || fail "${*:2}: $said, not $1"
}

echo "== buckets"
s3 mb s3://s3cmd
refused BucketAlreadyOwnedByYou mb s3://s3cmd
[[ $(s3cmd -c s3cfg ls) == *s3://s3cmd* ]] || fail "the bucket is not listed"
[[ $(s3cmd -c s3cfg info s3://s3cmd) == *"Location:  us-east-1"* ]] || fail "info of a bucket"

echo "== one file, and none of its bytes"
head -c 3000 /dev/urandom > small
: > empty
for name in small empty; do
    s3 put "$name" "s3://s3cmd/a b+ü&/$name"
    s3 get "s3://s3cmd/a b+ü&/$name" back
    cmp "$name" back || fail "$name differs"
    rm back
done

echo "== parts"
head -c 12000000 /dev/urandom > large
s3 put --multipart-chunk-size-mb=5 large s3://s3cmd/large
s3 get s3://s3cmd/large back
cmp large back || fail "the large one differs"
head -c 7000000 large > half
s3 get --continue s3://s3cmd/large half
cmp large half || fail "the one that was continued differs"
uploads=$(s3cmd -c s3cfg multipart s3://s3cmd)
[ "$(wc -l <<< "$uploads")" = 2 ] || fail "uploads are left: $uploads"

echo "== presigned"
url=$(s3cmd -c s3cfg signurl s3://s3cmd/large +600)
curl --fail --silent --show-error --max-time 30 --dump-header head "$url" | cmp - large || fail "signurl"
grep -qi '^etag: "[0-9a-f]*-3"' head || fail "not three parts: $(cat head)"

echo "== copies"
s3 cp s3://s3cmd/large s3://s3cmd/copied
s3 mv "s3://s3cmd/a b+ü&/small" s3://s3cmd/moved
s3 modify --add-header=x-amz-meta-colour:red s3://s3cmd/moved
s3 get s3://s3cmd/copied copied
s3 get s3://s3cmd/moved moved
cmp large copied && cmp small moved || fail "a copy differs"
info=$(s3cmd -c s3cfg info s3://s3cmd/moved)
[[ $info == *"x-amz-meta-colour: red"* ]] || fail "the metadata is not changed: $info"
s3 get "s3://s3cmd/a b+ü&/small" none 2> said && fail "mv left its source"
grep -q "does not exist" said || fail "a get of nothing: $(cat said)"

echo "== a tree"
mkdir -p tree/deep/er
for i in $(seq 1 60); do head -c $((i * 997)) /dev/urandom > "tree/deep/er/file $i"; done
: > tree/empty
s3 sync tree/ s3://s3cmd/tree/
[ "$(s3cmd -c s3cfg ls --recursive s3://s3cmd/tree/ | wc -l)" = 61 ] || fail "ls"
read -r bytes objects _ < <(s3cmd -c s3cfg du s3://s3cmd/tree/)
[ "$bytes $objects" = "$((997 * 60 * 61 / 2)) 61" ] || fail "du: $bytes $objects"
mkdir back-tree
s3 sync s3://s3cmd/tree/ back-tree/
diff -r tree back-tree || fail "the tree that came back differs"
again=$(s3cmd -c s3cfg --no-progress sync tree/ s3://s3cmd/tree/)
[ -z "$again" ] || fail "sync again: $again"
rm "tree/deep/er/file 1"
echo changed > tree/empty
s3 sync --delete-removed tree/ s3://s3cmd/tree/
s3 sync --delete-removed s3://s3cmd/tree/ back-tree/
diff -r tree back-tree || fail "the changed tree differs"

echo "== refusals"
refused AccessControlListNotSupported put --acl-public small s3://s3cmd/public
refused NotImplemented setacl --acl-public s3://s3cmd/moved
refused InvalidStorageClass put --storage-class=STANDARD_IA small s3://s3cmd/rare
refused BucketNotEmpty rb s3://s3cmd
refused NoSuchBucket ls s3://s3cmd-none

echo "== deletes"
s3 del s3://s3cmd/moved
s3 del --recursive --force s3://s3cmd/tree/
left=$(s3cmd -c s3cfg ls --recursive s3://s3cmd)
[ "$(wc -l <<< "$left")" = 3 ] || fail "left: $left"
s3 rb --recursive --force s3://s3cmd
[ -z "$(s3cmd -c s3cfg ls)" ] || fail "rb"
echo "done"
