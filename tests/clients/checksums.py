"""Checksums of the client's: as headers, as trailers, of whole objects and of parts; and payloads signed in chunks."""

import base64
import hashlib
import hmac
import http.client
import os
import urllib.parse
import zlib
from datetime import datetime, timezone

from awscrt import checksums as crt
from s3 import ENDPOINT, MIB, content, equal, refused, run, sha256


def b64(number, size):
    return base64.b64encode(number.to_bytes(size, "big")).decode()


CHECKSUMS = {
    "CRC32": lambda data: b64(zlib.crc32(data), 4),
    "CRC32C": lambda data: b64(crt.crc32c(data), 4),
    "CRC64NVME": lambda data: b64(crt.crc64nvme(data), 8),
    "SHA1": lambda data: base64.b64encode(hashlib.sha1(data).digest()).decode(),
    "SHA256": lambda data: base64.b64encode(hashlib.sha256(data).digest()).decode(),
}
SIZES = [0, 1, 65536, MIB + 1, 5 * MIB]


def checksums_of_whole_bodies(s3, bucket):
    """Over plain HTTP botocore sends the checksum of a seekable body as a header."""
    for algorithm, compute in CHECKSUMS.items():
        for size in SIZES:
            data, key = content((algorithm, size).__repr__(), size), f"{algorithm}-{size}"
            put = s3.put_object(Bucket=bucket, Key=key, Body=data, ChecksumAlgorithm=algorithm)
            equal(put.get(f"Checksum{algorithm}"), compute(data), f"{key}: what the put answers")
            got = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            equal(got.get(f"Checksum{algorithm}"), compute(data), f"{key}: what the get answers")
            equal(sha256(got["Body"].read()), sha256(data), key)
            head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            equal(head.get(f"Checksum{algorithm}"), compute(data), f"{key}: what the head answers")


def wrong_checksums_are_refused(s3, bucket):
    for algorithm, compute in CHECKSUMS.items():
        wrong = {f"Checksum{algorithm}": compute(b"other")}
        refused("BadDigest", lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"data", **wrong), 400)
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "objects")


def checksums_of_parts(s3, bucket):
    for algorithm in ("CRC32", "CRC64NVME", "SHA256"):
        k = {"Bucket": bucket, "Key": algorithm}
        id = s3.create_multipart_upload(**k, ChecksumAlgorithm=algorithm)["UploadId"]
        parts, done = [content(1, 5 * MIB), content(2, 1000)], []
        for number, data in enumerate(parts, 1):
            part = s3.upload_part(**k, UploadId=id, PartNumber=number, Body=data, ChecksumAlgorithm=algorithm)
            name = f"Checksum{algorithm}"
            equal(part.get(name), CHECKSUMS[algorithm](data), f"{algorithm} of part {number}")
            done.append({"PartNumber": number, "ETag": part["ETag"], name: part[name]})
        s3.complete_multipart_upload(**k, UploadId=id, MultipartUpload={"Parts": done})
        equal(sha256(s3.get_object(**k)["Body"].read()), sha256(b"".join(parts)), algorithm)


# From here on by hand: aws-chunked bodies, as the newer SDKs send them.

HOST = urllib.parse.urlparse(ENDPOINT).netloc
ACCESS, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
EMPTY = hashlib.sha256(b"").hexdigest()


def hmac256(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Signer:
    """One request's signature, and those of its chunks, each of which signs the one before."""

    def __init__(self, bucket, key, headers, payload):
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        self.date, self.scope = now, f"{now[:8]}/us-east-1/s3/aws4_request"
        self.key = ("AWS4" + SECRET).encode()
        for part in self.scope.split("/"):
            self.key = hmac256(self.key, part)
        self.headers = {**headers, "host": HOST, "x-amz-date": now, "x-amz-content-sha256": payload}
        names = ";".join(sorted(self.headers))
        lines = "".join(f"{name}:{self.headers[name]}\n" for name in sorted(self.headers))
        request = f"PUT\n/{bucket}/{key}\n\n{lines}\n{names}\n{payload}"
        self.signature = self.sign("AWS4-HMAC-SHA256", hashlib.sha256(request.encode()).hexdigest())
        credential = f"{ACCESS}/{self.scope}"
        authorization = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={self.signature}"
        self.headers["authorization"] = authorization

    def sign(self, algorithm, *rest):
        text = "\n".join([algorithm, self.date, self.scope, *rest])
        return hmac256(self.key, text).hex()

    def chunk(self, data):
        digest = hashlib.sha256(data).hexdigest()
        self.signature = self.sign("AWS4-HMAC-SHA256-PAYLOAD", self.signature, EMPTY, digest)
        return f"{len(data):x};chunk-signature={self.signature}\r\n".encode() + data + b"\r\n"

    def trailer(self, name, value):
        digest = hashlib.sha256(f"{name}:{value}\n".encode()).hexdigest()
        self.signature = self.sign("AWS4-HMAC-SHA256-TRAILER", self.signature, digest)
        return f"{name}:{value}\r\nx-amz-trailer-signature:{self.signature}\r\n\r\n".encode()


def chunks(data, size=65536):
    return [data[at : at + size] for at in range(0, len(data), size)]


def send(bucket, key, headers, body):
    connection = http.client.HTTPConnection(HOST, timeout=60)
    headers = {name: value for name, value in headers.items() if name != "host"}
    connection.request("PUT", f"/{bucket}/{key}", body=body, headers={**headers, "content-length": str(len(body))})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def put_chunked(bucket, key, data, trailer=None, signed=True, tamper=None):
    """An aws-chunked PUT. `trailer` is (algorithm, value)."""
    kinds = {
        (True, False): "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        (True, True): "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        (False, True): "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    }
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(data))}
    if trailer:
        name, value = f"x-amz-checksum-{trailer[0].lower()}", trailer[1]
        headers["x-amz-trailer"] = name
    signer = Signer(bucket, key, headers, kinds[signed, trailer is not None])
    if signed:
        body = b"".join(signer.chunk(piece) for piece in chunks(data))
        last = signer.chunk(b"")
        body += last if not trailer else last.removesuffix(b"\r\n") + signer.trailer(name, value)
    else:
        body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in chunks(data))
        body += f"0\r\n{name}:{value}\r\n\r\n".encode()
    return send(bucket, key, signer.headers, tamper(body) if tamper else body)


def check_stored(s3, bucket, key, data):
    found = s3.get_object(Bucket=bucket, Key=key)
    equal(sha256(found["Body"].read()), sha256(data), key)
    equal(found.get("ContentEncoding", ""), "", f"{key}: aws-chunked is not stored")


def chunk_signatures(s3, bucket):
    for size in SIZES:
        data = content(f"chunked {size}", size)
        equal(put_chunked(bucket, f"signed-{size}", data), (200, ""), f"{size} bytes")
        check_stored(s3, bucket, f"signed-{size}", data)


def trailing_checksums(s3, bucket):
    for signed in (True, False):
        for algorithm, compute in CHECKSUMS.items():
            for size in SIZES:
                data, key = content(f"trailer {size}", size), f"{algorithm}-{size}-{signed}"
                equal(put_chunked(bucket, key, data, (algorithm, compute(data)), signed), (200, ""), key)
                check_stored(s3, bucket, key, data)
                head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
                equal(head.get(f"Checksum{algorithm}"), compute(data), f"{key}: what the head answers")


def bad_chunks_are_refused(s3, bucket):
    data = content("bad", 200_000)
    flip = lambda body: body[:100_000] + bytes([body[100_000] ^ 1]) + body[100_001:]
    status, text = put_chunked(bucket, "flipped", data, tamper=flip)
    equal((status, "SignatureDoesNotMatch" in text), (403, True), text)
    for signed in (True, False):
        for algorithm, compute in CHECKSUMS.items():
            status, text = put_chunked(bucket, "wrong", data, (algorithm, compute(b"other")), signed)
            equal((status, "BadDigest" in text), (400, True), f"{algorithm} signed: {signed}: {text}")
    equal(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "objects")
    equal(put_chunked(bucket, "good", data), (200, ""), "the next request")
    check_stored(s3, bucket, "good", data)


run(
    checksums_of_whole_bodies,
    wrong_checksums_are_refused,
    checksums_of_parts,
    chunk_signatures,
    trailing_checksums,
    bad_chunks_are_refused,
)
