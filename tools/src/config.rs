//! `cairn.toml`: what a gateway or a node is told once. Flags and `CAIRN_…` variables go before it.
//!
//! Every mistake is found and said at once, with its place: see [`mistake`]. Paths that are not absolute start at the
//! file's directory.
//! Invariant: nothing is looked up on disk here. A disk that is missing is the node's to report, and no mistake of the file.

mod mistake;
mod section;

pub use mistake::Mistakes;

use crate::duration::parse_duration;
use crate::size::parse_size;
use ec_core::Kernel;
use section::{Given, Section};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage_node::join::{check_address, check_label};
use toml::de::{DeTable, DeValue};

/// Where S3 is served, unless somebody says otherwise.
pub const LISTEN: &str = "127.0.0.1:9000";
/// Where operators are served.
pub const ADMIN_LISTEN: &str = "127.0.0.1:9001";
/// Where nodes join.
pub const JOIN_LISTEN: &str = "127.0.0.1:9002";
/// Where a node serves.
pub const NODE_LISTEN: &str = "127.0.0.1:9100";

/// `[gateway]`: what it says, and nothing for what it does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewaySection {
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub admin_listen: Option<SocketAddr>,
    pub join_listen: Option<SocketAddr>,
    pub join_address: Option<String>,
    pub memory: Option<u64>,
    pub cache: Option<u64>,
    pub kernel: Option<Kernel>,
    pub grace: Option<Duration>,
    pub rebuild_floor: Option<u64>,
    pub archive: Option<ArchiveMode>,
    pub region: Option<String>,
    pub domain: Option<Domains>,
}

/// Host names below which buckets are hosts of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains(pub Vec<String>);

impl std::str::FromStr for Domains {
    type Err = String;
    fn from_str(text: &str) -> Result<Domains, String> {
        let name = |text: &str| {
            let text = text.trim();
            let label = |label: &str| {
                let is_of = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                !label.is_empty() && label.len() <= 63 && label.bytes().all(is_of)
            };
            match text.split('.').all(label) && text.parse::<std::net::IpAddr>().is_err() {
                true => Ok(text.to_ascii_lowercase()),
                false => Err(format!("{text:?} is no host name, as s3.example.com")),
            }
        };
        text.split(',').map(name).collect::<Result<_, _>>().map(Domains)
    }
}

/// A region of S3.
pub fn region(text: &str) -> Result<String, String> {
    let is_of = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(is_of) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no region, as us-east-1")),
    }
}

/// When a commit of the ledger is in its archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveMode {
    /// A second later at most.
    #[default]
    Async,
    /// Before it is answered.
    Sync,
}

impl std::str::FromStr for ArchiveMode {
    type Err = String;
    fn from_str(text: &str) -> Result<ArchiveMode, String> {
        match text {
            "async" => Ok(ArchiveMode::Async),
            "sync" => Ok(ArchiveMode::Sync),
            _ => Err("it is `async` or `sync`".into()),
        }
    }
}

/// `[node]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSection {
    pub name: Option<String>,
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub address: Option<String>,
    pub rack: Option<String>,
    pub zone: Option<String>,
    pub disks: Option<Vec<PathBuf>>,
    /// `Some(None)`: never.
    pub verify_every: Option<Option<Duration>>,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub gateway: Option<GatewaySection>,
    pub node: Option<NodeSection>,
}

const SECTIONS: [&str; 2] = ["gateway", "node"];
const GATEWAY_KEYS: [&str; 13] = [
    "data",
    "listen",
    "admin_listen",
    "join_listen",
    "join_address",
    "memory",
    "cache",
    "kernel",
    "grace",
    "rebuild_floor",
    "archive",
    "region",
    "domain",
];
const NODE_KEYS: [&str; 8] = [
    "name",
    "data",
    "listen",
    "address",
    "rack",
    "zone",
    "disks",
    "verify_every",
];

/// Which sections must be there, and which of their keys were given elsewhere and may be missing.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    pub section: Option<&'a str>,
    pub given: &'a [&'a str],
}

/// Reads a file.
pub fn read(path: &Path, wanted: Wanted) -> Result<Config, Mistakes> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Mistakes::of_file(path, format!("cannot be read: {error}")))?;
    parse(path, &text, wanted)
}

/// Reads a text as if it were in this file.
pub fn parse(path: &Path, text: &str, wanted: Wanted) -> Result<Config, Mistakes> {
    let mut mistakes = Mistakes::new(path, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        mistakes.add(error.span().map(|span| span.start), error.message(), None);
    }
    if !errors.is_empty() {
        return Err(mistakes); // What else is in such a text may not be what was meant.
    }
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut config = Config::default();
    for (name, value) in table.get_ref() {
        let at = name.span().start;
        let (name, DeValue::Table(content)) = (name.get_ref().as_ref(), value.get_ref()) else {
            let suggestion = SECTIONS.iter().find(|section| {
                let keys = if **section == "node" {
                    &NODE_KEYS[..]
                } else {
                    &GATEWAY_KEYS[..]
                };
                keys.contains(&name.get_ref().as_ref())
            });
            let suggestion = suggestion.map(|section| format!("put it below a line [{section}]"));
            let what = format!("`{}` is in no section", name.get_ref());
            mistakes.add(Some(at), what, suggestion);
            continue;
        };
        let given = match wanted.section {
            Some(section) if section == name => Given(wanted.given),
            _ => Given(&[]),
        };
        match name {
            "gateway" => {
                let section = Section::new(name, at, content, given, &mut mistakes);
                config.gateway = Some(gateway(section, &directory));
            }
            "node" => {
                let section = Section::new(name, at, content, given, &mut mistakes);
                config.node = Some(node(section, &directory));
            }
            _ => {
                let suggestion = section::did_you_mean(name, &SECTIONS, "[", "]");
                mistakes.add(Some(at), format!("unknown section [{name}]"), suggestion);
            }
        }
    }
    let is_there = |section: &str| table.get_ref().contains_key(section);
    match wanted.section {
        Some(section) if !is_there(section) => {
            mistakes.add(None, format!("there is no section [{section}]"), None);
        }
        None if !SECTIONS.into_iter().any(is_there) => {
            mistakes.add(
                None,
                "there is neither a section [gateway] nor a section [node]",
                None,
            );
        }
        _ => {}
    }
    mistakes.none_or(config)
}

fn gateway(mut section: Section, directory: &Path) -> GatewaySection {
    section.know(&GATEWAY_KEYS);
    let path = |text: &str| path(directory, text);
    let found = GatewaySection {
        data: section.required("data", "\"/var/lib/cairn/gateway\"", path),
        listen: section.text("listen", "\"127.0.0.1:9000\"", listen),
        admin_listen: section.text("admin_listen", "\"127.0.0.1:9001\"", listen),
        join_listen: section.text("join_listen", "\"10.0.0.1:9002\"", listen),
        join_address: section.text("join_address", "\"10.0.0.1:9002\"", address),
        memory: section.size("memory", "\"4GiB\"", parse_size),
        cache: section.size("cache", "\"2GiB\"", parse_size),
        kernel: section.text("kernel", "\"avx2\"", |text| {
            text.parse().map_err(|e| format!("{e}"))
        }),
        grace: section.text("grace", "\"10m\"", parse_duration),
        rebuild_floor: section.size("rebuild_floor", "\"16MiB\"", parse_size),
        archive: section.text("archive", "\"sync\"", str::parse),
        region: section.text("region", "\"us-east-1\"", region),
        domain: section.text("domain", "\"s3.example.com\"", str::parse),
    };
    section.address_of_listen("join_listen", found.join_listen, "join_address");
    found
}

fn node(mut section: Section, directory: &Path) -> NodeSection {
    section.know(&NODE_KEYS);
    let path = |text: &str| path(directory, text);
    let label = |text: &str| check_label(text).map(|()| text.to_owned());
    let found = NodeSection {
        name: section.required("name", "\"node-1\"", label),
        data: section.required("data", "\"/var/lib/cairn/node\"", path),
        listen: section.text("listen", "\"10.0.0.2:9100\"", listen),
        address: section.text("address", "\"10.0.0.2:9100\"", address),
        rack: section.text("rack", "\"rack-1\"", label),
        zone: section.text("zone", "\"zone-1\"", label),
        disks: section.paths("disks", "[\"/dev/sdb\"]", path),
        verify_every: section.text("verify_every", "\"7d\"", |text| match text {
            "never" => Ok(None),
            text => parse_duration(text)
                .map(Some)
                .map_err(|e| format!("{e}, or never")),
        }),
    };
    section.address_of_listen("listen", found.listen, "address");
    found
}

fn path(directory: &Path, text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("the path is empty".into()),
        text if text.contains('\0') => Err("a path has no zero byte".into()),
        text => Ok(directory.join(text)),
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address to listen on; write IP:PORT, as 127.0.0.1:9000 or 0.0.0.0:9000")
    })
}

fn address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned())
}

/// The address that others reach, for one that is listened on; `said` if somebody said so.
pub fn reachable(listen: SocketAddr, said: Option<String>) -> Option<String> {
    said.or_else(|| (!listen.ip().is_unspecified()).then(|| listen.to_string()))
}

#[cfg(test)]
mod tests;
