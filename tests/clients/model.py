"""Every operation of S3 that botocore knows, with every option: done as meant, or refused in S3's words.

The calls are made from the service model of the installed botocore. Each works, or is answered with an S3
error document: never 500, never a cut connection, never an answer that botocore cannot read. After each call
all objects, buckets and uploads are as they were, but for what the operation is meant to do. What works is
listed here, operation by operation and option by option: whatever else works is an option that was dropped
without a word.
"""

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from urllib.parse import unquote
from xml.etree import ElementTree

from botocore import xform_name
from botocore.exceptions import ClientError
from s3 import client, content, equal, refused, run, short

BODY = b"what is put"
PART = content("part", 1000)
KEPT = content("kept", 100_000)
CORS = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://before.example"]}]}
NOW = datetime.now(timezone.utc).replace(microsecond=0)
BEFORE, AFTER = NOW - timedelta(days=1), NOW + timedelta(days=1)
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()

# What works with its required arguments: what it may change, and the options that it honours. Of an option
# with two values the right one goes with what is there, and the wrong one must be refused.
OWNER = " ExpectedBucketOwner=right"
PAYER = OWNER + " RequestPayer=requester"
SUMS = "".join(f" ChecksumAlgorithm={one}" for one in "CRC32 CRC32C CRC64NVME SHA1 SHA256 SHA512".split())
SUMS += "".join(f" ChecksumAlgorithm={one}" for one in "XXHASH64 XXHASH3 XXHASH128".split())
TYPES = " ChecksumType=COMPOSITE ChecksumType=FULL_OBJECT"
HEADERS = """ ACL=private ACL=bucket-owner-read ACL=bucket-owner-full-control CacheControl ContentDisposition
    ContentEncoding ContentLanguage ContentType Expires Metadata StorageClass=STANDARD WebsiteRedirectLocation
    ObjectLockLegalHoldStatus=OFF"""
OF_SOURCE = """ CopySourceIfMatch=right CopySourceIfNoneMatch=right CopySourceIfModifiedSince=right
    CopySourceIfUnmodifiedSince=right ExpectedSourceBucketOwner=right"""
READ = """ IfMatch=right IfModifiedSince=right IfNoneMatch=right IfUnmodifiedSince=right Range
    ResponseCacheControl ResponseContentDisposition ResponseContentEncoding ResponseContentLanguage
    ResponseContentType ResponseExpires VersionId=right PartNumber ChecksumMode=ENABLED"""
LIST = " Delimiter EncodingType=url Prefix"
LIST_OBJECTS = LIST + " MaxKeys OptionalObjectAttributes=['RestoreStatus']"
RULE = " CORSConfiguration.CORSRules."
CORS_RULE = RULE + RULE.join("ID AllowedHeaders ExposeHeaders MaxAgeSeconds".split())
REGION = " CreateBucketConfiguration CreateBucketConfiguration.LocationConstraint=us-east-1"
DONE = {
    "AbortMultipartUpload": ("uploads, parts", PAYER),
    "CompleteMultipartUpload": (
        "uploads, parts, object target",
        PAYER + TYPES + " MpuObjectSize=right IfMatch=right IfNoneMatch=right",
    ),
    "CopyObject": (
        "object copy",
        PAYER + HEADERS + OF_SOURCE + SUMS + """ ChecksumAlgorithm=MD5 IfMatch=right IfNoneMatch=right
        MetadataDirective=COPY MetadataDirective=REPLACE TaggingDirective=COPY TaggingDirective=REPLACE""",
    ),
    "CreateBucket": (
        "buckets",
        REGION + " ACL=private ObjectLockEnabledForBucket=False ObjectOwnership=BucketOwnerEnforced",
    ),
    "CreateMultipartUpload": ("uploads, parts", PAYER + HEADERS + SUMS + TYPES + " ChecksumAlgorithm=MD5"),
    "DeleteBucket": ("buckets", OWNER),
    "DeleteBucketCors": ("cors", OWNER),
    "DeleteObject": (
        "object target",
        PAYER + " IfMatch=right VersionId=right BypassGovernanceRetention=False",
    ),
    "DeleteObjects": (
        "object target",
        PAYER + SUMS + """ Delete.Objects.VersionId=right Delete.Objects.ETag=right Delete.Quiet=True
        Delete.Quiet=False BypassGovernanceRetention=False""",
    ),
    "GetBucketAccelerateConfiguration": ("", PAYER),
    "GetBucketAcl": ("", OWNER),
    "GetBucketCors": ("", OWNER),
    "GetBucketLocation": ("", OWNER),
    "GetBucketLogging": ("", OWNER),
    "GetBucketNotification": ("", OWNER),
    "GetBucketNotificationConfiguration": ("", OWNER),
    "GetBucketRequestPayment": ("", OWNER),
    "GetBucketVersioning": ("", OWNER),
    "GetObject": ("", PAYER + READ),
    "GetObjectAcl": ("", PAYER + " VersionId=right"),
    "GetObjectAttributes": ("", PAYER + " VersionId=right MaxParts PartNumberMarker"),
    "GetObjectTagging": ("", PAYER + " VersionId=right"),
    "HeadBucket": ("", OWNER),
    "HeadObject": ("", PAYER + READ),
    "ListBucketAnalyticsConfigurations": ("", OWNER + " ContinuationToken"),
    "ListBucketInventoryConfigurations": ("", OWNER + " ContinuationToken"),
    "ListBucketMetricsConfigurations": ("", OWNER + " ContinuationToken"),
    "ListBuckets": ("", " MaxBuckets Prefix ContinuationToken BucketRegion=right"),
    "ListMultipartUploads": ("", PAYER + LIST + " KeyMarker MaxUploads UploadIdMarker"),
    "ListObjectVersions": ("", PAYER + LIST_OBJECTS + " KeyMarker"),
    "ListObjects": ("", PAYER + LIST_OBJECTS + " Marker"),
    "ListObjectsV2": ("", PAYER + LIST_OBJECTS + " StartAfter FetchOwner=True FetchOwner=False"),
    "ListParts": ("", PAYER + " MaxParts PartNumberMarker"),
    "PutBucketCors": ("cors", OWNER + SUMS + CORS_RULE),
    "PutObject": ("object target", PAYER + HEADERS + SUMS + " ContentLength IfMatch=right IfNoneMatch=right"),
    "UploadPart": ("parts", PAYER + SUMS + " ContentLength"),
    "UploadPartCopy": ("parts", PAYER + OF_SOURCE + " CopySourceRange"),
}

# Reads of configuration that no bucket or object has here, and S3's code for that.
ABSENT = {
    "GetBucketEncryption": "ServerSideEncryptionConfigurationNotFoundError",
    "GetBucketLifecycle": "NoSuchLifecycleConfiguration",
    "GetBucketLifecycleConfiguration": "NoSuchLifecycleConfiguration",
    "GetBucketOwnershipControls": "OwnershipControlsNotFoundError",
    "GetBucketPolicy": "NoSuchBucketPolicy",
    "GetBucketPolicyStatus": "NoSuchBucketPolicy",
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
    "GetBucketTagging": "NoSuchTagSet",
    "GetBucketWebsite": "NoSuchWebsiteConfiguration",
    "GetObjectLegalHold": "NoSuchObjectLockConfiguration",
    "GetObjectLockConfiguration": "ObjectLockConfigurationNotFoundError",
    "GetObjectRetention": "NoSuchObjectLockConfiguration",
    "GetPublicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
}


class World:
    """A bucket with objects and an upload under way, and two further names for buckets."""

    def __init__(self, s3, bucket):
        self.s3, self.bucket, self.new, self.old = s3, bucket, f"{bucket}-new", f"{bucket}-old"
        s3.put_object(
            Bucket=bucket,
            Key="kept",
            Body=KEPT,
            ContentType="text/kept",
            CacheControl="max-age=1",
            Metadata={"kept": "yes"},
            ChecksumAlgorithm="SHA256",
        )
        s3.put_object(Bucket=bucket, Key="kept/below ü +%", Body=b"")
        upload = {"Bucket": bucket, "Key": "kept-of-parts"}
        upload["UploadId"] = s3.create_multipart_upload(**upload, Metadata={"parts": "1"})["UploadId"]
        tag = s3.upload_part(**upload, PartNumber=1, Body=PART)["ETag"]
        s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
        self.upload = None
        self.restore()

    def restore(self):
        """Puts back what operations were meant to change."""
        s3, bucket, state = self.s3, self.bucket, self.state()
        for name, there in ((self.new, False), (self.old, True)):
            if (name in state["buckets"]) != there:
                (s3.create_bucket if there else s3.delete_bucket)(Bucket=name)
        s3.put_object(Bucket=bucket, Key="target", Body=b"before", Metadata={"target": "before"})
        s3.put_object(Bucket=bucket, Key="copy", Body=b"before", ContentType="text/before")
        s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=CORS)
        for key, id in state["uploads"]:
            if id != self.upload:
                s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=id)
        if ("target", self.upload) not in state["uploads"]:
            self.upload = s3.create_multipart_upload(Bucket=bucket, Key="target")["UploadId"]
        part = {"Bucket": bucket, "Key": "target", "UploadId": self.upload}
        self.part_tag = s3.upload_part(**part, PartNumber=1, Body=PART)["ETag"]
        self.before, self.changed = self.state(), False
        self.tags = {name[7:]: one[0] for name, one in self.before.items() if name.startswith("object ")}
        self.modified = self.before["object target"][2]
        self.initiated = self.before["uploads"]["target", self.upload]

    def state(self, whole=False):
        """What there is, by what an operation may change."""
        s3, bucket = self.s3, self.bucket
        state = {"buckets": {b["Name"]: b["CreationDate"] for b in s3.list_buckets()["Buckets"]}}
        for found in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            one = (found["ETag"], found["Size"], found["LastModified"])
            if whole:
                one += self.all_of(found["Key"])
            state[f"object {found['Key']}"] = one
        uploads = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        state["uploads"] = {(u["Key"], u["UploadId"]): u["Initiated"] for u in uploads}
        for key, id in state["uploads"]:
            parts = s3.list_parts(Bucket=bucket, Key=key, UploadId=id).get("Parts", [])
            state[f"parts {id}"] = [(p["PartNumber"], p["ETag"], p["Size"], p["LastModified"]) for p in parts]
        try:
            state["cors"] = s3.get_bucket_cors(Bucket=bucket)["CORSRules"]
        except ClientError as error:
            equal(error.response["Error"]["Code"], "NoSuchCORSConfiguration", "the CORS rules")
            state["cors"] = None
        return state

    def all_of(self, key):
        got = self.s3.get_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        told = {name: value for name, value in got.items() if name not in ("Body", "ResponseMetadata")}
        return hashlib.sha256(got["Body"].read()).hexdigest(), json.dumps(told, default=str, sort_keys=True)


# Arguments, from the shapes.


def named(world, operation, name, shape):
    """Values of arguments that have a meaning, the right one first; None for others."""
    kinds = {
        "structure": dict,
        "string": str,
        "integer": int,
        "long": int,
        "timestamp": datetime,
        "blob": bytes,
    }
    found = meanings(world, operation).get(name)
    return found if found and isinstance(found[0], kinds.get(shape.type_name, ())) else None


def meanings(world, operation):
    is_of_target = operation in DONE and DONE[operation][0] or operation == "ListParts"
    key = "copy" if operation == "CopyObject" else "target" if is_of_target else "kept"
    tag = world.tags[key]
    bucket = {"CreateBucket": world.new, "DeleteBucket": world.old}.get(operation, world.bucket)
    rule = {"AllowedMethods": ["PUT"], "AllowedOrigins": ["https://after.example"]}
    return {
        "Bucket": [bucket],
        "Key": [key],
        "UploadId": [world.upload],
        "PartNumber": [1],
        "CopySource": [f"{world.bucket}/kept"],
        "RenameSource": [f"/{world.bucket}/kept"],
        "CopySourceRange": [f"bytes=0-{len(KEPT) - 1}"],
        "Range": ["bytes=1-2"],
        "Delete": [{"Objects": [{"Key": "target"}]}],
        "MultipartUpload": [{"Parts": [{"PartNumber": 1, "ETag": world.part_tag}]}],
        "CORSConfiguration": [{"CORSRules": [rule]}],
        "Body": [PART if operation == "UploadPart" else BODY],
        "ContentLength": [len(PART if operation == "UploadPart" else BODY)],
        "ContentMD5": [base64.b64encode(hashlib.md5(b"other").digest()).decode()],
        "MpuObjectSize": [len(PART), 1],
        "ETag": [tag, '"0"'],
        "Size": [len(b"before"), 1],
        "LastModifiedTime": [world.modified, BEFORE],
        "IfMatch": [tag, '"0"'],
        "IfMatchSize": [len(b"before"), 1],
        "IfMatchLastModifiedTime": [world.modified, BEFORE],
        "IfMatchInitiatedTime": [world.initiated, BEFORE],
        "IfNoneMatch": ['"0"', "*"],
        "IfModifiedSince": [BEFORE, AFTER],
        "IfUnmodifiedSince": [AFTER, BEFORE],
        "CopySourceIfMatch": [world.tags["kept"], '"0"'],
        "CopySourceIfNoneMatch": ['"0"', world.tags["kept"]],
        "CopySourceIfModifiedSince": [BEFORE, AFTER],
        "CopySourceIfUnmodifiedSince": [AFTER, BEFORE],
        "ExpectedBucketOwner": ["cairn", "111122223333"],
        "ExpectedSourceBucketOwner": ["cairn", "111122223333"],
        "VersionId": ["null", "3sL4kqtJlcpXroDTDmJ"],
        "BucketRegion": ["us-east-1", "eu-west-1"],
        "LocationConstraint": ["us-east-1", "EU", "eu-west-1"],
        "Policy": ['{"Version": "2012-10-17", "Statement": []}'],
        "ContentType": ["text/x"],
        "Expires": [AFTER],
        "WebsiteRedirectLocation": ["/elsewhere"],
        "SSECustomerAlgorithm": ["AES256"],
        "CopySourceSSECustomerAlgorithm": ["AES256"],
        "SSECustomerKey": ["0" * 32],
        "CopySourceSSECustomerKey": ["0" * 32],
        "Tagging": ["a=b"],
        "GrantFullControl": ['id="cairn"'],
    }


def value(world, operation, name, shape, depth=0):
    """A value of a shape: what it requires, and of a union its first member."""
    given = named(world, operation, name, shape)
    if given:
        return given[0]
    kind = shape.type_name
    if kind == "structure":
        first = list(shape.members)[:1] if getattr(shape, "is_tagged_union", False) else []
        wanted = shape.required_members or first
        return {one: value(world, operation, one, shape.members[one], depth + 1) for one in wanted}
    if kind == "list":
        return [value(world, operation, name, shape.member, depth + 1)]
    if kind == "map":
        return {"a": "b"}
    if kind == "string":
        sizes = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32, "SHA512": 64, "MD5": 16}
        sizes |= {"XXHASH64": 8, "XXHASH3": 8, "XXHASH128": 16}
        if name.startswith("Checksum") and name[8:] in sizes:
            return base64.b64encode(bytes(sizes[name[8:]])).decode()
        return shape.enum[0] if shape.enum else "x" * shape.metadata.get("min", 1)
    return {
        "boolean": True,
        "integer": 1,
        "long": 1,
        "float": 1.0,
        "double": 1.0,
        "timestamp": AFTER,
        "blob": BODY,
    }[kind]


def options(world, operation, shape, given, path=""):
    """One option more than what is given, in every place: its name and value as text, and all arguments."""
    for name, member in shape.members.items():
        label = f"{path}{name}"
        if name in given:
            yield from inside(world, operation, name, member, given, label)
            continue
        several = named(world, operation, name, member)
        if several:
            words = ("right", "wrong") if len(several) == 2 else several if len(several) > 2 else ("",)
        else:
            several = words = choices(member)
        for word, one in zip(words, several) if several else [("", value(world, operation, name, member))]:
            yield f"{label}={word}" if word != "" else label, given | {name: one}
        if not several and member.type_name == "structure":
            yield from inside(world, operation, name, member, given | {name: one}, label)


def inside(world, operation, name, member, given, label):
    """Options of a structure that is given already, or of the first one in a list."""
    here = given[name]
    if member.type_name == "list" and member.member.type_name == "structure":
        for text, more in options(world, operation, member.member, here[0], f"{label}."):
            yield text, given | {name: [more]}
    elif member.type_name == "structure":
        for text, more in options(world, operation, member, here, f"{label}."):
            yield text, given | {name: more}


def choices(shape):
    """All values of a boolean, an enumeration, or a list of one of these."""
    if shape.type_name == "boolean":
        return [True, False]
    if shape.type_name == "list":
        return [[one] for one in choices(shape.member)]
    return list(getattr(shape, "enum", None) or [])


def arguments(world, operation, shape):
    given = {name: value(world, operation, name, shape.members[name]) for name in shape.required_members}
    # Required too, though the model does not say so.
    unsaid = {"PutObject": "Body", "UploadPart": "Body", "CompleteMultipartUpload": "MultipartUpload"}
    for name in [unsaid[operation]] if operation in unsaid else []:
        given[name] = value(world, operation, name, shape.members[name])
    return given


class Caller:
    """Calls operations, and looks at what was answered before botocore reads it."""

    def __init__(self, **config):
        self.s3 = client(inject_host_prefix=False, **config)
        self.s3.meta.events.register("before-parse.s3", self.keep)
        self.calls = 0

    def keep(self, operation_model, response_dict, **_):
        self.status, self.headers = response_dict["status_code"], response_dict["headers"]
        self.body = response_dict["body"]

    def call(self, operation, given):
        """None if it worked, or the code of the error; fails if the answer is not one of S3's."""
        self.status, self.calls = None, self.calls + 1
        try:
            answer = getattr(self.s3, xform_name(operation))(**given)
        except ClientError as error:
            return self.clean(operation, error)
        equal(200 <= self.status < 300, True, f"status {self.status}")
        for name in ("Body", "Payload"):
            if name in answer:
                answer[name] = answer[name].read()
        self.answer = answer
        # Of many at once, the one that was refused says so in the answer.
        return answer["Errors"][0]["Code"] if operation == "DeleteObjects" and "Errors" in answer else None

    def clean(self, operation, error):
        told = f"{self.status} {dict(self.headers)} {short(self.body)}"
        equal(self.status in (304, 501) or 400 <= self.status < 500, True, f"status: {told}")
        equal(bool(self.headers.get("x-amz-request-id")), True, f"a request id: {told}")
        if operation.startswith("Head") or self.status == 304:
            equal(self.body, b"", "no document")
            return str(self.status)
        equal(self.headers.get("content-type"), "application/xml", f"content type: {told}")
        root = ElementTree.fromstring(self.body)
        equal(root.tag, "Error", f"root: {told}")
        for name in ("Code", "Message", "RequestId"):
            equal(bool(root.findtext(name)), True, f"{name}: {told}")
        equal(error.response["Error"]["Code"], root.findtext("Code"), "the code that botocore saw")
        return root.findtext("Code")


def changed(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def judge(world, caller, operation, label, make, expected, problems):
    """Makes one call. `expected` is None for success, a set of codes, or `...` for any refusal."""
    changes = DONE[operation][0] if operation in DONE else ""
    if world.changed:
        world.restore()
    given, before = make(), world.before
    what = f"{operation} {label}"
    try:
        code = caller.call(operation, given)
    except Exception as error:
        problems.append(f"{what} {short(given)}: {type(error).__name__}: {error}")
        code = "nothing clean"
    # What is not done at all is looked at once an operation, by who calls this.
    after = world.state() if operation in DONE else before
    found = changed(before, after)
    world.changed = bool(found)
    if code is None:
        may = tuple(changes.split(", ")) if changes else ()
        wrong = [name for name in found if not name.startswith(may)]
        if wrong:
            problems.append(f"{what}: it changed {wrong}")
        if operation in DONE:
            try:
                effect(world, caller, operation, given, before, after)
            except Exception as error:
                problems.append(f"{what}: {type(error).__name__}: {error}")
    elif found:
        problems.append(f"{what}: it was refused ({code}) and changed {found}")
    if expected is None and code is not None:
        problems.append(f"{what} {short(given)}: refused: {caller.status} {short(caller.body)}")
    elif expected is ... and code is None:
        problems.append(f"{what}: it worked, which is not listed")
    elif isinstance(expected, set) and code not in expected:
        problems.append(f"{what}: found {code}, expected {expected}")


def effect(world, caller, operation, given, before, after):
    """What the operation is meant to do was done, with its options."""
    s3, bucket, answer = world.s3, world.bucket, caller.answer
    get = lambda key: s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    upload = f"parts {world.upload}"
    match operation:
        case "PutObject":
            equal(get("target"), given["Body"], "what was put")
            described(world, "target", given)
        case "CopyObject":
            equal(get("copy"), KEPT, "the copy")
            replaced = given if given.get("MetadataDirective") == "REPLACE" else {}
            of_source = {"ContentType": "text/kept", "CacheControl": "max-age=1", "Metadata": {"kept": "yes"}}
            summed = {name: one for name, one in given.items() if name == "ChecksumAlgorithm"}
            described(world, "copy", (replaced or of_source) | summed)
        case "DeleteObject" | "DeleteObjects":
            equal("object target" in after, False, "the object is there")
        case "CreateBucket":
            equal(changed(before["buckets"], after["buckets"]), [world.new], "the bucket")
        case "DeleteBucket":
            equal(changed(before["buckets"], after["buckets"]), [world.old], "the bucket")
        case "PutBucketCors":
            equal(after["cors"], given["CORSConfiguration"]["CORSRules"], "the rules")
        case "DeleteBucketCors":
            equal(after["cors"], None, "the rules")
        case "CreateMultipartUpload":
            made = {"Bucket": bucket, "Key": "target", "UploadId": answer["UploadId"]}
            equal(changed(before["uploads"], after["uploads"]), [("target", made["UploadId"])], "the upload")
            equal(answer.get("ChecksumAlgorithm"), given.get("ChecksumAlgorithm"), "the algorithm")
            if "ChecksumAlgorithm" not in given and "ChecksumType" not in given:
                parts = [{"PartNumber": 1, "ETag": s3.upload_part(**made, PartNumber=1, Body=PART)["ETag"]}]
                s3.complete_multipart_upload(**made, MultipartUpload={"Parts": parts})
                described(world, "target", given)
        case "UploadPart":
            equal(after[upload][0][1:3], (f'"{hashlib.md5(PART).hexdigest()}"', len(PART)), "the part")
        case "UploadPartCopy":
            equal(after[upload][0][1:3], (f'"{hashlib.md5(KEPT).hexdigest()}"', len(KEPT)), "the part")
        case "AbortMultipartUpload":
            equal((after["uploads"], upload in after), ({}, False), "the upload")
        case "CompleteMultipartUpload":
            equal((get("target"), after["uploads"]), (PART, {}), "the object, and the upload")
        case "GetObject":
            equal(answer["Body"], KEPT[1:3] if "Range" in given else KEPT, "the object")
        case "ListBuckets":
            found = [one["Name"] for one in answer["Buckets"]]
            after = given.get("ContinuationToken", "")
            all = [name for name in before["buckets"] if name > after]
            all = [name for name in all if name.startswith(given.get("Prefix", ""))]
            equal(found, all[: given.get("MaxBuckets")], "buckets")
        case "ListObjects" | "ListObjectsV2" | "ListObjectVersions":
            found = [one["Key"] for one in answer.get("Contents", answer.get("Versions", []))]
            if "EncodingType" in given:
                found = [unquote(key) for key in found]
            after = given.get("Marker", given.get("StartAfter", given.get("KeyMarker", "")))
            all = [name[7:] for name in before if name.startswith("object ") and name[7:] > after]
            all = [name for name in all if name.startswith(given.get("Prefix", ""))]
            equal(found, all[: given.get("MaxKeys")], "keys")
    for name, wanted in given.items():
        if name.startswith("Response") and operation in ("GetObject", "HeadObject"):
            equal(answer[name.removeprefix("Response")], wanted, "a header that was asked for")


def described(world, key, given):
    """The object has the headers, metadata and checksum that were given."""
    found = world.s3.head_object(Bucket=world.bucket, Key=key, ChecksumMode="ENABLED")
    headers = "CacheControl ContentDisposition ContentEncoding ContentLanguage ContentType Expires Metadata"
    for name in [*headers.split(), "WebsiteRedirectLocation"]:
        if name in given:
            equal(found.get(name), given[name], name)
    if "ChecksumAlgorithm" in given:
        algorithm = given["ChecksumAlgorithm"]
        equal(f"Checksum{algorithm}" in found, True, f"a checksum of {algorithm}")


def model(s3):
    names = s3.meta.service_model.operation_names
    return {name: s3.meta.service_model.operation_model(name).input_shape for name in names}


def try_all(s3, bucket, of):
    """Each of these operations: as it is, with each option, and for what is not there."""
    world, caller, problems = World(s3, bucket), Caller(), []
    shapes = model(s3)
    for operation in sorted(of):
        if operation not in shapes:
            problems.append(f"{operation} is not in the model")
            continue
        shape, whole = shapes[operation], world.state(whole=True)
        plain, listed, rest = expectations(operation)
        # Made anew for each call: what was put back has another time, and another upload.
        needed = lambda: arguments(world, operation, shape)
        judge(world, caller, operation, "", needed, plain, problems)
        labels = [label for label, _ in options(world, operation, shape, needed())]
        if s3.meta.service_model.operation_model(operation).http_checksum:
            # botocore cannot compute it.
            labels = [label for label in labels if label != "ChecksumAlgorithm=MD5"]
        for label in labels:
            more = lambda: dict(options(world, operation, shape, needed()))[label]
            judge(world, caller, operation, label, more, None if label in listed else rest, problems)
        problems += [f"{operation} has no {label}" for label in sorted(listed - set(labels))]
        nothing_there(world, caller, operation, needed, problems)
        now = world.state(whole=True)
        acted = operation in DONE and DONE[operation][0]
        others = [name for name in changed(whole, now) if not acted or name.startswith("object kept")]
        if others:
            problems.append(f"{operation}: in the end {others} are others")
        world.restore()
    print(f"        {len(of)} operations, {caller.calls} calls", flush=True)
    if problems:
        raise AssertionError(f"{len(problems)} problems\n" + "\n".join(problems))


def expectations(operation):
    """What the plain call answers, the options that it works with, and what is answered with the others."""
    if operation in DONE:
        return None, set(DONE[operation][1].split()), ...
    if operation in ABSENT:
        return {ABSENT[operation]}, set(), ...
    if operation == "ListDirectoryBuckets":
        # Signed for the service "s3express", and told apart by little else.
        return {"AuthorizationHeaderMalformed"}, set(), {"AuthorizationHeaderMalformed", "NotImplemented"}
    return {"NotImplemented"}, set(), {"NotImplemented"}


def nothing_there(world, caller, operation, needed, problems):
    """The same for a bucket that is not there, and for a key."""
    head, given = operation.startswith("Head"), needed()
    is_known = operation in DONE or operation in ABSENT
    if "Bucket" in given and operation != "CreateBucket":
        code = {"404" if head else "NoSuchBucket"} if is_known else {"NotImplemented"}
        elsewhere = lambda: needed() | {"Bucket": "there-is-none"}
        judge(world, caller, operation, "of no bucket", elsewhere, code, problems)
    if is_known and operation.startswith(("Get", "Head")) and "Key" in given:
        code = {"404" if head else "NoSuchKey"}
        judge(world, caller, operation, "of no key", lambda: needed() | {"Key": "none"}, code, problems)


def what_is_done(s3, bucket):
    try_all(s3, bucket, DONE)


def what_is_absent(s3, bucket):
    try_all(s3, bucket, ABSENT)


def what_is_not_there(s3, bucket):
    try_all(s3, bucket, model(s3).keys() - DONE.keys() - ABSENT.keys())


def an_upload_keeps_its_type_of_checksum(s3, bucket):
    both = ("COMPOSITE", "FULL_OBJECT")
    for algorithm, kind, other in (("SHA256", *both), ("CRC32", *reversed(both))):
        upload, made = {"Bucket": bucket, "Key": algorithm}, {"ChecksumAlgorithm": algorithm}
        upload["UploadId"] = s3.create_multipart_upload(**upload, **made, ChecksumType=kind)["UploadId"]
        part = s3.upload_part(**upload, **made, PartNumber=1, Body=PART)
        sum = f"Checksum{algorithm}"
        parts = [{"PartNumber": 1, "ETag": part["ETag"], sum: part[sum]}]
        complete = lambda kind: s3.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, ChecksumType=kind
        )
        refused("BadDigest", lambda: complete(other), 400)
        equal(complete(kind)["ChecksumType"], kind, "the type")


def directory_buckets(s3, bucket):
    name = "model--use1-az4--x-s3"
    here, key = {"Bucket": name}, {"Bucket": name, "Key": "k"}
    zone = {"Location": {"Type": "AvailabilityZone", "Name": "use1-az4"}}
    kind = {"Bucket": {"Type": "Directory", "DataRedundancy": "SingleAvailabilityZone"}}
    # botocore asks for a session first, whatever it is told to do.
    for call in (
        lambda: s3.create_bucket(**here, CreateBucketConfiguration=zone | kind),
        lambda: s3.delete_bucket(**here),
        lambda: s3.create_session(**here),
        lambda: s3.head_bucket(**here),
        lambda: s3.list_objects_v2(**here),
        lambda: s3.put_object(**key, Body=BODY),
        lambda: s3.get_object(**key),
        lambda: s3.delete_object(**key),
    ):
        refused("NotImplemented", call, 501)
    # Signed for another service, and otherwise like ListBuckets.
    refused("AuthorizationHeaderMalformed", s3.list_directory_buckets, 400)
    equal(name in [one["Name"] for one in s3.list_buckets()["Buckets"]], False, "such a bucket")


run(what_is_done, what_is_absent, what_is_not_there, an_upload_keeps_its_type_of_checksum, directory_buckets)
