//! The cluster's authority: the key that signs the certificates of its gateways and nodes.
//!
//! `cairn init` makes it, and it stays with the gateway. Whoever has its key can be any gateway or node of the cluster.
//! Certificates hold for ten years; a node gets a new one by joining again.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use sha2::{Digest, Sha256};
use std::fmt;
use storage_node::protocol::{ClusterId, NodeId};
use storage_node::tls::{self, Peer};
use time::{Duration, OffsetDateTime};

const VALID: Duration = Duration::days(3_653);
/// Clocks that are behind the authority's by less accept a new certificate.
const CLOCK_SKEW: Duration = Duration::days(2);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Somebody asked for it in a way that makes no sense.
    #[error("the request for a certificate cannot be read: {0}")]
    BadRequest(String),
    /// It did not work.
    #[error("the authority cannot sign: {0}")]
    Failed(String),
}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Failed(error.to_string())
}

/// Signs.
pub struct Authority {
    cluster: ClusterId,
    /// Its certificate, in PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority of {}", self.cluster)
    }
}

/// A certificate and its key, in PEM.
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
}

impl Authority {
    /// A new one: its certificate and its key.
    pub fn create(cluster: ClusterId, now_ms: u64) -> Result<Certified, AuthorityError> {
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params(cluster, now_ms)?.self_signed(&key).map_err(failed)?;
        Ok(Certified {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The one of this cluster, from what was kept of it. Refused if the key is not the certificate's: nobody would believe what it
    /// signs.
    pub fn open(cluster: ClusterId, certified: &Certified) -> Result<Authority, AuthorityError> {
        let key = KeyPair::from_pem(&certified.key).map_err(failed)?;
        let certificate = tls::public_key(&certified.certificate);
        if certificate.map_err(|e| AuthorityError::Failed(e.to_string()))? != key.subject_public_key_info() {
            return Err(AuthorityError::Failed(
                "its key is not the one of its certificate".into(),
            ));
        }
        Ok(Authority {
            cluster,
            certificate: certified.certificate.clone(),
            // Of these only the name and the usages count, and they follow from the cluster.
            issuer: Issuer::new(params(cluster, 0)?, key),
        })
    }

    /// A certificate for a gateway, with a new key.
    pub fn certify_gateway(&self, now_ms: u64) -> Result<Certified, AuthorityError> {
        let key = KeyPair::generate().map_err(failed)?;
        Ok(Certified {
            certificate: self.sign(Peer::gateway(self.cluster), &key, now_ms)?,
            key: key.serialize_pem(),
        })
    }

    /// A certificate for a node that asks for one.
    pub fn certify_node(
        &self,
        node: NodeId,
        request: &CertificateRequest,
        now_ms: u64,
    ) -> Result<String, AuthorityError> {
        self.sign(Peer::node(self.cluster, node), &request.params.public_key, now_ms)
    }

    fn sign(&self, peer: Peer, key: &impl PublicKeyData, now_ms: u64) -> Result<String, AuthorityError> {
        let mut params = CertificateParams::new(vec![peer.dns_name()]).map_err(failed)?;
        params.distinguished_name = named(&peer.to_string());
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        date(&mut params, now_ms)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok(certificate.pem())
    }
}

/// What somebody who wants a certificate sent: signed with the key that it is for.
pub struct CertificateRequest {
    params: CertificateSigningRequestParams,
}

impl CertificateRequest {
    /// From PEM.
    pub fn parse(pem: &str) -> Result<CertificateRequest, AuthorityError> {
        let params = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|e| AuthorityError::BadRequest(e.to_string()))?;
        Ok(CertificateRequest { params })
    }

    /// SHA-256 of the public key.
    pub fn key_hash(&self) -> [u8; 32] {
        Sha256::digest(self.params.public_key.subject_public_key_info()).into()
    }
}

fn params(cluster: ClusterId, now_ms: u64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Cairn cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    date(&mut params, now_ms)?;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    out.push(DnType::CommonName, name);
    out
}

fn date(params: &mut CertificateParams, now_ms: u64) -> Result<(), AuthorityError> {
    let seconds = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    let now =
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| AuthorityError::Failed(e.to_string()))?;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALID;
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_node::tls::Credentials;

    const NOW_MS: u64 = 1_790_000_000_000;

    #[test]
    fn who_is_certified_is_who_was_asked_for() {
        let cluster = ClusterId(7);
        let certified = Authority::create(cluster, NOW_MS).expect("an authority");
        let authority = Authority::open(cluster, &certified).expect("the same");
        let gateway = authority.certify_gateway(NOW_MS).expect("a certificate");
        let gateway = Credentials::from_pem(&authority.certificate, &gateway.certificate, &gateway.key);
        assert_eq!(gateway.expect("credentials").peer, Peer::gateway(cluster));

        let key = storage_node::join::make_key().expect("a key");
        // The name in the request is its wish; it gets the one that it is given.
        let request = storage_node::join::request_certificate(&key, "gateway").expect("a request");
        let request = CertificateRequest::parse(&request).expect("readable");
        let certificate = authority
            .certify_node(NodeId(9), &request, NOW_MS)
            .expect("signed");
        let node = Credentials::from_pem(&authority.certificate, &certificate, &key);
        assert_eq!(node.expect("credentials").peer, Peer::node(cluster, NodeId(9)));
    }

    #[test]
    fn nonsense_is_no_request() {
        for nonsense in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert!(matches!(
                CertificateRequest::parse(nonsense),
                Err(AuthorityError::BadRequest(_))
            ));
        }
    }
}
