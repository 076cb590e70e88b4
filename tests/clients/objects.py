"""Single objects: sizes, ranges, metadata, conditions, copies, deletes."""

import hashlib
import random
from datetime import timedelta

from botocore.exceptions import ClientError
from s3 import MIB, content, equal, refused, run, sha256


def sizes_come_back(s3, bucket):
    sizes = [0, 1, 4096]
    for middle in (16 * 1024, 64 * 1024, MIB, 4 * MIB):
        sizes += [middle - 1, middle, middle + 1]
    sizes.append(100 * MIB)
    for size in sizes:
        data = content(size, size)
        put = s3.put_object(Bucket=bucket, Key=f"size-{size}", Body=data)
        equal(put["ETag"], f'"{hashlib.md5(data).hexdigest()}"', f"ETag of {size} bytes")
        got = s3.get_object(Bucket=bucket, Key=f"size-{size}")
        equal(got["ContentLength"], size, "length")
        equal(got["ETag"], put["ETag"], "ETag")
        equal(sha256(got["Body"].read()), sha256(data), f"SHA-256 of {size} bytes")
        head = s3.head_object(Bucket=bucket, Key=f"size-{size}")
        equal((head["ContentLength"], head["ETag"]), (size, put["ETag"]), f"head of {size} bytes")


def random_ranges_match(s3, bucket):
    size = 100 * MIB
    data = content("ranges", size)
    s3.put_object(Bucket=bucket, Key="large", Body=data)
    rng = random.Random(1)
    for number in range(200):
        first = rng.randrange(size)
        length = rng.choice([1, 100, 65536, MIB, 5 * MIB])
        last = min(first + rng.randrange(length), size - 1)
        asked, first_byte, last_byte = f"bytes={first}-{last}", first, last
        if number % 10 == 0:
            asked, first_byte, last_byte = f"bytes=-{length}", size - length, size - 1
        elif number % 10 == 1:
            first = size - length
            asked, first_byte, last_byte = f"bytes={first}-", first, size - 1
        elif number % 10 == 2:
            asked, last_byte = f"bytes={first}-{size + 10}", size - 1
            if size - first > 20 * MIB:
                continue
        got = s3.get_object(Bucket=bucket, Key="large", Range=asked)
        equal(got["ResponseMetadata"]["HTTPStatusCode"], 206, asked)
        equal(got["ContentRange"], f"bytes {first_byte}-{last_byte}/{size}", asked)
        equal(sha256(got["Body"].read()), sha256(data[first_byte : last_byte + 1]), asked)
    refused("InvalidRange", lambda: s3.get_object(Bucket=bucket, Key="large", Range=f"bytes={size}-"), 416)


def headers_and_metadata_come_back(s3, bucket):
    given = {
        "ContentType": "text/plain; charset=utf-8",
        "CacheControl": "max-age=60",
        "ContentDisposition": 'attachment; filename="a b.txt"',
        "ContentEncoding": "identity",
        "ContentLanguage": "de, en",
        "Metadata": {"one": "1", "with-dash": "a b  c", "empty": ""},
    }
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", **given)
    for found in (s3.head_object(Bucket=bucket, Key="k"), s3.get_object(Bucket=bucket, Key="k")):
        equal({name: found.get(name) for name in given}, given, "headers")
    s3.put_object(Bucket=bucket, Key="plain", Body=b"x")
    found = s3.head_object(Bucket=bucket, Key="plain")
    equal(found["ContentType"], "binary/octet-stream", "default content type")
    equal(found["Metadata"], {}, "no metadata")
    override = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="text/css", ResponseCacheControl="no-store")
    equal((override["ContentType"], override["CacheControl"]), ("text/css", "no-store"), "overridden headers")


def not_modified(call, what):
    try:
        call()
    except ClientError as error:
        equal(error.response["ResponseMetadata"]["HTTPStatusCode"], 304, what)
        return
    raise AssertionError(f"{what}: 304 expected, but the call succeeded")


def conditional_reads(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    before, after = modified - timedelta(hours=1), modified + timedelta(seconds=1)
    for read in (s3.get_object, s3.head_object):
        precondition = "PreconditionFailed" if read == s3.get_object else "412"
        k = {"Bucket": bucket, "Key": "k"}
        read(**k, IfMatch=etag)
        read(**k, IfNoneMatch='"other"')
        read(**k, IfModifiedSince=before)
        read(**k, IfUnmodifiedSince=after)
        refused(precondition, lambda: read(**k, IfMatch='"other"'), 412)
        refused(precondition, lambda: read(**k, IfUnmodifiedSince=before), 412)
        not_modified(lambda: read(**k, IfNoneMatch=etag), "If-None-Match")
        not_modified(lambda: read(**k, IfModifiedSince=modified), "If-Modified-Since")
        # The ETag decides where both are given.
        read(**k, IfMatch=etag, IfUnmodifiedSince=before)
        not_modified(lambda: read(**k, IfNoneMatch=etag, IfModifiedSince=before), "both")


def conditional_writes(s3, bucket):
    k = {"Bucket": bucket, "Key": "k"}
    first = s3.put_object(**k, Body=b"1", IfNoneMatch="*")["ETag"]
    early = refused("PreconditionFailed", lambda: s3.put_object(**k, Body=b"2", IfNoneMatch="*"), 412)
    # It was refused before its body was asked for, so the connection has ended: the client must know.
    equal(early["ResponseMetadata"]["HTTPHeaders"].get("connection"), "close", "Connection of an early refusal")
    equal(s3.get_object(**k)["Body"].read(), b"1", "after a refused write")
    second = s3.put_object(**k, Body=b"3", IfMatch=first)["ETag"]
    refused("PreconditionFailed", lambda: s3.put_object(**k, Body=b"4", IfMatch=first), 412)
    s3.put_object(**k, Body=b"5", IfMatch=second)
    refused("NoSuchKey", lambda: s3.put_object(Bucket=bucket, Key="none", Body=b"", IfMatch=first), 404)
    equal(s3.get_object(**k)["Body"].read(), b"5", "in the end")


def copies_keep_or_replace(s3, bucket):
    data = content("copy", 3 * MIB + 1)
    s3.put_object(Bucket=bucket, Key="a/ä +&.txt", Body=data, ContentType="text/x", Metadata={"m": "1"})
    source = {"Bucket": bucket, "Key": "a/ä +&.txt"}
    copied = s3.copy_object(Bucket=bucket, Key="kept", CopySource=source)
    equal(copied["CopyObjectResult"]["ETag"], f'"{hashlib.md5(data).hexdigest()}"', "ETag of a copy")
    s3.copy_object(
        Bucket=bucket, Key="replaced", CopySource=source, MetadataDirective="REPLACE", Metadata={"n": "2"}, ContentType="text/y"
    )
    for key, kind, metadata in (("kept", "text/x", {"m": "1"}), ("replaced", "text/y", {"n": "2"})):
        found = s3.get_object(Bucket=bucket, Key=key)
        equal((found["ContentType"], found["Metadata"]), (kind, metadata), key)
        equal(sha256(found["Body"].read()), sha256(data), key)
    s3.delete_object(Bucket=bucket, Key="a/ä +&.txt")
    equal(sha256(s3.get_object(Bucket=bucket, Key="kept")["Body"].read()), sha256(data), "without its source")
    # Onto itself only with other metadata.
    kept = {"Bucket": bucket, "Key": "kept"}
    refused("InvalidRequest", lambda: s3.copy_object(**kept, CopySource=kept), 400)
    s3.copy_object(**kept, CopySource=kept, MetadataDirective="REPLACE", Metadata={"again": "1"})
    found = s3.get_object(**kept)
    equal((found["Metadata"], sha256(found["Body"].read())), ({"again": "1"}, sha256(data)), "onto itself")
    refused("NoSuchKey", lambda: s3.copy_object(Bucket=bucket, Key="x", CopySource=source), 404)
    etag = s3.head_object(**kept)["ETag"]
    s3.copy_object(Bucket=bucket, Key="if", CopySource=kept, CopySourceIfMatch=etag)
    refused(
        "PreconditionFailed",
        lambda: s3.copy_object(Bucket=bucket, Key="if", CopySource=kept, CopySourceIfNoneMatch=etag),
        412,
    )


def deletes(s3, bucket):
    keys = [f"d/{i}" for i in range(1500)] + ["d/ü &<>\"'"]
    for key in keys[-40:]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[-1000:]]})
    equal(sorted(d["Key"] for d in answer["Deleted"]), sorted(keys[-1000:]), "deleted")
    equal(answer.get("Errors", []), [], "errors")
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "left")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}], "Quiet": True})
    equal(quiet.get("Deleted", []), [], "quiet")
    refused("NoSuchKey", lambda: s3.get_object(Bucket=bucket, Key="k"), 404)
    equal(s3.delete_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPStatusCode"], 204, "delete of nothing")
    too_many = [{"Key": key} for key in keys[:1001]]
    refused("MalformedXML", lambda: s3.delete_objects(Bucket=bucket, Delete={"Objects": too_many}), 400)


def buckets(s3, bucket):
    name = "a-bucket.of-its-own"
    s3.create_bucket(Bucket=name)
    listed = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    equal(name in listed and bucket in listed and listed == sorted(listed), True, f"list of buckets {listed}")
    s3.head_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="k", Body=b"")
    refused("BucketNotEmpty", lambda: s3.delete_bucket(Bucket=name), 409)
    s3.delete_object(Bucket=name, Key="k")
    s3.delete_bucket(Bucket=name)
    refused("404", lambda: s3.head_bucket(Bucket=name), 404)
    refused("NoSuchBucket", lambda: s3.list_objects_v2(Bucket=name), 404)
    refused("NoSuchBucket", lambda: s3.delete_bucket(Bucket=name), 404)
    s3.get_bucket_location(Bucket=bucket)


run(
    sizes_come_back,
    random_ranges_match,
    headers_and_metadata_come_back,
    conditional_reads,
    conditional_writes,
    copies_keep_or_replace,
    deletes,
    buckets,
)
