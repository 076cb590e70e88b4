//! The recovery kit: what an empty machine needs, besides the disks, to be the cluster's gateway again.
//!
//! ```text
//! # Cairn recovery kit 1 …                     # Cairn recovery kit 1, encrypted …
//! cluster = HEX                                salt = HEX · nonce = HEX
//! name, scheme, access_key, secret_key         sealed = HEX   (ChaCha20-Poly1305 of the plain kit under an Argon2id key)
//! node = HOST:PORT                             check = HEX
//! -----BEGIN CERTIFICATE----- …
//! -----BEGIN PRIVATE KEY----- …
//! check = HEX
//! ```
//! The last line is a BLAKE3 of all before it: a kit that was copied wrongly is found out when it is checked, not when it is needed.
//!
//! Invariant: the file is for its owner alone, and nothing of it is in any log.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use ec_core::Scheme;
use gateway::cluster::authority::Certified;
use gateway::s3::StaticKeys;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use storage_node::membership::write_private;
use storage_node::protocol::ClusterId;

const TITLE: &str = "# Cairn recovery kit 1";
const CHECK_DIGITS: usize = 32;
/// The largest file that is read as one.
const BYTES_MAX: u64 = 1 << 20;
/// Argon2id's memory in KiB, passes and lanes: the second recommendation of RFC 9106.
const COST: (u32, u32, u32) = (64 * 1024, 3, 4);
const KEY_BYTES: usize = 32;

/// See the module.
pub struct Kit {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// Its scheme.
    pub scheme: Scheme,
    /// The access key and its secret.
    pub keys: StaticKeys,
    /// Where nodes were when it was written.
    pub nodes: Vec<String>,
    /// The authority.
    pub authority: Certified,
}

impl Kit {
    /// As text, not encrypted.
    pub fn render(&self) -> String {
        let mut text = format!(
            "{TITLE}\n\
             # Whoever has this can be the gateway of cluster \"{}\". Keep it where its machines are not, and to yourself.\n\
             # With it and the disks an empty machine is the gateway again: cairn ledger restore --from-disks --kit FILE --data DIR\n\
             cluster = {}\nname = {}\nscheme = {}\naccess_key = {}\nsecret_key = {}\n",
            self.name, self.cluster, self.name, self.scheme, self.keys.access_key, self.keys.secret_key,
        );
        for node in &self.nodes {
            let _ = writeln!(text, "node = {node}"); // Writing to a string does not fail.
        }
        for pem in [&self.authority.certificate, &self.authority.key] {
            text.push_str(pem.trim());
            text.push('\n');
        }
        checked(text)
    }

    /// From text. `passphrase`: what it was encrypted with, if it was.
    pub fn parse(text: &str, passphrase: Option<&str>) -> Result<Kit, String> {
        let body = unchecked(text)?;
        if !is_encrypted(text) {
            return Kit::parse_plain(body);
        }
        let passphrase = passphrase.ok_or("the kit is encrypted: give --passphrase-file")?;
        let plain = open(body, passphrase)?;
        Kit::parse_plain(unchecked(&plain)?)
    }

    fn parse_plain(body: &str) -> Result<Kit, String> {
        let value = |name: &'static str| -> Result<&str, String> {
            let found = values(body, name).next();
            found.ok_or_else(|| format!("the kit has no {name}"))
        };
        let scheme = value("scheme")?;
        Ok(Kit {
            cluster: value("cluster")?.parse().map_err(|e| format!("{e}"))?,
            name: value("name")?.to_owned(),
            scheme: scheme.parse().map_err(|e| format!("scheme {scheme}: {e}"))?,
            keys: StaticKeys {
                access_key: value("access_key")?.to_owned(),
                secret_key: value("secret_key")?.to_owned(),
            },
            nodes: values(body, "node").map(str::to_owned).collect(),
            authority: Certified {
                certificate: pem(body, "CERTIFICATE")?,
                key: pem(body, "PRIVATE KEY")?,
            },
        })
    }

    /// Writes it, for its owner alone; encrypted if there is a passphrase. Blocks.
    pub fn write(&self, path: &Path, passphrase: Option<&str>) -> Result<(), String> {
        let text = match passphrase {
            None => self.render(),
            Some(passphrase) => seal(&self.render(), passphrase)?,
        };
        write_private(path, &text)
    }

    /// Reads one. Blocks.
    pub fn read(path: &Path, passphrase: Option<&str>) -> Result<Kit, String> {
        let failed = |error: String| format!("{}: {error}", path.display());
        let text = read_text(path)?;
        Kit::parse(&text, passphrase).map_err(failed)
    }
}

/// The text of a kit, of bounded length.
pub fn read_text(path: &Path) -> Result<String, String> {
    let failed = |error: String| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut text = Vec::new();
    // Not by the length that it claims: a device or a pipe claims none.
    file.take(BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| failed(e.to_string()))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(failed("this is no recovery kit".into()));
    }
    String::from_utf8(text).map_err(|_| failed("this is no recovery kit".into()))
}

/// Whether a kit is encrypted.
pub fn is_encrypted(text: &str) -> bool {
    text.lines().next().is_some_and(|line| line.contains("encrypted"))
}

/// The passphrase in a file: its first line.
pub fn read_passphrase(path: &Path) -> Result<String, String> {
    let text = read_text(path).map_err(|error| format!("the passphrase: {error}"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(format!("{}: the first line is empty", path.display())),
    }
}

fn checked(mut text: String) -> String {
    let check = check_of(&text);
    let _ = writeln!(text, "check = {check}"); // As above.
    text
}

fn check_of(text: &str) -> String {
    let hash = blake3::hash(text.as_bytes()).to_hex();
    hash[..CHECK_DIGITS].to_owned()
}

/// What the last line vouches for.
fn unchecked(text: &str) -> Result<&str, String> {
    if !text.starts_with(TITLE) {
        return Err("this is no recovery kit".into());
    }
    let (body, check) = text
        .rsplit_once("check = ")
        .ok_or("the kit has no check line: its end is missing")?;
    match check.trim() == check_of(body) {
        true => Ok(body),
        false => Err("the kit does not match its check line: it was changed, or not copied whole".into()),
    }
}

fn values<'a>(body: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    body.lines().filter_map(move |line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name && !line.starts_with('#')).then(|| value.trim())
    })
}

fn pem(body: &str, label: &str) -> Result<String, String> {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let found = body.find(&begin).and_then(|start| {
        let rest = &body[start..];
        rest.find(&end).map(|at| format!("{}\n", &rest[..at + end.len()]))
    });
    found.ok_or_else(|| format!("the kit has no {label}"))
}

fn key_of(passphrase: &str, salt: &[u8]) -> Result<[u8; KEY_BYTES], String> {
    let params = Params::new(COST.0, COST.1, COST.2, Some(KEY_BYTES)).map_err(|e| e.to_string())?;
    let mut key = [0; KEY_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key)
        .map_err(|e| e.to_string())?;
    Ok(key)
}

fn seal(plain: &str, passphrase: &str) -> Result<String, String> {
    let (salt, nonce): ([u8; 16], [u8; 12]) = (rand::random(), rand::random());
    let key = key_of(passphrase, &salt)?;
    let payload = Payload {
        msg: plain.as_bytes(),
        aad: TITLE.as_bytes(),
    };
    let sealed = ChaCha20Poly1305::new(Key::from_slice(&key))
        .encrypt(Nonce::from_slice(&nonce), payload)
        .map_err(|_| "encrypting the kit failed")?;
    Ok(checked(format!(
        "{TITLE}, encrypted (Argon2id, ChaCha20-Poly1305)\nsalt = {}\nnonce = {}\nsealed = {}\n",
        hex(&salt),
        hex(&nonce),
        hex(&sealed)
    )))
}

fn open(body: &str, passphrase: &str) -> Result<String, String> {
    let value = |name: &str| {
        let text = values(body, name)
            .next()
            .ok_or_else(|| format!("the kit has no {name}"))?;
        unhex(text).ok_or_else(|| format!("the kit's {name} makes no sense"))
    };
    let (salt, nonce, sealed) = (value("salt")?, value("nonce")?, value("sealed")?);
    if nonce.len() != 12 {
        return Err("the kit's nonce makes no sense".into());
    }
    let key = key_of(passphrase, &salt)?;
    let payload = Payload {
        msg: &sealed,
        aad: TITLE.as_bytes(),
    };
    let plain = ChaCha20Poly1305::new(Key::from_slice(&key))
        .decrypt(Nonce::from_slice(&nonce), payload)
        .map_err(|_| "the passphrase is not the kit's")?;
    String::from_utf8(plain).map_err(|_| "the kit makes no sense".into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // As above.
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    (digits.len().is_multiple_of(2)).then(|| digits.chunks(2).map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::cluster::authority::Authority;

    fn kit() -> Kit {
        let cluster = ClusterId(77);
        Kit {
            cluster,
            name: "here".into(),
            scheme: "rs(4,2)".parse().unwrap(),
            keys: StaticKeys {
                access_key: "CAIRNKEY".into(),
                secret_key: "a secret = with / signs".into(),
            },
            nodes: vec!["10.0.0.1:9100".into(), "b.example:9100".into()],
            authority: Authority::create(cluster, 1_790_000_000_000).unwrap(),
        }
    }

    fn assert_same(read: &Kit, written: &Kit) {
        assert_eq!(read.render(), written.render());
        Authority::open(read.cluster, &read.authority).unwrap();
    }

    #[test]
    fn what_was_written_is_read() {
        let kit = kit();
        let text = kit.render();
        assert_same(&Kit::parse(&text, None).unwrap(), &kit);
        let sealed = seal(&text, "correct horse").unwrap();
        assert!(!sealed.contains("secret") && is_encrypted(&sealed) && !is_encrypted(&text));
        assert_same(&Kit::parse(&sealed, Some("correct horse")).unwrap(), &kit);
        assert!(Kit::parse(&sealed, Some("wrong horse")).is_err());
        assert!(Kit::parse(&sealed, None).is_err());
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_found_out() {
        let mut kit = kit();
        kit.authority.key = Authority::create(kit.cluster, 1_790_000_000_000).unwrap().key;
        let kit = Kit::parse(&kit.render(), None).unwrap();
        let error = Authority::open(kit.cluster, &kit.authority)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not the one of its certificate"), "{error}");
    }

    #[test]
    fn a_file_without_an_end_is_no_kit() {
        let error = read_text(Path::new("/dev/zero")).unwrap_err();
        assert!(error.contains("no recovery kit"), "{error}");
    }

    #[test]
    fn a_kit_that_was_copied_wrongly_is_found_out() {
        let text = kit().render();
        for cut in [1, 10, text.len() / 2, text.len() - 2] {
            let _ = Kit::parse(&text[..cut], None)
                .err()
                .unwrap_or_else(|| panic!("cut at {cut}"));
        }
        for at in (0..text.len() - 1).step_by(7) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Kit::parse(&changed, None).is_err(), "changed at {at}");
        }
    }
}
