"""Listings against a model of them: prefixes, delimiters, pages, encoding; versions 1 and 2."""

import random
from datetime import datetime, timedelta, timezone

from s3 import client, equal, run


def model(keys, prefix, delimiter, after=""):
    """Keys and common prefixes, in order."""
    entries = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix) or key.encode() <= after.encode():
            continue
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            common = prefix + rest[: rest.index(delimiter) + len(delimiter)]
            if ("prefix", common) not in entries:
                entries.append(("prefix", common))
        else:
            entries.append(("key", key))
    return entries


def entries(page):
    found = [("key", entry["Key"]) for entry in page.get("Contents", [])]
    found += [("prefix", entry["Prefix"]) for entry in page.get("CommonPrefixes", [])]
    return sorted(found, key=lambda entry: entry[1].encode())


def a_tree():
    rng = random.Random(7)
    parts = ["a", "b", "photos", "x y", "ä", "日本", "+plus", "&amp", "<lt>", "%25", "-", "_", "~", "'"]
    keys = {"/".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) for _ in range(250)}
    keys |= {"a/", "a//b", "/leading", "trailing/", "dots/./..", "a\u007fb", "zz" * 500, "b.c", "b/c", "b0c"}
    return sorted(keys)


def fill(s3, bucket):
    keys = a_tree()
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode()[:100])
    return keys


def pages_v2(s3, bucket):
    keys = fill(s3, bucket)
    for prefix in ("", "a", "a/", "photos/", "ä", "none", "b"):
        for delimiter in ("", "/", "a", "//"):
            for size in (1000, 7, 1):
                if size == 1 and (prefix, delimiter) not in (("", "/"), ("a/", ""), ("b", "/")):
                    continue
                walk_v2(s3, bucket, keys, prefix, delimiter, size)


def walk_v2(s3, bucket, keys, prefix, delimiter, size):
    what = f"prefix {prefix!r} delimiter {delimiter!r} pages of {size}"
    expected = model(keys, prefix, delimiter)
    found, asked = [], {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter, "MaxKeys": size}
    while True:
        page = s3.list_objects_v2(**asked)
        got = entries(page)
        equal(page["KeyCount"], len(got), f"{what}: KeyCount")
        equal(len(got) <= size, True, f"{what}: page size")
        found += got
        if not page["IsTruncated"]:
            break
        equal(len(got), size, f"{what}: a truncated page is full")
        asked["ContinuationToken"] = page["NextContinuationToken"]
        if len(found) > len(keys):
            raise AssertionError(f"{what}: it never ends")
    equal(found, expected, what)


def pages_v1(s3, bucket):
    keys = fill(s3, bucket)
    for prefix, delimiter, size in (("", "", 50), ("", "/", 3), ("a/", "/", 2), ("", "", 1000)):
        what = f"v1 prefix {prefix!r} delimiter {delimiter!r} pages of {size}"
        expected = model(keys, prefix, delimiter)
        found, marker = [], ""
        while True:
            page = s3.list_objects(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=size, Marker=marker)
            got = entries(page)
            found += got
            if not page["IsTruncated"]:
                break
            marker = page.get("NextMarker") or got[-1][1]
            if len(found) > len(keys):
                raise AssertionError(f"{what}: it never ends")
        equal(found, expected, what)


def start_after(s3, bucket):
    keys = fill(s3, bucket)
    for after in ("a", "a/", "b/", "b/c", "photos/", "photos/z", "zzz", "ä"):
        for delimiter in ("", "/"):
            if delimiter and delimiter in after:
                continue  # Whether the common prefix around it is listed is not written down anywhere.
            page = s3.list_objects_v2(Bucket=bucket, StartAfter=after, Delimiter=delimiter)
            equal(entries(page), model(keys, "", delimiter, after), f"after {after!r} delimiter {delimiter!r}")


def entries_are_complete(s3, bucket):
    started = datetime.now(timezone.utc)
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    for page in (s3.list_objects_v2(Bucket=bucket, FetchOwner=True), s3.list_objects(Bucket=bucket)):
        entry = page["Contents"][0]
        equal((entry["ETag"], entry["Size"], entry["StorageClass"]), (put["ETag"], 5, "STANDARD"), "entry")
        head = s3.head_object(Bucket=bucket, Key="k")
        # To the millisecond, or whoever syncs finds a file newer than the object that was made of it.
        equal(entry["LastModified"] >= started - timedelta(milliseconds=1), True, "LastModified after the start")
        # The head says it in seconds.
        equal(entry["LastModified"].replace(microsecond=0), head["LastModified"], "LastModified")
    page = s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    equal((page["KeyCount"], page["IsTruncated"], entries(page)), (0, False, []), "MaxKeys=0")
    equal(s3.list_objects_v2(Bucket=bucket, MaxKeys=5000)["MaxKeys"] <= 5000, True, "MaxKeys beyond the most")


def more_than_a_thousand(s3, bucket):
    keys = [f"k{i:05}" for i in range(1105)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    page = s3.list_objects_v2(Bucket=bucket, MaxKeys=5000)
    equal((len(entries(page)), page["IsTruncated"]), (1000, True), "first page")
    everything = [e["Key"] for p in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket) for e in p["Contents"]]
    equal(everything, keys, "all pages")


def url_encoding(s3, bucket):
    """boto3 asks for encoding-type=url by itself and decodes; here it is asked for and looked at raw."""
    import urllib.request

    s3.put_object(Bucket=bucket, Key="a b/ü&\x01.txt", Body=b"")
    asked = {"Bucket": bucket, "EncodingType": "url", "Delimiter": "/"}
    url = client(signature_version="s3v4").generate_presigned_url("list_objects_v2", Params=asked)
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    equal("<EncodingType>url</EncodingType>" in text, True, text)
    # '/' may stay or be %2F, a space may be + or %20.
    shapes = [f"<Prefix>a{space}b{slash}</Prefix>" for space in ("+", "%20") for slash in ("/", "%2F")]
    equal(any(shape in text for shape in shapes), True, text)
    equal([e["Key"] for e in s3.list_objects_v2(Bucket=bucket)["Contents"]], ["a b/ü&\x01.txt"], "decoded")


run(pages_v2, pages_v1, start_after, entries_are_complete, more_than_a_thousand, url_encoding)
