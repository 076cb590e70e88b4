//! The directory of a gateway: what `cairn init` makes and `cairn gateway` starts from.
//!
//! ```text
//! DIR/authority.pem   the certificate of the cluster's authority
//! DIR/authority.key   its key: whoever has it can be any gateway or node
//! DIR/gateway.pem     this gateway's certificate
//! DIR/gateway.key     its key
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

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The files.
pub struct Home(PathBuf);

/// What is in `cairn.toml` at first.
const CONFIG: &str = include_str!("first_config.toml");

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
        self.file("ledger.redb")
    }

    /// Whether `cairn init` was here.
    pub fn is_inhabited(&self) -> bool {
        self.file("authority.key").exists()
    }

    fn refuse_inhabited(&self) -> Result<(), String> {
        let all = [
            "authority.key",
            "authority.pem",
            "gateway.key",
            "gateway.pem",
            "credentials",
            "ledger.redb",
        ];
        let there = all
            .into_iter()
            .chain(["cairn.toml"])
            .find(|name| self.file(name).exists());
        match there {
            None => Ok(()),
            Some(name) if self.config().exists() || name == "ledger.redb" => Err(format!(
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
        write_private(&self.file("credentials"), &render_keys(&keys))?;
        let path = self.ledger();
        let opened = tokio::task::spawn_blocking(move || RedbStore::open(path, LEDGER_CACHE_AT_INIT));
        let store = Arc::new(opened.await??);
        setup::create(&Ledger::new(store.clone()), cluster, name, scheme).await?;
        store.shutdown().await;
        write_private(&self.config(), &CONFIG.replace("@NAME@", name))?;
        Ok((cluster, keys))
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
        let text = self.read("credentials")?;
        let value = |name: &str| {
            let found = text.lines().find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            });
            found.ok_or_else(|| format!("{}: there is no {name}", self.file("credentials").display()))
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
