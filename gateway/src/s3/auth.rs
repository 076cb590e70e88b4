//! Who may sign requests. Until there are users in the ledger: one key pair, given at start.

use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

/// One access key and its secret.
pub struct StaticKeys {
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
}

#[async_trait::async_trait]
impl S3Auth for StaticKeys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key != self.access_key {
            return Err(s3_error!(
                InvalidAccessKeyId,
                "The access key {access_key:?} is not known here"
            ));
        }
        Ok(SecretKey::from(self.secret_key.clone()))
    }
}
