//! `cairn kit show|check|write`: the recovery kit.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::home::Home;
use crate::kit::{Kit, is_encrypted, read_passphrase, read_text};
use crate::output::{complain, say, show};
use clap::{Args, Subcommand};
use gateway::admin::nodes::NodeList;
use gateway::admin::status::Status;
use gateway::cluster::authority::Authority;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct KitArgs {
    #[command(subcommand)]
    command: KitCommand,
}

#[derive(Args)]
struct Passphrase {
    /// The passphrase is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    fn read(&self) -> Result<Option<String>, String> {
        self.passphrase_file.as_deref().map(read_passphrase).transpose()
    }
}

#[derive(Subcommand)]
enum KitCommand {
    /// Show what a kit is of, without its secrets
    Show {
        /// The kit
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Check that a kit is whole, can be decrypted, and is of the cluster of a gateway's directory if one is given
    Check {
        /// The kit
        file: PathBuf,
        /// A gateway's directory
        #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
        data: Option<PathBuf>,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Write the kit of a gateway's directory, with the nodes as they are now if the gateway runs
    Write {
        /// Where to
        file: PathBuf,
        /// The gateway's directory
        #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
        data: PathBuf,
        #[command(flatten)]
        admin: AdminArgs,
        /// Encrypt it with this passphrase
        #[command(flatten)]
        passphrase: Passphrase,
    },
}

pub async fn run(args: KitArgs) -> CommandResult {
    match args.command {
        KitCommand::Show { file, passphrase } => {
            let kit = Kit::read(&file, passphrase.read()?.as_deref())?;
            show!("{}", describe(&kit));
        }
        KitCommand::Check {
            file,
            data,
            passphrase,
        } => check(&file, data.as_deref(), passphrase.read()?.as_deref())?,
        KitCommand::Write {
            file,
            data,
            admin,
            passphrase,
        } => {
            refuse_other_file(&file)?;
            let passphrase = passphrase.read()?;
            let kit = of_home(&Home::at(&data), &admin, passphrase.as_deref()).await?;
            kit.write(&file, passphrase.as_deref())?;
            show!("{}", describe(&kit));
            say!("written to {}", file.display());
        }
    }
    Ok(())
}

fn describe(kit: &Kit) -> String {
    let nodes = match &kit.nodes[..] {
        [] => "none known".to_owned(),
        nodes => nodes.join(", "),
    };
    format!(
        "  cluster     {} ({})\n  scheme      {}\n  access key  {}\n  nodes       {nodes}\n",
        kit.cluster, kit.name, kit.scheme, kit.keys.access_key
    )
}

fn check(file: &Path, data: Option<&Path>, passphrase: Option<&str>) -> CommandResult {
    let encrypted = is_encrypted(&read_text(file)?);
    let kit = Kit::read(file, passphrase)?;
    Authority::open(kit.cluster, &kit.authority)?;
    if let Some(data) = data {
        let (cluster, authority) = Home::at(data).authority_kept()?;
        Authority::open(cluster, &authority).map_err(|e| format!("{}: {e}", data.display()))?;
        if cluster != kit.cluster {
            return Err(format!(
                "the kit is of cluster {}, and the directory of {cluster}",
                kit.cluster
            )
            .into());
        }
        if authority.key.trim() != kit.authority.key.trim() {
            return Err("the kit has another authority's key than the directory".into());
        }
    }
    show!("{}", describe(&kit));
    say!(
        "the kit is whole{}",
        if encrypted {
            ", and encrypted"
        } else {
            "; it is not encrypted"
        }
    );
    Ok(())
}

/// What every kit begins with, encrypted or not.
const BEGINNING: &str = "# Cairn recovery kit ";

/// A kit replaces a kit, whole or not, and no other file: credentials, say, or another cluster's key.
fn refuse_other_file(file: &Path) -> Result<(), String> {
    let refused = || {
        let file = file.display();
        format!("{file} is there and is no recovery kit: it is not replaced; name another file")
    };
    match std::fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", file.display())),
        Ok(found) if !found.is_file() => Err(refused()),
        Ok(_) => match read_text(file) {
            Ok(text) if text.starts_with(BEGINNING) => Ok(()),
            _ => Err(refused()),
        },
    }
}

/// The kit that is there; none only if there is no file.
fn kit_before(file: &Path, passphrase: Option<&str>) -> Result<Option<Kit>, String> {
    match std::fs::symlink_metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        _ => Kit::read(file, passphrase).map(Some).map_err(|error| {
            format!("{error}; what only this kit knows would be lost: move it away to write one without that")
        }),
    }
}

/// What a directory and a running gateway know; what neither says is as in the kit that is there.
async fn of_home(
    home: &Home,
    admin: &AdminArgs,
    passphrase: Option<&str>,
) -> Result<Kit, Box<dyn std::error::Error + Send + Sync>> {
    let (cluster, authority) = home.authority_kept()?;
    Authority::open(cluster, &authority)?; // A kit with a key that signs for nobody is no help.
    let before = kit_before(&home.kit(), passphrase)?;
    let before = before.filter(|kit| kit.cluster == cluster);
    let nodes = admin.get_json::<NodeList>("/v1/nodes").await;
    let scheme = match &before {
        Some(kit) => kit.scheme,
        None => admin.get_json::<Status>("/v1/status").await?.scheme.parse()?,
    };
    let nodes = match nodes {
        Ok(list) => list.nodes.into_iter().map(|node| node.address).collect(),
        Err(error) => {
            complain!("the nodes are as in the kit of before: {error}");
            before.as_ref().map(|kit| kit.nodes.clone()).unwrap_or_default()
        }
    };
    Ok(Kit {
        cluster,
        name: before.map_or_else(|| "cairn".into(), |kit| kit.name),
        scheme,
        keys: home.keys()?,
        nodes,
        authority,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Directory {
            let path = std::env::temp_dir().join(format!("cairn-kit-{:x}", rand::random::<u64>()));
            std::fs::create_dir(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _left = std::fs::remove_dir_all(&self.0); // Of a test.
        }
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        kit: KitArgs,
    }

    /// As a command; no gateway answers.
    async fn kit(words: &[&str]) -> Result<(), String> {
        let line = Line::try_parse_from([&["kit"], words].concat()).unwrap();
        run(line.kit).await.map_err(|error| error.to_string())
    }

    const NOBODY: &str = "http://127.0.0.1:1";

    #[tokio::test]
    async fn a_kit_replaces_a_kit_and_no_other_file() {
        let directory = Directory::new();
        let data = directory.0.join("data");
        let home = Home::at(&data);
        let made = home.create("rs(4,2)".parse().unwrap(), "here", 1);
        made.await.unwrap();
        let write = async |file: &Path| {
            let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
            kit(&["write", file, "--data", data, "--admin", NOBODY]).await
        };
        let credentials = data.join("credentials");
        let before = std::fs::read(&credentials).unwrap();
        let error = write(&credentials).await.unwrap_err();
        assert!(error.contains("is no recovery kit"), "{error}");
        assert_eq!(std::fs::read(&credentials).unwrap(), before);
        assert!(write(&directory.0).await.is_err());
        let file = directory.0.join("kit.txt");
        write(&file).await.unwrap();
        std::fs::write(&file, &std::fs::read(&file).unwrap()[..100]).unwrap(); // One that is not whole.
        write(&file).await.unwrap();
        assert_eq!(Kit::read(&file, None).unwrap().name, "here");
    }

    /// What only the kit of before knows is taken from it, or nothing is written.
    #[tokio::test]
    async fn a_kit_of_before_that_cannot_be_read_is_not_taken_for_none() {
        let directory = Directory::new();
        let data = directory.0.join("data");
        let home = Home::at(&data);
        let made = home.create("rs(4,2)".parse().unwrap(), "here", 1);
        made.await.unwrap();
        let (file, secret) = (directory.0.join("kit.txt"), directory.0.join("secret"));
        std::fs::write(&secret, "correct horse\n").unwrap();
        let mut known = Kit::read(&home.kit(), None).unwrap();
        known.nodes = vec!["10.0.0.1:9100".into()];
        known.write(&home.kit(), Some("correct horse")).unwrap();
        let [file_name, data, secret] = [&file, &data, &secret].map(|path| path.to_str().unwrap());
        let write = ["write", file_name, "--data", data, "--admin", NOBODY];
        let error = kit(&write).await.unwrap_err();
        assert!(error.contains("--passphrase-file"), "{error}");
        let with_secret = [&write[..], &["--passphrase-file", secret]].concat();
        kit(&with_secret).await.unwrap();
        let written = Kit::read(&file, Some("correct horse")).unwrap();
        assert_eq!((&written.nodes, &written.name[..]), (&known.nodes, "here"));
        std::fs::write(home.kit(), "# Cairn recovery kit 1\ncut sh").unwrap();
        let error = kit(&with_secret).await.unwrap_err();
        assert!(error.contains("move it away"), "{error}");
        // Without one, what it would have said is asked for.
        std::fs::remove_file(home.kit()).unwrap();
        let error = kit(&with_secret).await.unwrap_err();
        assert!(!error.contains("move it away"), "{error}");
    }
}
