"""Multipart uploads: whole files, part copies, aborts, listings, errors."""

import hashlib
import os

from boto3.s3.transfer import TransferConfig
from s3 import MIB, content, equal, refused, run, sha256


def etag_of(parts):
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


def upload(s3, bucket, key, parts, **created):
    """Uploads the parts, given as {number: bytes}; answers the id and what `complete` wants."""
    id = s3.create_multipart_upload(Bucket=bucket, Key=key, **created)["UploadId"]
    done = []
    for number, data in parts.items():
        part = s3.upload_part(Bucket=bucket, Key=key, UploadId=id, PartNumber=number, Body=data)
        equal(part["ETag"], f'"{hashlib.md5(data).hexdigest()}"', "ETag of a part")
        done.append({"PartNumber": number, "ETag": part["ETag"]})
    return {"Bucket": bucket, "Key": key, "UploadId": id}, sorted(done, key=lambda part: part["PartNumber"])


def complete(s3, k, parts, **conditions):
    return s3.complete_multipart_upload(**k, MultipartUpload={"Parts": parts}, **conditions)


def a_large_file(s3, bucket):
    size = 2048 * MIB + 12345 if os.environ.get("CAIRN_TEST_LARGE") == "1" else 256 * MIB + 12345
    written, read = hashlib.sha256(), hashlib.sha256()
    with open("large", "wb") as file:
        for number in range(0, size, 16 * MIB):
            piece = content(number, min(16 * MIB, size - number))
            written.update(piece)
            file.write(piece)
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=16 * MIB, max_concurrency=4)
    s3.upload_file("large", bucket, "large", Config=config)
    os.remove("large")
    equal(s3.head_object(Bucket=bucket, Key="large")["ContentLength"], size, "length")
    s3.download_file(bucket, "large", "back", Config=config)
    with open("back", "rb") as file:
        while piece := file.read(16 * MIB):
            read.update(piece)
    os.remove("back")
    equal(read.hexdigest(), written.hexdigest(), "SHA-256")


def parts_in_any_order(s3, bucket):
    parts = {3: content(3, 5 * MIB + 3), 1: content(1, 5 * MIB), 7: content(7, 100), 2: content(2, 5 * MIB + 2)}
    k, done = upload(s3, bucket, "k", parts, ContentType="text/z", Metadata={"m": "1"})
    refused("404", lambda: s3.head_object(Bucket=bucket, Key="k"), 404)
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "listed before it is complete")
    ordered = [parts[number] for number in sorted(parts)]
    answer = complete(s3, k, done)
    equal(answer["ETag"], etag_of(ordered), "ETag")
    found = s3.get_object(Bucket=bucket, Key="k")
    equal((found["ETag"], found["ContentType"], found["Metadata"]), (etag_of(ordered), "text/z", {"m": "1"}), "headers")
    whole = b"".join(ordered)
    equal(sha256(found["Body"].read()), sha256(whole), "bytes")
    for first, last in ((0, 0), (5 * MIB - 1, 5 * MIB), (5 * MIB - 10, 10 * MIB + 10), (len(whole) - 101, len(whole) - 1)):
        got = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={first}-{last}")["Body"].read()
        equal(sha256(got), sha256(whole[first : last + 1]), f"range {first}-{last}")
    refused("NoSuchUpload", lambda: s3.list_parts(**k), 404)


def a_part_again_replaces_it(s3, bucket):
    k, _ = upload(s3, bucket, "k", {1: content("old", 6 * MIB), 2: b"tail"})
    new = content("new", 5 * MIB)
    etag = s3.upload_part(**k, PartNumber=1, Body=new)["ETag"]
    listed = s3.list_parts(**k)["Parts"]
    equal([(p["PartNumber"], p["Size"]) for p in listed], [(1, 5 * MIB), (2, 4)], "parts")
    complete(s3, k, [{"PartNumber": 1, "ETag": etag}, {"PartNumber": 2, "ETag": listed[1]["ETag"]}])
    equal(sha256(s3.get_object(Bucket=bucket, Key="k")["Body"].read()), sha256(new + b"tail"), "bytes")


def parts_left_out_are_dropped(s3, bucket):
    parts = {1: content(1, 5 * MIB), 2: content(2, 5 * MIB), 3: b"end"}
    k, done = upload(s3, bucket, "k", parts)
    complete(s3, k, [done[0], done[2]])
    equal(sha256(s3.get_object(Bucket=bucket, Key="k")["Body"].read()), sha256(parts[1] + parts[3]), "bytes")


def copies_of_parts(s3, bucket):
    source = content("source", 12 * MIB)
    s3.put_object(Bucket=bucket, Key="source", Body=source)
    k, done = upload(s3, bucket, "k", {1: content(1, 5 * MIB)})
    copied = s3.upload_part_copy(
        **k, PartNumber=2, CopySource={"Bucket": bucket, "Key": "source"}, CopySourceRange=f"bytes=1000-{6 * MIB + 999}"
    )
    whole = s3.upload_part_copy(**k, PartNumber=3, CopySource={"Bucket": bucket, "Key": "source"})
    done += [
        {"PartNumber": 2, "ETag": copied["CopyPartResult"]["ETag"]},
        {"PartNumber": 3, "ETag": whole["CopyPartResult"]["ETag"]},
    ]
    parts = [content(1, 5 * MIB), source[1000 : 6 * MIB + 1000], source]
    equal(complete(s3, k, done)["ETag"], etag_of(parts), "ETag")
    s3.delete_object(Bucket=bucket, Key="source")
    found = s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    equal(sha256(found), sha256(b"".join(parts)), "bytes, without the source")


def aborts_and_listings(s3, bucket):
    k, _ = upload(s3, bucket, "a/k", {1: content(1, 5 * MIB), 2: b"x"})
    other, _ = upload(s3, bucket, "b", {1: b"y"})
    listed = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    expected = [("a/k", k["UploadId"]), ("b", other["UploadId"])]
    equal([(u["Key"], u["UploadId"]) for u in listed], expected, "uploads")
    filtered = s3.list_multipart_uploads(Bucket=bucket, Prefix="b").get("Uploads", [])
    equal([u["Key"] for u in filtered], ["b"], "uploads with a prefix")
    common = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    equal([p["Prefix"] for p in common.get("CommonPrefixes", [])], ["a/"], "uploads with a delimiter")
    page = s3.list_parts(**k, MaxParts=1)
    equal((page["IsTruncated"], [p["PartNumber"] for p in page["Parts"]]), (True, [1]), "first page of parts")
    page = s3.list_parts(**k, MaxParts=1, PartNumberMarker=page["NextPartNumberMarker"])
    equal((page["IsTruncated"], [p["PartNumber"] for p in page["Parts"]]), (False, [2]), "second page of parts")
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1)
    equal((page["IsTruncated"], len(page["Uploads"])), (True, 1), "first page of uploads")
    markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1, **markers)
    equal((page["IsTruncated"], [u["Key"] for u in page["Uploads"]]), (False, ["b"]), "second page of uploads")
    s3.abort_multipart_upload(**k)
    refused("NoSuchUpload", lambda: s3.abort_multipart_upload(**k), 404)
    refused("NoSuchUpload", lambda: s3.upload_part(**k, PartNumber=3, Body=b""), 404)
    s3.abort_multipart_upload(**other)
    equal(s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []), [], "after the aborts")
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "objects")


def errors(s3, bucket):
    k, done = upload(s3, bucket, "k", {1: content(1, 5 * MIB), 2: b"small", 3: b"end"})
    refused("InvalidPartOrder", lambda: complete(s3, k, [done[1], done[0]]), 400)
    refused("EntityTooSmall", lambda: complete(s3, k, done), 400)
    refused("InvalidPart", lambda: complete(s3, k, [done[0], {"PartNumber": 9, "ETag": done[0]["ETag"]}]), 400)
    refused("InvalidPart", lambda: complete(s3, k, [{"PartNumber": 1, "ETag": done[1]["ETag"]}]), 400)
    refused("MalformedXML", lambda: complete(s3, k, []), 400)
    refused("InvalidArgument", lambda: s3.upload_part(**k, PartNumber=10001, Body=b""), 400)
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "objects after the errors")
    complete(s3, k, [done[0], done[2]])
    equal(s3.head_object(Bucket=bucket, Key="k")["ContentLength"], 5 * MIB + 3, "it can still be completed")


def conditional_completion(s3, bucket):
    first, parts = upload(s3, bucket, "k", {1: b"one"})
    second, other = upload(s3, bucket, "k", {1: b"two"})
    complete(s3, first, parts, IfNoneMatch="*")
    refused("PreconditionFailed", lambda: complete(s3, second, other, IfNoneMatch="*"), 412)
    equal(s3.get_object(Bucket=bucket, Key="k")["Body"].read(), b"one", "bytes")


run(
    a_large_file,
    parts_in_any_order,
    a_part_again_replaces_it,
    parts_left_out_are_dropped,
    copies_of_parts,
    aborts_and_listings,
    errors,
    conditional_completion,
)
