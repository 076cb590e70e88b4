//! Whom a certificate names.

use crate::protocol::{ClusterId, NodeId};
use rustls_pki_types::{CertificateDer, ServerName};
use std::fmt;
use webpki::EndEntityCert;

const DOMAIN: &str = ".cairn.internal";

/// What somebody is in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves S3, and may ask nodes for anything.
    Gateway,
    /// It serves disks, and may ask other nodes for nothing.
    Node(NodeId),
}

/// Somebody in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which cluster.
    pub cluster: ClusterId,
    /// What it is there.
    pub role: Role,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Gateway => write!(f, "a gateway of cluster {}", self.cluster),
            Role::Node(node) => write!(f, "node {node} of cluster {}", self.cluster),
        }
    }
}

impl Peer {
    /// A gateway of this cluster.
    pub fn gateway(cluster: ClusterId) -> Peer {
        Peer {
            cluster,
            role: Role::Gateway,
        }
    }

    /// A node of this cluster.
    pub fn node(cluster: ClusterId, node: NodeId) -> Peer {
        Peer {
            cluster,
            role: Role::Node(node),
        }
    }

    /// The name in its certificate.
    pub fn dns_name(&self) -> String {
        match self.role {
            Role::Gateway => format!("gateway.{}{DOMAIN}", self.cluster),
            Role::Node(node) => format!("{node}.node.{}{DOMAIN}", self.cluster),
        }
    }

    pub(super) fn server_name(&self) -> Result<ServerName<'static>, rustls::Error> {
        ServerName::try_from(self.dns_name()).map_err(|e| rustls::Error::General(e.to_string()))
    }

    /// Whom a certificate names, if it names exactly one, whoever signed it.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Peer> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut names = certificate.valid_dns_names();
        let name = names.next()?;
        names.next().is_none().then_some(())?;
        Peer::named(name)
    }

    fn named(name: &str) -> Option<Peer> {
        let parts: Vec<&str> = name.strip_suffix(DOMAIN)?.split('.').collect();
        match parts[..] {
            ["gateway", cluster] => Some(Peer::gateway(cluster.parse().ok()?)),
            [node, "node", cluster] => Some(Peer::node(cluster.parse().ok()?, node.parse().ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let cluster = ClusterId(0xca12);
        for peer in [Peer::gateway(cluster), Peer::node(cluster, NodeId(u128::MAX))] {
            assert_eq!(Peer::named(&peer.dns_name()), Some(peer));
            assert!(peer.server_name().is_ok());
        }
        for wrong in [
            "",
            "gateway.cairn.internal",
            "gateway.1.cairn.internal",
            "x.example.com",
        ] {
            assert_eq!(Peer::named(wrong), None);
        }
    }
}
