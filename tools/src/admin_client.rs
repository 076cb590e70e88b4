//! Talks to the admin address of a gateway.

use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The most bytes of an answer.
const ANSWER_MAX: usize = 16 << 20;
/// A download on which nothing moves for so long is given up.
const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(30);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Which gateway.
#[derive(Args, Clone)]
pub struct AdminArgs {
    /// The admin address of a gateway
    #[arg(
        long,
        value_name = "URL",
        env = "CAIRN_ADMIN",
        default_value = "http://127.0.0.1:9001"
    )]
    admin: String,
}

impl AdminArgs {
    /// What is at a path, as text.
    pub async fn get(&self, path: &str) -> Result<String, Error> {
        self.exchange(Method::GET, path, Vec::new(), Duration::from_secs(10))
            .await
    }

    /// What is at a path.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        Ok(serde_json::from_str(&self.get(path).await?)?)
    }

    /// Has an operation done.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        content: &impl Serialize,
        patience: Duration,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(content)?;
        let answer = self.exchange(Method::POST, path, body, patience).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Writes what is at a path to a file, durably.
    pub async fn download(&self, path: &str, to: &std::path::Path) -> Result<(), Error> {
        let url = format!("{}{path}", self.admin.trim_end_matches('/'));
        let client: Client<_, Full<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::get(&url)
            .body(Full::default())
            .map_err(|e| format!("{url}: {e}"))?;
        let response = client.request(request).await;
        let response = response.map_err(|e| format!("{url}: {e} (is Cairn running?)"))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
            return Err(format!("{url}: {status}: {}", String::from_utf8_lossy(&body).trim()).into());
        }
        // What is in it is worth as much as the ledger.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.write(true).create(true).truncate(true).open(to);
        let file = std::sync::Arc::new(file.map_err(|e| format!("{}: {e}", to.display()))?);
        loop {
            let frame = tokio::time::timeout(DOWNLOAD_PATIENCE, body.frame()).await;
            let frame = frame.map_err(|_| format!("{url}: nothing comes any more"))?;
            let Some(frame) = frame else { break };
            if let Ok(data) = frame?.into_data() {
                let file = file.clone();
                tokio::task::spawn_blocking(move || std::io::Write::write_all(&mut &*file, &data)).await??;
            }
        }
        tokio::task::spawn_blocking(move || file.sync_all()).await??;
        Ok(())
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<String, Error> {
        let url = format!("{}{path}", self.admin.trim_end_matches('/'));
        let answer = tokio::time::timeout(patience, exchange(method, &url, body));
        let late = |_| format!("{url}: no answer within {} s", patience.as_secs());
        answer.await.map_err(late)?
    }
}

async fn exchange(method: Method, url: &str, body: Vec<u8>) -> Result<String, Error> {
    let client: Client<_, Full<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .map_err(|e| format!("{url}: {e}"))?;
    let response = client
        .request(request)
        .await
        .map_err(|e| format!("{url}: {e} (is Cairn running?)"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await?
        .to_bytes();
    if status.is_success() {
        return Ok(String::from_utf8_lossy(&body).into_owned());
    }
    let told = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let told = told.as_ref().and_then(|told| told["error"].as_str());
    match told {
        Some(why) => Err(why.into()),
        None => Err(format!("{url}: {status}: {}", String::from_utf8_lossy(&body).trim()).into()),
    }
}
