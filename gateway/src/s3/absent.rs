//! What a bucket or object does not have: configuration that S3 has words for when there is none. Clients ask for it before they go on.

use super::convert::{checksum_fields, etag, timestamp};
use super::front::OWNER;
use super::listing::owner;
use super::service::S3Gateway;
use crate::error::{Error, Result};
use crate::object::get::Wanted;
use s3s::dto::*;
use s3s::{S3Request, S3Response};

type Answer<T> = Result<S3Response<T>>;

/// Parts of a bucket that are not there, and S3's code for that.
const BUCKET: &[(&str, &str, &str)] = &[
    ("policy", "NoSuchBucketPolicy", "the bucket has no policy"),
    ("tagging", "NoSuchTagSet", "the bucket has no tags"),
    (
        "lifecycle",
        "NoSuchLifecycleConfiguration",
        "the bucket has no lifecycle configuration",
    ),
    (
        "encryption",
        "ServerSideEncryptionConfigurationNotFoundError",
        "the bucket has no encryption configuration",
    ),
    (
        "object-lock",
        "ObjectLockConfigurationNotFoundError",
        "the bucket has no object lock configuration",
    ),
    (
        "publicAccessBlock",
        "NoSuchPublicAccessBlockConfiguration",
        "the bucket has no public access block configuration",
    ),
    (
        "ownershipControls",
        "OwnershipControlsNotFoundError",
        "the bucket has no ownership controls",
    ),
    (
        "website",
        "NoSuchWebsiteConfiguration",
        "the bucket has no website configuration",
    ),
    (
        "replication",
        "ReplicationConfigurationNotFoundError",
        "the bucket has no replication configuration",
    ),
];

fn only_owner() -> Vec<Grant> {
    vec![Grant {
        grantee: Some(Grantee {
            display_name: Some(OWNER.into()),
            email_address: None,
            id: Some(OWNER.into()),
            type_: Type::from_static(Type::CANONICAL_USER),
            uri: None,
        }),
        permission: Some(Permission::from_static(Permission::FULL_CONTROL)),
    }]
}

impl S3Gateway {
    /// A part of a bucket that S3 answers 404 for if it is not there.
    pub(super) async fn no<T>(&self, bucket: &str, part: &str) -> Answer<T> {
        self.objects.bucket(bucket).await?;
        let found = BUCKET.iter().find(|(name, ..)| *name == part);
        let (_, code, what) = found.ok_or_else(|| Error::Internal(format!("no words for {part}")))?;
        Err(Error::Absent { code, what })
    }

    pub(super) async fn bucket_acl(&self, bucket: &str) -> Answer<GetBucketAclOutput> {
        self.objects.bucket(bucket).await?;
        Ok(S3Response::new(GetBucketAclOutput {
            grants: Some(only_owner()),
            owner: Some(owner()),
        }))
    }

    pub(super) async fn bucket_payer(&self, bucket: &str) -> Answer<GetBucketRequestPaymentOutput> {
        self.objects.bucket(bucket).await?;
        Ok(S3Response::new(GetBucketRequestPaymentOutput {
            payer: Some(Payer::from_static(Payer::BUCKET_OWNER)),
        }))
    }

    pub(super) async fn object_acl(&self, req: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
        let i = req.input;
        super::object::no_versions(i.version_id.as_deref())?;
        self.objects
            .head(&i.bucket, &i.key, Wanted::All, &Default::default())
            .await?;
        Ok(S3Response::new(GetObjectAclOutput {
            grants: Some(only_owner()),
            owner: Some(owner()),
            request_charged: None,
        }))
    }

    pub(super) async fn object_tags(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> Answer<GetObjectTaggingOutput> {
        let i = req.input;
        super::object::no_versions(i.version_id.as_deref())?;
        self.objects
            .head(&i.bucket, &i.key, Wanted::All, &Default::default())
            .await?;
        Ok(S3Response::new(GetObjectTaggingOutput {
            tag_set: Vec::new(),
            version_id: None,
        }))
    }

    /// An object that is not locked, and cannot be.
    pub(super) async fn no_lock<T>(&self, bucket: &str, key: &str, version: Option<&str>) -> Answer<T> {
        super::object::no_versions(version)?;
        self.objects
            .head(bucket, key, Wanted::All, &Default::default())
            .await?;
        Err(Error::Absent {
            code: "NoSuchObjectLockConfiguration",
            what: "the object has no object lock configuration",
        })
    }

    pub(super) async fn attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        // One header may name them all, and s3s takes it for one name.
        let named = req.headers.get_all("x-amz-object-attributes").iter();
        let named: Vec<String> = named
            .filter_map(|names| names.to_str().ok())
            .flat_map(|names| names.split(','))
            .map(|name| name.trim().to_owned())
            .collect();
        let is_asked = |name: &str| named.iter().any(|asked| asked == name);
        let i = req.input;
        super::object::no_versions(i.version_id.as_deref())?;
        let found = self
            .objects
            .head(&i.bucket, &i.key, Wanted::All, &Default::default())
            .await?;
        let sums = checksum_fields(found.row.checksum.as_ref());
        let checksum = found.row.checksum.is_some().then_some(Checksum {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_sha512: sums.sha512,
            checksum_md5: sums.md5,
            checksum_xxhash64: sums.xxhash64,
            checksum_xxhash3: sums.xxhash3,
            checksum_xxhash128: sums.xxhash128,
            checksum_type: sums.kind,
        });
        let parts = Some(found.row.parts.len()).filter(|parts| *parts > 0);
        let parts = parts.map(|parts| GetObjectAttributesParts {
            total_parts_count: Some(parts as i32),
            ..Default::default()
        });
        Ok(S3Response::new(GetObjectAttributesOutput {
            last_modified: Some(timestamp(found.row.modified_ms)),
            e_tag: is_asked("ETag").then(|| etag(&found.row.etag)),
            checksum: checksum.filter(|_| is_asked("Checksum")),
            object_parts: parts.filter(|_| is_asked("ObjectParts")),
            object_size: is_asked("ObjectSize").then_some(found.row.size as i64),
            storage_class: is_asked("StorageClass")
                .then(|| StorageClass::from_static(StorageClass::STANDARD)),
            ..Default::default()
        }))
    }
}
