//! Operations on nodes and their disks: tokens, lists, adding disks.

use super::server::AdminError;
use super::status::{DiskLine, NodeLine, disk_lines, node_lines};
use crate::cluster::adopt::{self, ADD_MAX, Added, Blank};
use crate::cluster::nodes::Node;
use crate::error::Error;
use crate::server::{Gateway, Membership};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{DiskState, DiskStatus};

/// Who asks is answered by then, before the connection counts as idle.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// The nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeList {
    /// By name.
    pub nodes: Vec<NodeLine>,
}

/// The disks, and what could become one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskList {
    /// By name.
    pub disks: Vec<DiskLine>,
    /// By node.
    pub blank: Vec<BlankLine>,
    /// What nodes have that is no disk of this cluster, or not where it belongs; by node.
    #[serde(default)]
    pub strange: Vec<StrangeLine>,
}

/// A disk that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrangeLine {
    /// Its node's name.
    pub node: String,
    /// Where it is there.
    pub path: String,
    /// Why it is not used.
    pub reason: String,
}

/// A blank disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlankLine {
    /// Its node's name.
    pub node: String,
    /// Where it is there.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// What is there, if it is not all zeros.
    pub holds: Option<String>,
}

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Seconds for which it is good.
    pub ttl_s: u64,
}

/// A token.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// For `cairn node --join`: a secret.
    pub token: String,
    /// Milliseconds since 1970 from which on it is refused.
    pub expires_ms: u64,
}

/// Asks that blank disks become the cluster's: exactly these, which the operator saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// Which.
    pub disks: Vec<BlankName>,
    /// Also where something is that is not Cairn's.
    #[serde(default)]
    pub overwrite: bool,
}

/// Names a blank disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlankName {
    /// Its node's name.
    pub node: String,
    /// Where it is there.
    pub path: String,
}

/// What became of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddAnswer {
    /// In the order of nodes.
    pub disks: Vec<AddedLine>,
}

/// What became of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddedLine {
    /// Its node's name.
    pub node: String,
    /// Where it is there.
    pub path: String,
    /// The disk's name.
    pub label: String,
    /// Its id.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// What went wrong, if it is not a disk of the cluster now.
    pub error: Option<String>,
}

fn membership(gateway: &Gateway) -> Result<Arc<Membership>, AdminError> {
    let membership = gateway.membership.clone();
    membership.ok_or_else(|| {
        AdminError::conflict(
            "this is a cluster of one process (`cairn dev`): no nodes join it, and its disks are fixed",
        )
    })
}

/// The nodes.
pub fn list(gateway: &Gateway) -> NodeList {
    NodeList {
        nodes: node_lines(&gateway.objects),
    }
}

/// The disks.
pub fn disks(gateway: &Gateway) -> DiskList {
    let disks = &gateway.objects.disks;
    let line = |blank: Blank| BlankLine {
        node: blank.node_name,
        path: blank.disk.path,
        size: blank.disk.size,
        holds: blank.disk.holds,
    };
    DiskList {
        disks: disk_lines(&gateway.objects, &disks.all()),
        blank: adopt::blank(disks.nodes()).into_iter().map(line).collect(),
        strange: disks
            .nodes()
            .all()
            .iter()
            .flat_map(|node| strange(gateway, node))
            .collect(),
    }
}

fn strange(gateway: &Gateway, node: &Node) -> Vec<StrangeLine> {
    let Some(info) = &node.info else { return Vec::new() };
    let line = |disk: DiskStatus| {
        let known = gateway.objects.disks.get(disk.disk);
        let reason = match (known, disk.state) {
            (Some(known), _) if known.node.as_ref() == Some(info) => return None,
            (Some(known), _) => format!("{} belongs elsewhere", known.label),
            (None, DiskState::Fenced { reason }) => without_path(reason, &disk.path),
            (None, DiskState::Online) => format!("the ledger has no disk {}", disk.disk),
        };
        Some(StrangeLine {
            node: info.name.clone(),
            path: disk.path,
            reason,
        })
    };
    node.shown().into_iter().filter_map(line).collect()
}

/// A device's errors begin with its path, which the line has already.
fn without_path(reason: String, path: &str) -> String {
    let rest = reason.strip_prefix(path).and_then(|rest| rest.strip_prefix(": "));
    rest.map(str::to_owned).unwrap_or(reason)
}

/// A new token.
pub async fn make_token(gateway: &Gateway, request: TokenRequest) -> Result<TokenAnswer, AdminError> {
    let joining = membership(gateway)?.joining.clone();
    let (token, expires_ms) = joining.make_token(Duration::from_secs(request.ttl_s)).await?;
    Ok(TokenAnswer {
        token: token.to_string(),
        expires_ms,
    })
}

/// Makes blank disks the cluster's.
pub async fn add_disks(gateway: &Gateway, request: AddRequest) -> Result<AddAnswer, AdminError> {
    let membership = membership(gateway)?;
    let blank = membership.adopting.blank();
    if request.disks.is_empty() || request.disks.len() > ADD_MAX {
        return Err(AdminError::bad(format!("name 1 to {ADD_MAX} disks")));
    }
    let mut chosen: Vec<Blank> = Vec::new();
    for BlankName { node, path } in &request.disks {
        let is_it = |blank: &&Blank| blank.node_name == *node && blank.disk.path == *path;
        let Some(found) = blank.iter().find(is_it) else {
            return Err(AdminError::conflict(format!(
                "{path} is not a blank disk of node {node}"
            )));
        };
        if let (Some(holds), false) = (&found.disk.holds, request.overwrite) {
            return Err(AdminError::conflict(format!(
                "{path} of node {node} holds {holds}; adding it destroys that, and has to be asked for"
            )));
        }
        if !chosen.contains(found) {
            chosen.push(found.clone());
        }
    }
    // As a task: an operator who leaves does not stop it half way.
    let adding = tokio::spawn(async move { membership.adopting.add(&chosen, request.overwrite).await });
    let Ok(added) = tokio::time::timeout(ANSWER_WITHIN, adding).await else {
        return Err(AdminError {
            status: StatusCode::GATEWAY_TIMEOUT,
            what: "formatting takes long, and goes on; the disks are listed when it is done".into(),
        });
    };
    let added = added.map_err(|e| Error::Internal(format!("adding disks: {e}")))??;
    let line = |added: Added| AddedLine {
        node: added.node,
        path: added.path,
        label: added.label,
        id: added.disk.to_string(),
        size: added.size,
        error: added.error,
    };
    Ok(AddAnswer {
        disks: added.into_iter().map(line).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::without_path;

    #[test]
    fn a_reason_does_not_repeat_its_path() {
        let missing = "/dev/sdx: No such file or directory (os error 2)".to_owned();
        assert_eq!(
            without_path(missing, "/dev/sdx"),
            "No such file or directory (os error 2)"
        );
        let other = "/dev/sdxy: No such file".to_owned();
        assert_eq!(without_path(other.clone(), "/dev/sdx"), other);
    }
}
