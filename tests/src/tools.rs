//! Running other programs: bounded in time, ended by id.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, keys, workspace};

/// Runs a script of `tests/clients` against the cluster; fails with its output if it fails or takes too long.
pub fn run_client(cluster: &Cluster, script: &str, arguments: &[&str], time_max: Duration) {
    let venv = venv();
    let path = workspace().join("tests/clients").join(script);
    // `timeout` ends the script and its children also when this test is ended from outside.
    let program: PathBuf = if script.ends_with(".py") {
        venv.join("bin/python")
    } else {
        "bash".into()
    };
    let keys = keys();
    let search = format!(
        "{}:{}",
        venv.join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &time_max.as_secs().to_string()])
        .arg(program)
        .arg(path)
        .args(arguments)
        .current_dir(cluster.scratch())
        .env("PATH", search);
    command.env("CAIRN_ENDPOINT", cluster.endpoint());
    command
        .env("AWS_ACCESS_KEY_ID", keys.access)
        .env("AWS_SECRET_ACCESS_KEY", keys.secret);
    command
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command
        .env("RCLONE_CONFIG", "/dev/null")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    for surroundings in [
        "AWS_PROFILE",
        "AWS_CA_BUNDLE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(surroundings);
    }
    let child = command
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = wait_with_output(child, time_max + Duration::from_secs(10));
    let (told, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{script} {arguments:?}: {}\n{told}\n{complained}",
        output.status
    );
    println!("{told}");
}

/// Waits for the program, which must end in time, and collects what it says.
pub fn wait_with_output(mut child: Child, time_max: Duration) -> Output {
    let (stdout, stderr) = (
        drain(child.stdout.take().unwrap()),
        drain(child.stderr.take().unwrap()),
    );
    let deadline = Instant::now() + time_max;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            // The group, if the program leads one: a script's children go with it.
            signal_group(child.id(), "KILL");
            let _ended = child.kill();
            let status = child.wait().unwrap();
            let (told, complained) = (stdout.join().unwrap(), stderr.join().unwrap());
            let (told, complained) = (
                String::from_utf8_lossy(&told),
                String::from_utf8_lossy(&complained),
            );
            panic!("still running after {time_max:?}, ended: {status}\n{told}\n{complained}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(process.to_string())
        .status()
        .unwrap();
    assert!(status.success());
}

fn signal_group(leader: u32, name: &str) {
    // There may be no such group.
    let _status = Command::new("kill")
        .args([&format!("-{name}"), "--", &format!("-{leader}")])
        .output();
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Where `tests/run` puts boto3 and aws-cli.
fn venv() -> PathBuf {
    let venv = std::env::var_os("CAIRN_TEST_VENV")
        .map_or_else(|| workspace().join("target/clients-venv"), PathBuf::from);
    assert!(
        venv.join("bin/aws").exists(),
        "{} lacks the S3 clients: `tests/run` installs them",
        venv.display()
    );
    venv
}
