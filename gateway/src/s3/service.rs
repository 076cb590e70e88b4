//! The only `impl S3`: one line an operation. Counts and times every request and logs what is the server's fault.

use super::error::{is_server_fault, s3_error};
use super::front::S3Settings;
use crate::error::{Error, Result};
use crate::object::Objects;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use std::sync::Arc;
use std::time::Instant;

/// S3 on top of the object path.
pub struct S3Gateway {
    pub(super) objects: Arc<Objects>,
    pub(super) region: String,
}

impl S3Gateway {
    /// For one gateway, in this region.
    pub fn new(objects: Arc<Objects>, region: String) -> S3Gateway {
        S3Gateway { objects, region }
    }

    /// Runs one operation: counts it, maps its error.
    async fn run<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<S3Response<T>>>,
    ) -> S3Result<S3Response<T>> {
        let metrics = self.objects.metrics.clone();
        let started = Instant::now();
        metrics.requests_in_flight.inc();
        let _count_down = CountDown(metrics.requests_in_flight.clone());
        let Some(_inside) = self.objects.gate.enter() else {
            return Err(s3_error(Error::ShuttingDown));
        };
        let answer = work.await.map_err(|error| {
            if is_server_fault(&error) {
                tracing::warn!(operation, %error, "request failed");
            }
            s3_error(error)
        });
        let status = match &answer {
            Ok(_) => "2xx",
            Err(error) => match error.status_code().map_or(500, |s| s.as_u16()) {
                503 => "503",
                300..=399 => "3xx",
                400..=499 => "4xx",
                _ => "5xx",
            },
        };
        if status == "503" {
            metrics.slow_downs.inc();
        }
        metrics.requests.with_label_values(&[operation, status]).inc();
        metrics
            .request_seconds
            .with_label_values(&[operation])
            .observe(started.elapsed().as_secs_f64());
        answer
    }

    /// What needs room in the ledger for good: refused while there is little, before anything of it is read.
    async fn run_with_room<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<S3Response<T>>>,
    ) -> S3Result<S3Response<T>> {
        let with_room = async {
            self.objects.ledger.check_room()?;
            work.await
        };
        self.run(operation, with_room).await
    }

    async fn create_bucket_named(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> Result<S3Response<CreateBucketOutput>> {
        let wanted = req.input.create_bucket_configuration.unwrap_or_default();
        if wanted.bucket.is_some() || wanted.location.is_some() {
            return Err(Error::NotImplemented(
                "directory buckets are not supported".into(),
            ));
        }
        if wanted.tags.is_some_and(|tags| !tags.is_empty()) {
            return Err(Error::NotImplemented("tags of buckets are not supported".into()));
        }
        if let Some(region) = wanted.location_constraint
            && !region.as_str().is_empty()
            && region.as_str() != self.region
        {
            return Err(Error::OtherRegion(region.as_str().to_owned()));
        }
        self.objects.create_bucket(&req.input.bucket).await?;
        Ok(S3Response::new(CreateBucketOutput {
            location: Some(format!("/{}", req.input.bucket)),
            bucket_arn: None,
        }))
    }

    async fn delete_bucket_named(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> Result<S3Response<DeleteBucketOutput>> {
        self.objects.delete_bucket(&req.input.bucket).await?;
        Ok(S3Response::with_status(
            DeleteBucketOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }

    async fn head_bucket_named(&self, bucket: &str) -> Result<S3Response<HeadBucketOutput>> {
        self.objects.bucket(bucket).await?;
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(self.region.clone()),
            ..Default::default()
        }))
    }

    /// Nothing stands for S3's first region.
    async fn location(&self, bucket: &str) -> Result<S3Response<GetBucketLocationOutput>> {
        self.objects.bucket(bucket).await?;
        let region = Some(self.region.clone()).filter(|region| region != S3Settings::REGION);
        Ok(S3Response::new(GetBucketLocationOutput {
            location_constraint: region.map(BucketLocationConstraint::from),
        }))
    }

    async fn existing<T: Default>(&self, bucket: &str) -> Result<S3Response<T>> {
        self.objects.bucket(bucket).await?;
        Ok(S3Response::new(T::default()))
    }
}

struct CountDown(prometheus::IntGauge);

impl Drop for CountDown {
    fn drop(&mut self) {
        self.0.dec();
    }
}

type Output<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for S3Gateway {
    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> Output<ListBucketsOutput> {
        self.run("ListBuckets", self.list_all_buckets(req)).await
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Output<CreateBucketOutput> {
        self.run_with_room("CreateBucket", self.create_bucket_named(req))
            .await
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> Output<DeleteBucketOutput> {
        self.run("DeleteBucket", self.delete_bucket_named(req)).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Output<HeadBucketOutput> {
        self.run("HeadBucket", self.head_bucket_named(&req.input.bucket))
            .await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> Output<GetBucketLocationOutput> {
        self.run("GetBucketLocation", self.location(&req.input.bucket))
            .await
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> Output<GetBucketVersioningOutput> {
        self.run("GetBucketVersioning", self.existing(&req.input.bucket))
            .await
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> Output<ListObjectsOutput> {
        self.run("ListObjects", self.list_v1(req)).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Output<ListObjectsV2Output> {
        self.run("ListObjectsV2", self.list_v2(req)).await
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Output<PutObjectOutput> {
        self.run_with_room("PutObject", self.put(req)).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Output<GetObjectOutput> {
        self.run("GetObject", self.get(req)).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Output<HeadObjectOutput> {
        self.run("HeadObject", self.head(req)).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Output<DeleteObjectOutput> {
        self.run("DeleteObject", self.delete(req)).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Output<DeleteObjectsOutput> {
        self.run("DeleteObjects", self.delete_many(req)).await
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Output<CopyObjectOutput> {
        self.run_with_room("CopyObject", self.copy(req)).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Output<CreateMultipartUploadOutput> {
        self.run_with_room("CreateMultipartUpload", self.create_upload(req))
            .await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Output<UploadPartOutput> {
        self.run_with_room("UploadPart", self.put_part(req)).await
    }

    async fn upload_part_copy(&self, req: S3Request<UploadPartCopyInput>) -> Output<UploadPartCopyOutput> {
        self.run_with_room("UploadPartCopy", self.copy_part(req)).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Output<CompleteMultipartUploadOutput> {
        self.run("CompleteMultipartUpload", self.complete_upload(req))
            .await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Output<AbortMultipartUploadOutput> {
        self.run("AbortMultipartUpload", self.abort_upload(req)).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> Output<ListPartsOutput> {
        self.run("ListParts", self.list_parts_page(req)).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Output<ListMultipartUploadsOutput> {
        self.run("ListMultipartUploads", self.list_uploads_page(req))
            .await
    }

    async fn list_object_versions(
        &self,
        req: S3Request<ListObjectVersionsInput>,
    ) -> Output<ListObjectVersionsOutput> {
        self.run("ListObjectVersions", self.list_versions(req)).await
    }

    async fn get_bucket_policy(&self, req: S3Request<GetBucketPolicyInput>) -> Output<GetBucketPolicyOutput> {
        self.run("GetBucketPolicy", self.no(&req.input.bucket, "policy"))
            .await
    }

    async fn get_bucket_cors(&self, req: S3Request<GetBucketCorsInput>) -> Output<GetBucketCorsOutput> {
        self.run("GetBucketCors", self.cors(&req.input.bucket)).await
    }

    async fn put_bucket_cors(&self, req: S3Request<PutBucketCorsInput>) -> Output<PutBucketCorsOutput> {
        self.run_with_room("PutBucketCors", self.put_cors(req)).await
    }

    async fn delete_bucket_cors(
        &self,
        req: S3Request<DeleteBucketCorsInput>,
    ) -> Output<DeleteBucketCorsOutput> {
        self.run("DeleteBucketCors", self.delete_cors(&req.input.bucket))
            .await
    }

    async fn get_bucket_tagging(
        &self,
        req: S3Request<GetBucketTaggingInput>,
    ) -> Output<GetBucketTaggingOutput> {
        self.run("GetBucketTagging", self.no(&req.input.bucket, "tagging"))
            .await
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        req: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> Output<GetBucketLifecycleConfigurationOutput> {
        self.run(
            "GetBucketLifecycleConfiguration",
            self.no(&req.input.bucket, "lifecycle"),
        )
        .await
    }

    async fn get_bucket_encryption(
        &self,
        req: S3Request<GetBucketEncryptionInput>,
    ) -> Output<GetBucketEncryptionOutput> {
        self.run("GetBucketEncryption", self.no(&req.input.bucket, "encryption"))
            .await
    }

    async fn get_object_lock_configuration(
        &self,
        req: S3Request<GetObjectLockConfigurationInput>,
    ) -> Output<GetObjectLockConfigurationOutput> {
        self.run(
            "GetObjectLockConfiguration",
            self.no(&req.input.bucket, "object-lock"),
        )
        .await
    }

    async fn get_public_access_block(
        &self,
        req: S3Request<GetPublicAccessBlockInput>,
    ) -> Output<GetPublicAccessBlockOutput> {
        self.run(
            "GetPublicAccessBlock",
            self.no(&req.input.bucket, "publicAccessBlock"),
        )
        .await
    }

    async fn get_bucket_ownership_controls(
        &self,
        req: S3Request<GetBucketOwnershipControlsInput>,
    ) -> Output<GetBucketOwnershipControlsOutput> {
        self.run(
            "GetBucketOwnershipControls",
            self.no(&req.input.bucket, "ownershipControls"),
        )
        .await
    }

    async fn get_bucket_website(
        &self,
        req: S3Request<GetBucketWebsiteInput>,
    ) -> Output<GetBucketWebsiteOutput> {
        self.run("GetBucketWebsite", self.no(&req.input.bucket, "website"))
            .await
    }

    async fn get_bucket_replication(
        &self,
        req: S3Request<GetBucketReplicationInput>,
    ) -> Output<GetBucketReplicationOutput> {
        self.run("GetBucketReplication", self.no(&req.input.bucket, "replication"))
            .await
    }

    async fn get_bucket_policy_status(
        &self,
        req: S3Request<GetBucketPolicyStatusInput>,
    ) -> Output<GetBucketPolicyStatusOutput> {
        self.run("GetBucketPolicyStatus", self.no(&req.input.bucket, "policy"))
            .await
    }

    async fn get_bucket_acl(&self, req: S3Request<GetBucketAclInput>) -> Output<GetBucketAclOutput> {
        self.run("GetBucketAcl", self.bucket_acl(&req.input.bucket)).await
    }

    async fn get_bucket_request_payment(
        &self,
        req: S3Request<GetBucketRequestPaymentInput>,
    ) -> Output<GetBucketRequestPaymentOutput> {
        self.run("GetBucketRequestPayment", self.bucket_payer(&req.input.bucket))
            .await
    }

    async fn get_bucket_logging(
        &self,
        req: S3Request<GetBucketLoggingInput>,
    ) -> Output<GetBucketLoggingOutput> {
        self.run("GetBucketLogging", self.existing(&req.input.bucket))
            .await
    }

    async fn get_bucket_notification_configuration(
        &self,
        req: S3Request<GetBucketNotificationConfigurationInput>,
    ) -> Output<GetBucketNotificationConfigurationOutput> {
        self.run(
            "GetBucketNotificationConfiguration",
            self.existing(&req.input.bucket),
        )
        .await
    }

    async fn get_bucket_accelerate_configuration(
        &self,
        req: S3Request<GetBucketAccelerateConfigurationInput>,
    ) -> Output<GetBucketAccelerateConfigurationOutput> {
        self.run(
            "GetBucketAccelerateConfiguration",
            self.existing(&req.input.bucket),
        )
        .await
    }

    async fn list_bucket_analytics_configurations(
        &self,
        req: S3Request<ListBucketAnalyticsConfigurationsInput>,
    ) -> Output<ListBucketAnalyticsConfigurationsOutput> {
        self.run(
            "ListBucketAnalyticsConfigurations",
            self.existing(&req.input.bucket),
        )
        .await
    }

    async fn list_bucket_inventory_configurations(
        &self,
        req: S3Request<ListBucketInventoryConfigurationsInput>,
    ) -> Output<ListBucketInventoryConfigurationsOutput> {
        self.run(
            "ListBucketInventoryConfigurations",
            self.existing(&req.input.bucket),
        )
        .await
    }

    async fn list_bucket_metrics_configurations(
        &self,
        req: S3Request<ListBucketMetricsConfigurationsInput>,
    ) -> Output<ListBucketMetricsConfigurationsOutput> {
        self.run(
            "ListBucketMetricsConfigurations",
            self.existing(&req.input.bucket),
        )
        .await
    }

    async fn get_object_acl(&self, req: S3Request<GetObjectAclInput>) -> Output<GetObjectAclOutput> {
        self.run("GetObjectAcl", self.object_acl(req)).await
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> Output<GetObjectTaggingOutput> {
        self.run("GetObjectTagging", self.object_tags(req)).await
    }

    async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> Output<GetObjectAttributesOutput> {
        self.run("GetObjectAttributes", self.attributes(req)).await
    }

    async fn get_object_legal_hold(
        &self,
        req: S3Request<GetObjectLegalHoldInput>,
    ) -> Output<GetObjectLegalHoldOutput> {
        let i = &req.input;
        self.run(
            "GetObjectLegalHold",
            self.no_lock(&i.bucket, &i.key, i.version_id.as_deref()),
        )
        .await
    }

    async fn get_object_retention(
        &self,
        req: S3Request<GetObjectRetentionInput>,
    ) -> Output<GetObjectRetentionOutput> {
        let i = &req.input;
        self.run(
            "GetObjectRetention",
            self.no_lock(&i.bucket, &i.key, i.version_id.as_deref()),
        )
        .await
    }
}
