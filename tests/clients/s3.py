"""What the client scripts share: a boto3 client of the cluster, and checks that say what they saw."""

import hashlib
import os
import random
import re
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["CAIRN_ENDPOINT"]
MIB = 1024 * 1024


def client(**config):
    """A client that asks once: a retry would hide a failure."""
    settings = {"retries": {"max_attempts": 0}, "s3": {"addressing_style": "path"}, "read_timeout": 120} | config
    return boto3.client("s3", endpoint_url=ENDPOINT, config=Config(**settings))


def documented(heading, places=None):
    """The block below a heading of docs/clients.md, with the keys of this test, and its `places` (the server)."""
    page = (Path(__file__).parents[2] / "docs/clients.md").read_text()
    block = re.search(rf"^### {re.escape(heading)}\n.*?^```\w+\n(.*?)^```$", page, re.M | re.S)[1]
    for theirs, ours in (places or {"HOST:9000": ENDPOINT.removeprefix("http://")}).items():
        equal(theirs in block, True, f"{theirs!r} is below {heading}")
        block = block.replace(theirs, ours)
    keys = {"ACCESS": os.environ["AWS_ACCESS_KEY_ID"], "SECRET": os.environ["AWS_SECRET_ACCESS_KEY"]}
    return re.sub(r"\b(ACCESS|SECRET)_KEY\b", lambda found: keys[found[1]], block)


def content(seed, size):
    return random.Random(seed).randbytes(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def equal(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: found {short(found)}, expected {short(expected)}")


def short(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}… ({len(text)} characters)"


def refused(code, call, status=None):
    """The call must fail with this S3 error code."""
    try:
        call()
    except ClientError as error:
        equal(error.response["Error"]["Code"], code, "error code")
        if status is not None:
            equal(error.response["ResponseMetadata"]["HTTPStatusCode"], status, f"status of {code}")
        return error.response
    raise AssertionError(f"{code} expected, but the call succeeded")


def run(*checks):
    """Runs every check in a bucket of its own, and tells of all that fail."""
    import traceback

    failed = []
    for number, check in enumerate(checks):
        s3, bucket = client(), f"check-{number}"
        try:
            s3.create_bucket(Bucket=bucket)
            check(s3, bucket)
            print(f"ok      {check.__name__}", flush=True)
        except Exception:
            failed.append(check.__name__)
            print(f"FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(checks)} failed: {', '.join(failed)}")
