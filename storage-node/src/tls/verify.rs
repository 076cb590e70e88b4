//! The checks of the other side's certificate, with words for what they refuse.
//!
//! rustls' own verifiers judge signatures and dates. What is added is whom the certificate names, and words.

use super::peer::{Peer, Role};
use super::{RootCertStore, provider};
use crate::protocol::ClusterId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// Why a certificate was refused, for people.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn refuse(why: String) -> rustls::Error {
    let why = OtherError(Arc::new(Refusal(why)));
    rustls::Error::InvalidCertificate(CertificateError::Other(why))
}

/// The words for an error of TLS, wherever in a chain of errors it is: why this side refused the other's certificate, or
/// that the other side refused this one's.
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return words(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        at = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn words(error: &rustls::Error) -> Option<String> {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateUnknown, UnknownCA,
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => Some(why.to_string()),
        rustls::Error::NoCertificatesPresented => Some("it shows no certificate".into()),
        rustls::Error::AlertReceived(CertificateRequired) => {
            Some("the other side wants a certificate, and this side shows none".into())
        }
        rustls::Error::AlertReceived(
            alert @ (AccessDenied | BadCertificate | CertificateExpired | CertificateUnknown | UnknownCA),
        ) => Some(format!(
            "the other side refused this side's certificate ({alert:?}): it is of another cluster, or wants somebody else here"
        )),
        _ => None,
    }
}

fn shown(certificate: &CertificateDer<'_>) -> String {
    match Peer::of(certificate) {
        Some(peer) => format!("the certificate of {peer}"),
        None => "a certificate that is not Cairn's".into(),
    }
}

/// Words for what rustls says of a certificate that names whom it should.
fn judged(certificate: &CertificateDer<'_>, error: rustls::Error) -> rustls::Error {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let why = match &error {
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "which this cluster's authority did not sign".to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "which has expired".to_owned(),
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            "which is not valid yet: the clock of this machine or of the authority's is wrong".to_owned()
        }
        other => format!("which does not hold: {other}"),
    };
    refuse(format!("it shows {}, {why}", shown(certificate)))
}

/// Which server a client means.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Exactly this one.
    Peer(Peer),
    /// Any node of this cluster: the ledger that knows them is lost.
    AnyNode(ClusterId),
}

impl Wanted {
    fn is_met_by(self, peer: Peer) -> bool {
        match self {
            Wanted::Peer(wanted) => wanted == peer,
            Wanted::AnyNode(cluster) => peer.cluster == cluster && matches!(peer.role, Role::Node(_)),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Peer(peer) => peer.fmt(f),
            Wanted::AnyNode(cluster) => write!(f, "a node of cluster {cluster}"),
        }
    }
}

/// A client's check of the server it means.
#[derive(Debug)]
pub struct ServerCheck {
    server: Wanted,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCheck {
    pub fn new(server: Wanted, roots: Arc<RootCertStore>) -> Result<ServerCheck, rustls::Error> {
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok(ServerCheck { server, inner })
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(peer) = Peer::of(end_entity).filter(|peer| self.server.is_met_by(*peer)) else {
            let (shown, wanted) = (shown(end_entity), self.server);
            return Err(refuse(format!("it shows {shown}, and should be {wanted}")));
        };
        self.inner
            .verify_server_cert(end_entity, intermediates, &peer.server_name()?, ocsp, now)
            .map_err(|error| judged(end_entity, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The check of a gateway by somebody who knows of the cluster only the fingerprint of its authority.
#[derive(Debug)]
pub struct JoinCheck {
    pub authority: [u8; 32],
}

impl ServerCertVerifier for JoinCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_authority = |c: &&CertificateDer<'_>| fingerprint(c) == self.authority;
        let Some(authority) = intermediates.iter().find(is_authority) else {
            let shown = shown(end_entity);
            return Err(refuse(format!(
                "it shows {shown}, and its authority is not the one that the token names"
            )));
        };
        let server = match Peer::of(end_entity) {
            Some(peer) if peer.role == Role::Gateway => peer,
            _ => {
                let shown = shown(end_entity);
                return Err(refuse(format!("it shows {shown}, and should be a gateway")));
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        ServerCheck::new(Wanted::Peer(server), Arc::new(roots))?.verify_server_cert(
            end_entity,
            &[],
            name,
            ocsp,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A server's check of a client: of this cluster, whoever it is. What it may do is decided by request.
#[derive(Debug)]
pub struct ClientCheck {
    pub own: Peer,
    pub inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ClientCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // A client has one certificate. It shows it, and learns who does not like it.
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if Peer::of(end_entity).is_none_or(|peer| peer.cluster != self.own.cluster) {
            let (shown, own) = (shown(end_entity), self.own);
            return Err(refuse(format!("it shows {shown}, and this is {own}")));
        }
        self.inner
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| judged(end_entity, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
