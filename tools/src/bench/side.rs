//! One of the servers that are measured: where it is, how its requests are signed, and the bucket there.

use super::client::{Connection, refusal};
use super::cpu::CpuSeconds;
use super::signer::{Endpoint, Signer};
use super::{BenchArgs, BenchError};
use http::{Method, StatusCode};

/// See the module.
pub struct Side {
    /// Where S3 is.
    pub endpoint: Endpoint,
    /// Signs requests to it.
    pub signer: Signer,
    /// Where it tells its processor time, if it does.
    admin: Option<Endpoint>,
    bucket: String,
}

impl Side {
    /// The server, and the one it is compared with.
    pub fn all(args: &BenchArgs) -> Result<Vec<Side>, String> {
        let side = |endpoint: &Endpoint, admin: Option<&Endpoint>, key: &str, secret: &str| {
            Ok::<_, String>(Side {
                endpoint: endpoint.clone(),
                signer: Signer::new(endpoint, &args.bucket, &args.region, key, secret)?,
                admin: admin.cloned(),
                bucket: args.bucket.clone(),
            })
        };
        let mut sides = vec![side(
            &args.endpoint,
            Some(&args.admin),
            &args.access_key,
            &args.secret_key,
        )?];
        if let Some(against) = &args.against {
            let key = args.against_access_key.as_ref().unwrap_or(&args.access_key);
            let secret = args.against_secret_key.as_ref().unwrap_or(&args.secret_key);
            sides.push(side(against, None, key, secret)?);
        }
        Ok(sides)
    }

    /// Processor time, of this server and of this process.
    pub async fn cpu(&self) -> CpuSeconds {
        CpuSeconds::now(self.admin.as_ref()).await
    }

    /// Creates the bucket if there is none; says whether it did.
    pub async fn create_bucket(&self) -> Result<bool, BenchError> {
        let mut connection = Connection::new(self.endpoint.clone());
        let head = connection.ask(Method::HEAD, self.signer.head_bucket()).await;
        match head.map_err(BenchError::Server)? {
            (StatusCode::OK, _) => return Ok(false),
            (StatusCode::NOT_FOUND, _) => {}
            (status, _) => {
                return Err(BenchError::Server(format!(
                    "looking for bucket {} at {}: {status}",
                    self.bucket, self.endpoint.address
                )));
            }
        }
        let created = connection.ask(Method::PUT, self.signer.create_bucket()).await;
        match created.map_err(BenchError::Server)? {
            (StatusCode::OK, _) => Ok(true),
            (status, text) => Err(BenchError::Server(format!(
                "creating the bucket: {}",
                refusal(status, &text)
            ))),
        }
    }

    /// Removes the bucket, which is empty.
    pub async fn delete_bucket(&self) -> Result<(), BenchError> {
        let mut connection = Connection::new(self.endpoint.clone());
        let deleted = connection.ask(Method::DELETE, self.signer.delete_bucket()).await;
        match deleted.map_err(BenchError::Server)? {
            (StatusCode::NO_CONTENT, _) => Ok(()),
            (status, text) => Err(BenchError::Server(format!(
                "removing the bucket: {}",
                refusal(status, &text)
            ))),
        }
    }
}
