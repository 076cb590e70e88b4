//! How a node becomes one of a cluster: the token, what a node says with it, what it gets, and the node's side of both.
//!
//! A node makes its key and keeps it. It sends a request for a certificate (a CSR) with the token's secret to the
//! gateway's join address, and gets the certificate. The token names the authority by fingerprint, so the secret goes to
//! nobody else. Once joined, a node announces itself at each start: where it is now, under its certificate.
//! Invariants: a secret is never logged; bodies and time are bounded; names and addresses are checked by both sides.

use crate::http_client::connector;
use crate::protocol::{ClusterId, NodeId};
use crate::tls::{self, Credentials, Peer};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest body of a request or an answer.
pub const BODY_BYTES_MAX: usize = 16 << 10;
/// Where a node joins.
pub const JOIN_PATH: &str = "/v1/join";
/// Where a node says that it is there.
pub const ANNOUNCE_PATH: &str = "/v1/announce";
/// The longest name of a node, a rack or a zone.
pub const LABEL_BYTES_MAX: usize = 63;
const ADDRESS_BYTES_MAX: usize = 255;
const PATIENCE: Duration = Duration::from_secs(10);

/// What lets one node join, once: all that it needs to know.
///
/// Its text is `ADDRESS/FINGERPRINT/SECRET`, the last two in hex.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The join address of a gateway, `host:port`.
    pub address: String,
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// What the ledger knows the hash of.
    pub secret: [u8; 16],
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.address,
            hex(&self.authority),
            hex(&self.secret)
        )
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token for {}", self.address)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        let bad = || "this is no token: `cairn node token`, at a gateway, prints one".to_string();
        let parts: Vec<&str> = text.trim().split('/').collect();
        let [address, authority, secret] = parts[..] else {
            return Err(bad());
        };
        check_address(address).map_err(|_| bad())?;
        Ok(Token {
            address: address.into(),
            authority: unhex(authority).ok_or_else(bad)?,
            secret: unhex(secret).ok_or_else(bad)?,
        })
    }
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hex digits as so many bytes, if they are that.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    (digits.len() == 2 * N && digits.iter().all(u8::is_ascii_hexdigit)).then_some(())?;
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Whether this can be the name of a node, a rack or a zone; why not, otherwise.
pub fn check_label(label: &str) -> Result<(), String> {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins_well = label.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && label.len() <= LABEL_BYTES_MAX && label.chars().all(is_inside) {
        return Ok(());
    }
    Err(format!(
        "{label:?} cannot be a name: letters, digits, `-`, `_` and `.`, a letter or digit first, at most {LABEL_BYTES_MAX}"
    ))
}

/// Whether others can connect to this, as `host:port`; why not, otherwise.
pub fn check_address(address: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("{address:?} is not an address to connect to: {why}"));
    let Some((host, port)) = address.rsplit_once(':') else {
        return bad("write host:port");
    };
    match port.parse::<u16>() {
        Err(_) => return bad("the port is no number up to 65535"),
        Ok(0) => return bad("port 0 is nobody's"),
        Ok(_) => {}
    }
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Some(v6) = bare {
        return match v6.parse::<std::net::Ipv6Addr>() {
            Ok(ip) if ip.is_unspecified() => bad("it means every interface, and no machine"),
            Ok(_) => Ok(()),
            Err(_) => bad("what is in brackets is no IPv6 address"),
        };
    }
    match host.parse::<std::net::Ipv4Addr>() {
        Ok(ip) if ip.is_unspecified() => return bad("it means every interface, and no machine"),
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    let is_in_a_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if host.is_empty() || address.len() > ADDRESS_BYTES_MAX || !host.chars().all(is_in_a_name) {
        return bad("the host is neither a name nor an IP address; an IPv6 address goes into brackets");
    }
    Ok(())
}

/// Where a node is; what it may change by saying so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Where gateways reach it: `host:port`.
    pub address: String,
    /// Its rack; empty if nobody said.
    pub rack: String,
    /// Its zone; empty if nobody said.
    pub zone: String,
}

impl Announcement {
    /// Whether it makes sense; why not, otherwise.
    pub fn check(&self) -> Result<(), String> {
        check_address(&self.address)?;
        for label in [&self.rack, &self.zone] {
            if !label.is_empty() {
                check_label(label)?;
            }
        }
        Ok(())
    }
}

/// What a node says to join.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret, in hex.
    pub secret: String,
    /// The request for a certificate, in PEM.
    pub request: String,
    /// The name that it wants.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub place: Announcement,
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The id of the node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The certificate, in PEM.
    pub certificate: String,
    /// The authority's certificate, in PEM.
    pub authority: String,
}

/// Why it gets nothing; the same from every address of a gateway that is not S3.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// In words.
    pub error: String,
}

/// Why a node did not get through.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The gateway said no; asking again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// The gateway was not reached, or not able to answer; it may be later.
    #[error("{0}")]
    Unreachable(String),
}

/// A new key, in PEM.
pub fn make_key() -> Result<String, String> {
    let key = KeyPair::generate().map_err(|e| format!("making a key: {e}"))?;
    Ok(key.serialize_pem())
}

/// A request, in PEM, for a certificate for this key.
pub fn request_certificate(key: &str, name: &str) -> Result<String, String> {
    let failed = |e: rcgen::Error| format!("asking for a certificate: {e}");
    let key = KeyPair::from_pem(key).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&key).map_err(failed)?;
    request.pem().map_err(failed)
}

/// Joins.
pub async fn join(
    token: &Token,
    name: &str,
    key: &str,
    place: &Announcement,
) -> Result<JoinAnswer, JoinError> {
    let request = JoinRequest {
        secret: hex(&token.secret),
        request: request_certificate(key, name).map_err(JoinError::Refused)?,
        name: name.into(),
        place: place.clone(),
    };
    let config = tls::joining_client(token.authority).map_err(|e| JoinError::Refused(e.to_string()))?;
    let answer = exchange(config, &token.address, JOIN_PATH, &request).await?;
    serde_json::from_slice(&answer)
        .map_err(|e| JoinError::Unreachable(format!("an answer that is none: {e}")))
}

/// Says to a gateway that this node is there, and where.
pub async fn announce(
    credentials: &Credentials,
    gateway: &str,
    place: &Announcement,
) -> Result<(), JoinError> {
    let config = credentials
        .client(Peer::gateway(credentials.cluster()))
        .map_err(|e| JoinError::Refused(e.to_string()))?;
    exchange(config, gateway, ANNOUNCE_PATH, place).await.map(drop)
}

async fn exchange(
    config: ClientConfig,
    address: &str,
    path: &str,
    content: &impl Serialize,
) -> Result<Bytes, JoinError> {
    let body = serde_json::to_vec(content).map_err(|e| JoinError::Refused(e.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{address}{path}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| JoinError::Refused(format!("address {address:?}: {e}")))?;
    let at = |what: String| format!("the gateway at {address}: {what}");
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(connector(config));
    let exchange = async {
        let answer = client
            .request(request)
            .await
            .map_err(|error| match tls::refusal(&error) {
                Some(why) => JoinError::Refused(at(why)),
                None => JoinError::Unreachable(at(crate::http_client::with_causes(&error))),
            })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match tls::refusal(&*error) {
            Some(why) => JoinError::Refused(at(why)),
            None => JoinError::Unreachable(at(error.to_string())),
        })?;
        Ok((status, body.to_bytes()))
    };
    let late = || JoinError::Unreachable(at(format!("no answer within {} s", PATIENCE.as_secs())));
    let (status, body): (StatusCode, Bytes) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| late())??;
    if status.is_success() {
        return Ok(body);
    }
    let why = match serde_json::from_slice::<Refused>(&body) {
        Ok(refused) => refused.error,
        Err(_) => format!("answered {status}"),
    };
    match status.is_client_error() {
        true => Err(JoinError::Refused(at(why))),
        false => Err(JoinError::Unreachable(at(why))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_keep_their_secret_from_logs() {
        let token = Token {
            address: "gateway.example:9002".into(),
            authority: [0xab; 32],
            secret: [0x0f; 16],
        };
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0f0f"));
        for wrong in [
            "",
            "a:1/ab/cd",
            "a:0/",
            "//",
            &token.to_string()[1..].replace("9002", "x"),
        ] {
            let told = wrong.parse::<Token>().unwrap_err();
            assert!(told.contains("cairn node token"), "{told}");
        }
    }

    #[test]
    fn addresses_are_places_to_connect_to() {
        for right in ["127.0.0.1:1", "node-1.example.com:9100", "[::1]:9100"] {
            assert_eq!(check_address(right), Ok(()));
        }
        for wrong in [
            "",
            "9100",
            "host",
            "host:0",
            "host:70000",
            "0.0.0.0:1",
            "[::]:1",
            "::1:9100",
            "a b:1",
            ":1",
        ] {
            assert!(check_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_are_short_and_plain() {
        for right in ["a", "node-1", "rack_2.b", &"x".repeat(63)] {
            assert_eq!(check_label(right), Ok(()));
        }
        for wrong in ["", "-a", "a/b", "ü", "a b", &"x".repeat(64)] {
            assert!(check_label(wrong).is_err(), "{wrong}");
        }
    }
}
