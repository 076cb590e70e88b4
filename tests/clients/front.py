"""What clients must not be able to do, and what they may expect of an edge that fails closed."""

import hashlib
import http.client
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from s3 import ENDPOINT, client, content, equal, refused, run


def ask(method, url, headers=(), body=None):
    """Status, headers and body of a request as it is: nothing is added but its length."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    headers = dict(headers)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body is not None or method in ("PUT", "POST"):
        connection.putheader("Content-Length", str(len(body or b"")))
    connection.endheaders(body or b"")
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def sign_v4():
    return client(signature_version="s3v4")


def unsigned_headers_do_nothing(s3, bucket):
    s3.put_object(Bucket=bucket, Key="secret", Body=b"secret")
    target = {"Bucket": bucket, "Key": "drop"}
    for maker in (s3, sign_v4()):
        url = maker.generate_presigned_url("put_object", Params=target)
        status, _, _ = ask("PUT", url, [("x-amz-copy-source", f"/{bucket}/secret")])
        equal(status, 403, "a copy by a presigned PUT")
        refused("404", lambda: s3.head_object(**target), 404)
        status, _, _ = ask("PUT", url, body=b"mine")
        equal((status, s3.get_object(**target)["Body"].read()), (200, b"mine"), "a plain one")
        s3.delete_object(**target)


def what_is_unknown_is_not_run_as_something_else(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"precious")
    for call in (
        lambda: s3.put_object_annotation(Bucket=bucket, Key="k", AnnotationName="n", AnnotationPayload=b"x"),
        lambda: s3.delete_object_annotation(Bucket=bucket, Key="k", AnnotationName="n"),
        lambda: s3.rename_object(Bucket=bucket, Key="l", RenameSource="k"),
        lambda: s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": []}),
        lambda: s3.put_object_acl(Bucket=bucket, Key="k", ACL="private"),
        lambda: s3.delete_bucket_policy(Bucket=bucket),
        lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
    ):
        refused("NotImplemented", call, 501)
    equal(s3.get_object(Bucket=bucket, Key="k")["Body"].read(), b"precious", "the object")


def what_is_not_done_is_refused(s3, bucket):
    put = lambda **more: lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"x", **more)
    begin = lambda **more: lambda: s3.create_multipart_upload(Bucket=bucket, Key="k", **more)
    for make in (put, begin):
        for more in (
            {"ServerSideEncryption": "AES256"},
            {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0" * 32},
            {"Tagging": "a=b"},
            {"ObjectLockLegalHoldStatus": "ON"},
        ):
            refused("NotImplemented", make(**more), 501)
        refused("AccessControlListNotSupported", make(ACL="public-read"), 400)
        refused("InvalidStorageClass", make(StorageClass="GLACIER"), 400)
    refused("AccessDenied", put(ExpectedBucketOwner="111122223333"), 403)
    put(ACL="private", StorageClass="STANDARD")()


def what_a_bucket_does_not_have_is_said(s3, bucket):
    for code, call in (
        ("NoSuchBucketPolicy", s3.get_bucket_policy),
        ("NoSuchCORSConfiguration", s3.get_bucket_cors),
        ("NoSuchTagSet", s3.get_bucket_tagging),
        ("NoSuchLifecycleConfiguration", s3.get_bucket_lifecycle_configuration),
        ("ServerSideEncryptionConfigurationNotFoundError", s3.get_bucket_encryption),
        ("ObjectLockConfigurationNotFoundError", s3.get_object_lock_configuration),
        ("NoSuchPublicAccessBlockConfiguration", s3.get_public_access_block),
        ("OwnershipControlsNotFoundError", s3.get_bucket_ownership_controls),
        ("NoSuchWebsiteConfiguration", s3.get_bucket_website),
        ("ReplicationConfigurationNotFoundError", s3.get_bucket_replication),
    ):
        answer = refused(code, lambda: call(Bucket=bucket), 404)
        equal(bool(answer["ResponseMetadata"]["RequestId"]), True, "a request id")
    equal(s3.get_bucket_request_payment(Bucket=bucket)["Payer"], "BucketOwner", "who pays")
    equal(s3.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"], "FULL_CONTROL", "an ACL")
    for call in (s3.get_bucket_logging, s3.get_bucket_notification_configuration, s3.get_bucket_accelerate_configuration):
        call(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=b"hello")
    equal(s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"], [], "tags")
    wanted = ["ETag", "ObjectSize", "StorageClass"]
    found = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=wanted)
    equal((found["ObjectSize"], found["StorageClass"]), (5, "STANDARD"), "attributes")
    equal(found["ETag"].strip('"'), hashlib.md5(b"hello").hexdigest(), "the ETag")


def a_bucket_is_emptied_as_scripts_do(s3, bucket):
    for number in range(7):
        s3.put_object(Bucket=bucket, Key=f"d/{number}", Body=b"x")
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 3})
    found = [(v["Key"], v["VersionId"], v["IsLatest"]) for page in pages for v in page.get("Versions", [])]
    equal(found, [(f"d/{number}", "null", True) for number in range(7)], "versions")
    resource = boto3.resource("s3", endpoint_url=ENDPOINT, config=Config(s3={"addressing_style": "path"}))
    resource.Bucket(bucket).object_versions.delete()
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "keys")


def form(fields, file=b"data", name="f.txt"):
    out = b""
    for field, value in fields:
        out += f'--B\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
    out += f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n'.encode()
    return out + file + b"\r\n--B--\r\n"


def forms_are_judged_before_their_file(s3, bucket):
    def post(made, more=(), file=b"data"):
        fields = list(made["fields"].items()) + list(more)
        return ask("POST", made["url"], [("content-type", "multipart/form-data; boundary=B")], form(fields, file))

    for maker in (s3, sign_v4()):
        rules = [["starts-with", "$key", "u/"], ["content-length-range", 2, 10], ["eq", "$success_action_status", "201"]]
        made = maker.generate_presigned_post(bucket, "u/${filename}", Conditions=rules)
        asks = [("success_action_status", "201")]
        status, headers, body = post(made, asks)
        equal((status, headers["Location"]), (201, f"/{bucket}/u/f.txt"), "a form")
        equal(f"<Key>u/f.txt</Key>".encode() in body, True, "its document")
        equal(s3.get_object(Bucket=bucket, Key="u/f.txt")["Body"].read(), b"data", "its file")
        for what, (status, _, body), code in (
            ("too long", post(made, asks, b"x" * 11), b"EntityTooLarge"),
            ("too short", post(made, asks, b"x"), b"EntityTooSmall"),
            ("a field of which the policy says nothing", post(made, asks + [("x-amz-meta-a", "1")]), b"AccessDenied"),
            ("a condition that does not hold", post(made), b"AccessDenied"),
        ):
            equal((status in (400, 403), code in body), (True, True), f"{what}: {status} {body}")
    made["fields"]["policy"] = made["fields"]["policy"][:-4] + "AAAA"
    equal(post(made, asks)[0] in (400, 403), True, "another policy")
    status, _, _ = ask("POST", f"{ENDPOINT}/{bucket}", [("content-type", "multipart/form-data; boundary=B")], form([("key", "k")]))
    equal(status, 403, "a form that nobody signed")


def hosts_and_regions(s3, bucket):
    parts = urlsplit(ENDPOINT)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    status, _, body = ask("GET", url, [("Host", f"{bucket}.localhost:{parts.port}")])
    equal((status, b"--domain" in body), (400, True), "a bucket in the host")
    elsewhere = boto3.client("s3", endpoint_url=ENDPOINT, region_name="eu-west-1", config=Config(s3={"addressing_style": "path"}))
    url = f"{ENDPOINT}/{bucket}/k"
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest("GET", url, headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    SigV4Auth(boto3.Session().get_credentials(), "s3", "eu-west-1").add_auth(request)
    status, _, body = ask("GET", url, request.headers.items())
    equal((status, b"<Region>us-east-1</Region>" in body), (400, True), f"another region: {body}")
    equal(elsewhere.get_object(Bucket=bucket, Key="k")["Body"].read(), b"x", "boto3 tries the right one")
    equal(s3.head_bucket(Bucket=bucket)["BucketRegion"], "us-east-1", "the region of a bucket")


def checksums_of_documents(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=content(1, 1000))
    document = {"Objects": [{"Key": "a"}]}
    s3.meta.events.register_first("before-sign.s3.DeleteObjects", wrong_sum)
    refused("BadDigest", lambda: s3.delete_objects(Bucket=bucket, Delete=document), 400)
    s3.head_object(Bucket=bucket, Key="a")


def wrong_sum(request, **_):
    for name in list(request.headers):
        if name.lower().startswith("x-amz-checksum-") or name.lower() == "content-md5":
            del request.headers[name]
    request.headers["x-amz-checksum-crc32"] = "AAAAAA=="


run(
    unsigned_headers_do_nothing,
    what_is_unknown_is_not_run_as_something_else,
    what_is_not_done_is_refused,
    what_a_bucket_does_not_have_is_said,
    a_bucket_is_emptied_as_scripts_do,
    forms_are_judged_before_their_file,
    hosts_and_regions,
    checksums_of_documents,
)
