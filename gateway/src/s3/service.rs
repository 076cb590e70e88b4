//! The only `impl S3`: one line an operation. Counts and times every request and logs what is the server's fault.

use super::error::{is_server_fault, s3_error};
use crate::error::{Error, Result};
use crate::object::Objects;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use std::sync::Arc;
use std::time::Instant;

/// S3 on top of the object path.
pub struct S3Gateway {
    pub(super) objects: Arc<Objects>,
}

impl S3Gateway {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> S3Gateway {
        S3Gateway { objects }
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
        self.objects.create_bucket(&req.input.bucket).await?;
        Ok(S3Response::new(CreateBucketOutput {
            location: Some(format!("/{}", req.input.bucket)),
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
        self.run("HeadBucket", self.existing(&req.input.bucket)).await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> Output<GetBucketLocationOutput> {
        self.run("GetBucketLocation", self.existing(&req.input.bucket))
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
}
