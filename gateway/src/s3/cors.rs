//! The CORS rules of buckets, as S3 has them.

use super::service::S3Gateway;
use crate::error::{Error, Result};
use crate::ledger::model::CorsRuleRow;
use s3s::dto::*;
use s3s::{S3Request, S3Response};

type Answer<T> = Result<S3Response<T>>;

fn row(rule: CORSRule) -> Result<CorsRuleRow> {
    let max_age_s = match rule.max_age_seconds {
        None => None,
        Some(seconds) => Some(
            u32::try_from(seconds)
                .map_err(|_| Error::InvalidArgument("MaxAgeSeconds is a number of seconds".into()))?,
        ),
    };
    Ok(CorsRuleRow {
        id: rule.id.unwrap_or_default(),
        origins: rule.allowed_origins,
        methods: rule.allowed_methods,
        headers: rule.allowed_headers.unwrap_or_default(),
        expose: rule.expose_headers.unwrap_or_default(),
        max_age_s,
    })
}

fn shown(row: CorsRuleRow) -> CORSRule {
    let some = |texts: Vec<String>| Some(texts).filter(|texts| !texts.is_empty());
    CORSRule {
        id: Some(row.id).filter(|id| !id.is_empty()),
        allowed_origins: row.origins,
        allowed_methods: row.methods,
        allowed_headers: some(row.headers),
        expose_headers: some(row.expose),
        max_age_seconds: row
            .max_age_s
            .map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX)),
    }
}

impl S3Gateway {
    pub(super) async fn put_cors(&self, req: S3Request<PutBucketCorsInput>) -> Answer<PutBucketCorsOutput> {
        let i = req.input;
        let rules = i.cors_configuration.cors_rules.into_iter().map(row);
        let rules = rules.collect::<Result<Vec<_>>>()?;
        self.objects.set_cors(&i.bucket, Some(rules)).await?;
        Ok(S3Response::new(PutBucketCorsOutput::default()))
    }

    pub(super) async fn cors(&self, bucket: &str) -> Answer<GetBucketCorsOutput> {
        let found = self.objects.cors(bucket).await?.ok_or(Error::Absent {
            code: "NoSuchCORSConfiguration",
            what: "the bucket has no CORS configuration",
        })?;
        Ok(S3Response::new(GetBucketCorsOutput {
            cors_rules: Some(found.rules.into_iter().map(shown).collect()),
        }))
    }

    pub(super) async fn delete_cors(&self, bucket: &str) -> Answer<DeleteBucketCorsOutput> {
        self.objects.set_cors(bucket, None).await?;
        Ok(S3Response::with_status(
            DeleteBucketCorsOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }
}
