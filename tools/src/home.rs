//! The directory of a gateway: what `cairn init` makes and `cairn gateway` starts from.
//!
//! ```text
//! DIR/authority.pem   the certificate of the cluster's authority
//! DIR/authority.key   its key: whoever has it can be any gateway or node
//! DIR/gateway.pem     this gateway's certificate
//! DIR/gateway.key     its key
//! DIR/recovery-kit.txt what an empty machine needs to be this gateway; keep a copy elsewhere
//! DIR/credentials     the access key of S3 and its secret, as the AWS CLI reads them
//! DIR/ledger.redb     the ledger
//! DIR/ledger.redb-log its last commits
//! DIR/cairn.toml      the configuration; written last
//! ```
//! Invariant: what is secret is for its owner alone.

use ec_core::Scheme;
use gateway::cluster::authority::{Authority, Certified};
use gateway::cluster::setup;
use gateway::ledger::Ledger;
use gateway::ledger::redb::RedbStore;
use gateway::s3::StaticKeys;
use rand::Rng;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage_node::membership::write_private;
use storage_node::protocol::ClusterId;
use storage_node::tls::Credentials;

use crate::kit::Kit;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The files.
pub struct Home(PathBuf);

/// What is in `cairn.toml` at first.
const CONFIG: &str = include_str!("first_config.toml");

const CREDENTIALS: &str = "credentials";
const LEDGER: &str = "ledger.redb";

/// What there is in a directory that is whole, and what it takes to do without.
const FILES: [(&str, &str); 6] = [
    (
        "authority.key",
        "the key of the cluster's authority: no other can admit nodes of this cluster",
    ),
    ("authority.pem", "the certificate of the cluster's authority"),
    ("gateway.key", "the key of this gateway, which the authority made"),
    (
        "gateway.pem",
        "the certificate of this gateway, which the authority made",
    ),
    (CREDENTIALS, "the access key of S3 and its secret"),
    (LEDGER, "the ledger: what objects there are, and where"),
];

const LEDGER_CACHE_AT_INIT: usize = 16 << 20;

impl Home {
    /// In this directory.
    pub fn at(directory: &Path) -> Home {
        Home(directory.into())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.file("cairn.toml")
    }

    /// The ledger.
    pub fn ledger(&self) -> PathBuf {
        self.file(LEDGER)
    }

    /// The recovery kit.
    pub fn kit(&self) -> PathBuf {
        self.file("recovery-kit.txt")
    }

    /// Whether `cairn init` was here. A ledger alone may be that of `cairn dev`.
    pub fn is_inhabited(&self) -> bool {
        let of_init = FILES.iter().filter(|(name, _)| *name != LEDGER);
        of_init.map(|(name, _)| name).any(|name| self.file(name).exists())
    }

    /// Refuses a directory that is not all of what `cairn init` made: what is missing, and what to do. A cluster that was there
    /// must not be taken for none, because a new one could do nothing with the disks of the old one.
    /// `has_keys`: the keys of S3 come from elsewhere.
    pub fn check_whole(&self, has_keys: bool) -> Result<(), String> {
        let directory = self.0.display();
        let is_missing = |name: &str| !self.file(name).exists();
        if !self.is_inhabited() && !is_missing(LEDGER) {
            return Err(format!(
                "{directory} has a ledger, and none of the keys that `cairn init` makes: `cairn dev --data {directory}` runs it if it made it. If \
                 not, put the other files back from a backup of this directory, or restore another one with `cairn ledger restore`"
            ));
        }
        if !self.is_inhabited() {
            return Err(format!(
                "there is no cluster in {directory}: `cairn init --data {directory}` makes a new one. If there was one, its disks need the files \
                 that it had: put them back from a backup, or restore them with `cairn ledger restore --from-disks --kit FILE --data {directory}`"
            ));
        }
        let needed = FILES
            .iter()
            .filter(|(name, _)| !(has_keys && *name == CREDENTIALS));
        let missing: Vec<_> = needed.filter(|(name, _)| is_missing(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = missing
            .iter()
            .map(|(name, what)| format!("  {name:<15} {what}"))
            .collect();
        let restore = match &missing[..] {
            [(LEDGER, _)] => format!("`cairn ledger restore --from-disks --data {directory}` makes the ledger of what its disks have"),
            _ => "`cairn ledger restore --from-disks --kit FILE --data DIR` makes another directory of its recovery kit and its disks".into(),
        };
        Err(format!(
            "{directory} has a cluster, and of its files there is no\n{}\nPut back what is missing from a backup of this directory, or \
             {restore}. Do not run `cairn init`: it makes another cluster, which can do nothing with the disks of this one",
            lines.join("\n")
        ))
    }

    fn refuse_inhabited(&self) -> Result<(), String> {
        let names = FILES.iter().map(|(name, _)| *name);
        let there = names.chain(["cairn.toml"]).find(|name| self.file(name).exists());
        match there {
            None => Ok(()),
            Some(name) if self.config().exists() || name == LEDGER => Err(format!(
                "{} holds a cluster already (there is {name}); another cluster needs another directory",
                self.0.display()
            )),
            Some(name) => Err(format!(
                "{} holds a cluster that was not finished (there is {name}); if nothing uses it, remove the directory and begin again",
                self.0.display()
            )),
        }
    }

    /// Makes a cluster here.
    pub async fn create(
        &self,
        scheme: Scheme,
        name: &str,
        now_ms: u64,
    ) -> Result<(ClusterId, StaticKeys), Error> {
        self.refuse_inhabited()?;
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0);
        made.map_err(|e| format!("{}: {e}", self.0.display()))?;
        let cluster = ClusterId(rand::random());
        let authority = Authority::create(cluster, now_ms)?;
        write_private(&self.file("authority.key"), &authority.key)?;
        write_private(&self.file("authority.pem"), &authority.certificate)?;
        let gateway = Authority::open(cluster, &authority)?.certify_gateway(now_ms)?;
        write_private(&self.file("gateway.key"), &gateway.key)?;
        write_private(&self.file("gateway.pem"), &gateway.certificate)?;
        let keys = StaticKeys {
            access_key: format!("CAIRN{}", random_text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 15)),
            secret_key: random_text(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                40,
            ),
        };
        write_private(&self.file(CREDENTIALS), &render_keys(&keys))?;
        let path = self.ledger();
        let opened = tokio::task::spawn_blocking(move || RedbStore::create(path, LEDGER_CACHE_AT_INIT));
        let store = Arc::new(opened.await??);
        setup::create(&Ledger::new(store.clone()), cluster, name, scheme).await?;
        store.shutdown().await;
        let kit = Kit {
            cluster,
            name: name.into(),
            scheme,
            keys,
            nodes: Vec::new(),
            authority,
        };
        kit.write(&self.kit(), None)?;
        write_private(&self.config(), &CONFIG.replace("@NAME@", name))?;
        Ok((cluster, kit.keys))
    }

    /// Makes all of a gateway's directory but the ledger, out of a recovery kit. The configuration comes last, with the ledger: see
    /// [`Home::complete`].
    pub fn restore(&self, kit: &Kit, now_ms: u64) -> Result<(), Error> {
        self.refuse_inhabited()?;
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0);
        made.map_err(|e| format!("{}: {e}", self.0.display()))?;
        let gateway = Authority::open(kit.cluster, &kit.authority)?.certify_gateway(now_ms)?;
        write_private(&self.file("authority.key"), &kit.authority.key)?;
        write_private(&self.file("authority.pem"), &kit.authority.certificate)?;
        write_private(&self.file("gateway.key"), &gateway.key)?;
        write_private(&self.file("gateway.pem"), &gateway.certificate)?;
        write_private(&self.file("credentials"), &render_keys(&kit.keys))?;
        Ok(kit.write(&self.kit(), None)?)
    }

    /// Whether the keys that are here are those of a kit.
    pub fn is_of(&self, kit: &Kit) -> bool {
        let kept = self.authority_kept();
        kept.is_ok_and(|(cluster, authority)| {
            cluster == kit.cluster && authority.key.trim() == kit.authority.key.trim()
        })
    }

    /// Removes what [`Home::restore`] and a restore of the ledger made, when that failed.
    pub fn forget_restored(&self) {
        let made = FILES.iter().map(|(name, _)| (*name).to_owned());
        let beside = ["", "-log", "-sums", "-reserve"].map(|suffix| format!("{LEDGER}{suffix}"));
        for name in made
            .chain(beside)
            .chain(["recovery-kit.txt".into(), "cairn.toml".into()])
        {
            // What is left is named by the next try, which refuses the directory.
            let _gone = std::fs::remove_file(self.file(&name));
        }
    }

    /// Writes the configuration: the directory is whole.
    pub fn complete(&self, name: &str) -> Result<(), String> {
        write_private(&self.config(), &CONFIG.replace("@NAME@", name))
    }

    /// What was kept of the authority, and the cluster that it is of.
    pub fn authority_kept(&self) -> Result<(ClusterId, Certified), Error> {
        let file = |name| self.read(name);
        let credentials = Credentials::from_pem(
            &file("authority.pem")?,
            &file("gateway.pem")?,
            &file("gateway.key")?,
        )?;
        let certified = Certified {
            certificate: file("authority.pem")?,
            key: file("authority.key")?,
        };
        Ok((credentials.cluster(), certified))
    }

    /// The authority of this cluster.
    pub fn authority(&self, cluster: ClusterId) -> Result<Authority, Error> {
        let certified = Certified {
            certificate: self.read("authority.pem")?,
            key: self.read("authority.key")?,
        };
        Ok(Authority::open(cluster, &certified)?)
    }

    /// This gateway's certificate.
    pub fn credentials(&self, cluster: ClusterId) -> Result<Credentials, Error> {
        let file = |name| self.read(name);
        let credentials = Credentials::from_pem(
            &file("authority.pem")?,
            &file("gateway.pem")?,
            &file("gateway.key")?,
        )?;
        match credentials.cluster() == cluster {
            true => Ok(credentials),
            false => Err(format!(
                "{} has the certificate of {}, and its ledger is of cluster {cluster}",
                self.0.display(),
                credentials.peer
            )
            .into()),
        }
    }

    /// The access key that `cairn init` made.
    pub fn keys(&self) -> Result<StaticKeys, String> {
        let text = self.read(CREDENTIALS)?;
        let value = |name: &str| {
            let found = text.lines().find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            });
            found.ok_or_else(|| format!("{}: there is no {name}", self.file(CREDENTIALS).display()))
        };
        Ok(StaticKeys {
            access_key: value("aws_access_key_id")?,
            secret_key: value("aws_secret_access_key")?,
        })
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let path = self.file(name);
        std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn render_keys(keys: &StaticKeys) -> String {
    format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_key
    )
}

fn random_text(alphabet: &[u8], len: usize) -> String {
    let mut rng = rand::rng(); // Seeded by the system, and fit for secrets.
    (0..len)
        .map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_named_and_never_taken_for_no_cluster() {
        let name = format!("cairn-home-{}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        let home = Home::at(&directory);
        assert!(
            home.check_whole(false)
                .unwrap_err()
                .contains("`cairn init --data")
        );
        home.create(Scheme::rs(4, 2).unwrap(), "test", 1).await.unwrap();
        home.check_whole(false).unwrap();
        let aside = directory.join("aside");
        for (name, _) in FILES {
            std::fs::rename(home.file(name), &aside).unwrap();
            let refused = home.check_whole(false).unwrap_err();
            assert!(
                refused.contains(name) && refused.contains("Put back"),
                "{name}: {refused}"
            );
            assert!(refused.contains("Do not run `cairn init`"), "{name}: {refused}");
            assert_eq!(home.check_whole(true).is_ok(), name == CREDENTIALS);
            assert!(home.is_inhabited(), "{name}");
            std::fs::rename(&aside, home.file(name)).unwrap();
        }
        for (name, _) in FILES.into_iter().filter(|(name, _)| *name != LEDGER) {
            std::fs::remove_file(home.file(name)).unwrap();
        }
        let refused = home.check_whole(false).unwrap_err();
        assert!(!home.is_inhabited() && refused.contains("cairn dev"), "{refused}");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
