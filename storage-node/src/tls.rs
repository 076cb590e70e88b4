//! Who is who between gateways and nodes: mutual TLS under the cluster's own authority.
//!
//! A certificate has one DNS name, which says all that is decided on: `gateway.CLUSTER.cairn.internal` or
//! `NODE.node.CLUSTER.cairn.internal`. Addresses are not in it; a node may move.
//! Invariants: both sides show a certificate of one authority, the cluster's, in TLS 1.3; a client talks to exactly the
//! peer that it means; a refusal says in words what was shown and what was wanted, and the words reach the log of the
//! side that refused. What the other side gets is an alert: TLS has no words.

mod peer;
mod verify;

pub use peer::{Peer, Role};
pub use verify::{fingerprint, refusal};

use crate::protocol::ClusterId;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use verify::{ClientCheck, JoinCheck, ServerCheck, Wanted};

/// The certificate of one side, its key, and the authority that vouches for all.
pub struct Credentials {
    /// Whom the certificate names.
    pub peer: Peer,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials of {}", self.peer)
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(what: &str, error: impl fmt::Display) -> TlsError {
        TlsError(format!("{what}: {error}"))
    }
}

/// Which clients a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those with a certificate of the cluster.
    Certified,
    /// Those, and such that have none yet.
    Any,
}

/// The public key of a certificate in PEM, as a SubjectPublicKeyInfo in DER.
pub fn public_key(certificate: &str) -> Result<Vec<u8>, TlsError> {
    let what = "the certificate";
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| TlsError::new(what, e))?;
    let parsed = webpki::EndEntityCert::try_from(&der).map_err(|e| TlsError::new(what, e))?;
    Ok(parsed.subject_public_key_info().to_vec())
}

impl Credentials {
    /// From PEM, as they are kept in files.
    pub fn from_pem(authority: &str, certificate: &str, key: &str) -> Result<Credentials, TlsError> {
        let authority = CertificateDer::from_pem_slice(authority.as_bytes())
            .map_err(|e| TlsError::new("the authority's certificate", e))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| TlsError::new("the certificate", e))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| TlsError::new("the key", e))?;
        let peer = Peer::of(&certificate)
            .ok_or_else(|| TlsError("the certificate names neither a node nor a gateway".into()))?;
        // Also whether the key is the certificate's: nobody would believe it.
        CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider())
            .map_err(|e| TlsError::new("the certificate and its key", e))?;
        Ok(Credentials {
            peer,
            authority,
            certificate,
            key,
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.peer.cluster
    }

    /// SHA-256 of the authority's certificate: what a token carries.
    pub fn authority_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.authority)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.clone())
            .map_err(|e| TlsError::new("the authority's certificate", e))?;
        Ok(Arc::new(roots))
    }

    /// How a server with these credentials speaks TLS. It shows the authority's certificate too, for those who know no
    /// more of it than its fingerprint.
    pub fn server(&self, clients: Clients) -> Result<Arc<ServerConfig>, TlsError> {
        let what = "TLS of the server";
        let roots = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let roots = match clients {
            Clients::Certified => roots,
            Clients::Any => roots.allow_unauthenticated(),
        };
        let check = ClientCheck {
            own: self.peer,
            inner: roots.build().map_err(|e| TlsError::new(what, e))?,
        };
        let chain = vec![self.certificate.clone(), self.authority.clone()];
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| TlsError::new(what, e))?
            .with_client_cert_verifier(Arc::new(check))
            .with_single_cert(chain, self.key.clone_key())
            .map_err(|e| TlsError::new(what, e))?;
        Ok(Arc::new(config))
    }

    /// How a client with these credentials speaks TLS to exactly this peer.
    pub fn client(&self, server: Peer) -> Result<ClientConfig, TlsError> {
        self.client_of(Wanted::Peer(server))
    }

    /// How a client with these credentials speaks TLS to whichever node of the cluster answers.
    pub fn client_of_any_node(&self) -> Result<ClientConfig, TlsError> {
        self.client_of(Wanted::AnyNode(self.cluster()))
    }

    fn client_of(&self, server: Wanted) -> Result<ClientConfig, TlsError> {
        let what = "TLS of the client";
        let check = ServerCheck::new(server, self.roots()?).map_err(|e| TlsError::new(what, e))?;
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| TlsError::new(what, e))?
            .dangerous() // What is dangerous is to check nothing; this checks more than usual.
            .with_custom_certificate_verifier(Arc::new(check))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(|e| TlsError::new(what, e))
    }
}

/// How somebody without credentials speaks TLS to a gateway whose authority has this fingerprint.
pub fn joining_client(authority: [u8; 32]) -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::new("TLS of the client", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(JoinCheck { authority }))
        .with_no_client_auth();
    Ok(config)
}

/// For a client without TLS, whose connector wants to know all the same: it trusts nobody.
pub(crate) fn client_of_nobody() -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::new("TLS of the client", e))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
