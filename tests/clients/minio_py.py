"""minio-py: objects, parts, copies, compositions, listings, presigned URLs and forms, removals, errors."""

import io
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

from minio.commonconfig import REPLACE, ComposeSource, CopySource
from minio.datatypes import PostPolicy
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from s3 import ENDPOINT, MIB, content, documented, equal, run, sha256
from urllib3 import PoolManager, Retry, encode_multipart_formdata


def documented_client():
    names = {}
    exec(documented("minio-py"), names)
    # A retry would hide a failure.
    names["client"]._http = PoolManager(retries=Retry(0), timeout=60)
    return names["client"]


client = documented_client()


def refused(code, call):
    try:
        call()
    except S3Error as error:
        return equal(error.code, code, "error code")
    raise AssertionError(f"{code} expected, but the call succeeded")


def got(bucket, key, **more):
    answer = client.get_object(bucket, key, **more)
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


def ask(method, url, body=None, headers=()):
    """Status and body of a request that nobody signs."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def buckets(_, bucket):
    refused("BucketAlreadyOwnedByYou", lambda: client.make_bucket(bucket))
    client.make_bucket("minio-own")
    equal((client.bucket_exists("minio-own"), client.bucket_exists("minio-none")), (True, False), "exists")
    equal("minio-own" in [found.name for found in client.list_buckets()], True, "list of buckets")
    client.put_object("minio-own", "k", io.BytesIO(b"x"), 1)
    refused("BucketNotEmpty", lambda: client.remove_bucket("minio-own"))
    client.remove_object("minio-own", "k")
    client.remove_bucket("minio-own")
    refused("NoSuchBucket", lambda: client.remove_bucket("minio-own"))
    refused("NoSuchBucket", lambda: client.put_object("minio-own", "k", io.BytesIO(b"x"), 1))


def objects(_, bucket):
    for size in (0, 1, 65536, MIB + 1):
        key, data = f"ä +&/{size}.txt", content(size, size)
        put = client.put_object(
            bucket,
            key,
            io.BytesIO(data),
            size,
            content_type="text/x",
            metadata={"colour": "red", "words": "a b"},
        )
        found = client.stat_object(bucket, key)
        equal((found.size, found.etag, found.content_type), (size, put.etag, "text/x"), f"stat of {key}")
        equal(
            [found.metadata[f"x-amz-meta-{name}"] for name in ("colour", "words")], ["red", "a b"], "metadata"
        )
        equal(
            abs(found.last_modified - datetime.now(timezone.utc)) < timedelta(minutes=1),
            True,
            "last modified",
        )
        equal(sha256(got(bucket, key)), sha256(data), key)
    equal(got(bucket, key, offset=1000, length=500), data[1000:1500], "a range")
    equal(got(bucket, key, request_headers={"If-Match": put.etag})[:1], data[:1], "a condition that holds")
    refused("PreconditionFailed", lambda: got(bucket, key, request_headers={"If-Match": "other"}))
    refused("NoSuchKey", lambda: got(bucket, "none"))
    refused("NoSuchKey", lambda: client.stat_object(bucket, "none"))
    refused("InvalidRange", lambda: got(bucket, key, offset=5 * MIB))


def parts(_, bucket):
    data = content("parts", 17 * MIB + 3)
    Path("file").write_bytes(data)
    put = client.fput_object(bucket, "file", "file", part_size=5 * MIB)
    equal(put.etag.endswith("-4"), True, f"four parts: {put.etag}")
    client.fget_object(bucket, "file", "back")
    equal(sha256(Path("back").read_bytes()), sha256(data), "file")
    # Of a length that nobody knows beforehand.
    client.put_object(bucket, "stream", io.BytesIO(data), -1, part_size=5 * MIB)
    equal(sha256(got(bucket, "stream")), sha256(data), "stream")
    client.put_object(bucket, "no stream", io.BytesIO(b""), -1, part_size=5 * MIB)
    equal(got(bucket, "no stream"), b"", "no stream")
    equal(len(client._list_multipart_uploads(bucket).uploads), 0, "uploads that are left")


def copies(_, bucket):
    data = content("copy", 11 * MIB)
    client.put_object(bucket, "ä +&", io.BytesIO(data), len(data), metadata={"m": "1"})
    source = CopySource(bucket, "ä +&")
    client.copy_object(bucket, "kept", source)
    client.copy_object(bucket, "replaced", source, metadata={"n": "2"}, metadata_directive=REPLACE)
    for key, name, value in (("kept", "m", "1"), ("replaced", "n", "2")):
        equal(sha256(got(bucket, key)), sha256(data), key)
        equal(client.stat_object(bucket, key).metadata.get(f"x-amz-meta-{name}"), value, f"metadata of {key}")
    other = CopySource(bucket, "ä +&", match_etag="0" * 32)
    refused("PreconditionFailed", lambda: client.copy_object(bucket, "none", other))
    # A range makes it a copy of a part.
    client.copy_object(bucket, "range", CopySource(bucket, "ä +&", offset=MIB, length=6 * MIB))
    equal(sha256(got(bucket, "range")), sha256(data[MIB : 7 * MIB]), "a range")
    sources = [
        ComposeSource(bucket, "kept"),
        ComposeSource(bucket, "range"),
        ComposeSource(bucket, "kept", length=9),
    ]
    client.compose_object(bucket, "composed", sources, metadata={"o": "3"})
    equal(sha256(got(bucket, "composed")), sha256(data + data[MIB : 7 * MIB] + data[:9]), "composed")
    refused("NoSuchKey", lambda: client.copy_object(bucket, "none", CopySource(bucket, "nothing")))


def listings(_, bucket):
    keys = sorted([f"a/{number:04}" for number in range(1100)] + ["a&b <c>", "b/ü", "top"])
    for key in keys:
        client.put_object(bucket, key, io.BytesIO(b"x"), 1)
    for more in ({}, {"use_api_v1": True}, {"use_url_encoding_type": False}):
        found = [found.object_name for found in client.list_objects(bucket, recursive=True, **more)]
        equal(found, keys, f"recursive {more}")
        found = [(found.object_name, found.is_dir) for found in client.list_objects(bucket, **more)]
        expected = [("a&b <c>", False), ("a/", True), ("b/", True), ("top", False)]
        equal(sorted(found), sorted(expected), f"folders {more}")
    found = [found.object_name for found in client.list_objects(bucket, "a/", start_after="a/1097")]
    equal(found, ["a/1098", "a/1099"], "after a key")
    found = [
        found.version_id for found in client.list_objects(bucket, "b/", recursive=True, include_version=True)
    ]
    equal(found, ["null"], "versions")
    # More than one request may carry.
    gone = [DeleteObject(key) for key in keys]
    equal(list(client.remove_objects(bucket, gone)), [], "errors of the removal")
    equal(list(client.list_objects(bucket, recursive=True)), [], "left")


def presigned(_, bucket):
    data, hour = content("presigned", 3 * MIB), timedelta(hours=1)
    equal(ask("PUT", client.presigned_put_object(bucket, "ä +&", hour), data)[0], 200, "put")
    url = client.presigned_get_object(
        bucket, "ä +&", hour, response_headers={"response-content-type": "text/css"}
    )
    equal(ask("GET", url), (200, data), "get")
    equal(ask("GET", url.replace("text%2Fcss", "text%2Fhtml"))[0], 403, "another query")
    equal(ask("HEAD", client.get_presigned_url("HEAD", bucket, "ä +&", hour))[0], 200, "head")
    equal(ask("DELETE", client.get_presigned_url("DELETE", bucket, "ä +&", hour))[0], 204, "delete")
    refused("NoSuchKey", lambda: client.stat_object(bucket, "ä +&"))


def forms(_, bucket):
    def post(fields, file):
        body, kind = encode_multipart_formdata(fields | {"file": ("f", file, "text/x")})
        return ask("POST", f"{ENDPOINT}/{bucket}", body, {"Content-Type": kind})[0]

    policy = PostPolicy(bucket, datetime.now(timezone.utc) + timedelta(hours=1))
    policy.add_starts_with_condition("key", "up/")
    policy.add_content_length_range_condition(10, 2 * MIB)
    fields, data = client.presigned_post_policy(policy), content("form", MIB)
    equal(post(fields | {"key": "up/a"}, data), 204, "a form")
    equal(sha256(got(bucket, "up/a")), sha256(data), "its file")
    # Short: whether the answer to a large one that is refused arrives is a check of proxies.py.
    equal(post(fields | {"key": "down/a"}, data[:1000]), 403, "another key")
    equal(post(fields | {"key": "up/b"}, b"x"), 400, "too short a file")
    equal(post(fields | {"key": "up/b", "x-amz-signature": "0" * 64}, data[:1000]), 403, "another signature")
    equal([found.object_name for found in client.list_objects(bucket, recursive=True)], ["up/a"], "objects")


def what_is_not_there(_, bucket):
    client.put_object(bucket, "k", io.BytesIO(b"x"), 1)
    refused("NoSuchBucketPolicy", lambda: client.get_bucket_policy(bucket))
    equal(client.get_bucket_versioning(bucket).status, None, "versioning")
    equal(client.get_bucket_tags(bucket), None, "tags of a bucket")
    equal(client.get_object_tags(bucket, "k"), None, "tags of an object")
    equal(client.get_bucket_lifecycle(bucket), None, "lifecycle")
    equal(client.get_bucket_encryption(bucket), None, "encryption")
    refused("NotImplemented", lambda: client.set_bucket_policy(bucket, "{}"))
    refused("NotImplemented", lambda: client.enable_object_legal_hold(bucket, "k"))


run(buckets, objects, parts, copies, listings, presigned, forms, what_is_not_there)
