//! What a node keeps of its cluster, in a directory of its own.
//!
//! ```text
//! DIR/node.key       its key, made here; never leaves
//! DIR/node.pem       its certificate
//! DIR/authority.pem  the certificate of the cluster's authority
//! DIR/member.json    cluster, id, name, and where the gateway is
//! ```
//! Order: the key before anything is asked for with it; `member.json` last. Without it the node has not joined, and
//! joining again goes on with the same key.
//! Invariant: all files are for their owner alone, and are there whole or not at all.

use crate::join::{JoinAnswer, Token, make_key};
use crate::protocol::{ClusterId, NodeId};
use crate::tls::Credentials;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.pem";
const AUTHORITY: &str = "authority.pem";
const MEMBER: &str = "member.json";

/// Which node of which cluster this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The join address of a gateway: where it announces itself.
    pub gateway: String,
}

/// A node that has joined.
#[derive(Debug)]
pub struct Membership {
    /// Which.
    pub member: Member,
    /// Its certificate and key.
    pub credentials: Credentials,
}

impl Membership {
    /// What the directory holds; none if the node has not joined. Blocks.
    pub fn load(directory: &Path) -> Result<Option<Membership>, String> {
        let path = directory.join(MEMBER);
        if !path
            .try_exists()
            .map_err(|e| format!("{}: {e}", path.display()))?
        {
            return Ok(None);
        }
        let member: Member =
            serde_json::from_str(&read(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        let file = |name| read(&directory.join(name));
        let credentials = Credentials::from_pem(&file(AUTHORITY)?, &file(CERTIFICATE)?, &file(KEY)?)
            .map_err(|e| format!("{}: {e}", directory.display()))?;
        Ok(Some(Membership { member, credentials }))
    }

    /// Whether the token is for another cluster than this node's.
    pub fn is_foreign(&self, token: &Token) -> bool {
        self.credentials.authority_fingerprint() != token.authority
    }

    /// Takes in where the gateway is now, from a token of this cluster. Blocks.
    pub fn follow(&mut self, directory: &Path, token: &Token) -> Result<(), String> {
        if self.is_foreign(token) || self.member.gateway == token.address {
            return Ok(());
        }
        self.member.gateway.clone_from(&token.address);
        write_member(directory, &self.member)
    }

    /// Keeps what a node got when it joined. Blocks.
    pub fn store(
        directory: &Path,
        name: &str,
        token: &Token,
        answer: &JoinAnswer,
    ) -> Result<Membership, String> {
        // It came over a connection to this authority, but costs nothing to check.
        let authority = CertificateDer::from_pem_slice(answer.authority.as_bytes());
        if authority.is_ok_and(|a| crate::tls::fingerprint(&a) != token.authority) {
            return Err("the gateway gave another authority than the token names".into());
        }
        let member = Member {
            cluster: answer.cluster,
            node: answer.node,
            name: name.into(),
            gateway: token.address.clone(),
        };
        write_private(&directory.join(CERTIFICATE), &answer.certificate)?;
        write_private(&directory.join(AUTHORITY), &answer.authority)?;
        write_member(directory, &member)?;
        Membership::load(directory)?.ok_or_else(|| "what was written is not there".into())
    }
}

fn write_member(directory: &Path, member: &Member) -> Result<(), String> {
    let json = serde_json::to_string_pretty(member).map_err(|e| e.to_string())?;
    write_private(&directory.join(MEMBER), &json)
}

/// The key in the directory, made if there is none yet. Blocks.
pub fn key(directory: &Path) -> Result<String, String> {
    std::fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let path = directory.join(KEY);
    if !path
        .try_exists()
        .map_err(|e| format!("{}: {e}", path.display()))?
    {
        write_private(&path, &make_key()?)?;
    }
    read(&path)
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes a file that only its owner may read, durably, whole or not at all. Blocks.
pub fn write_private(path: &Path, content: &str) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let unfinished = path.with_added_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        File::open(parent)?.sync_all()
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}
