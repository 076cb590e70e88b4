//! Acceptance 1: the S3 clients that people have get back what they stored. The checks are in `clients/`, written
//! for those clients; each test runs one of them against a cluster of its own.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::setting;
use cairn_tests::tools::run_client;

fn run(script: &str) {
    run_with(script, &[]);
}

fn run_with(script: &str, arguments: &[&str]) {
    let disk_size = if std::env::var("CAIRN_TEST_LARGE").is_ok() {
        "4GiB"
    } else {
        "1GiB"
    };
    let cluster = Cluster::start_with(Options {
        disk_size: disk_size.into(),
        ..Options::default()
    });
    run_client(
        &cluster,
        script,
        arguments,
        Duration::from_secs(if setting::long() { 1800 } else { 300 }),
    );
}

#[test]
fn boto3_objects() {
    run("objects.py");
}

#[test]
fn boto3_listings() {
    run("listing.py");
}

#[test]
fn boto3_multipart() {
    run("multipart.py");
}

#[test]
fn boto3_checksums_and_signed_chunks() {
    run("checksums.py");
}

#[test]
fn a_front_that_fails_closed() {
    run("front.py");
}

#[test]
fn aws_cli_and_curl() {
    run("awscli.sh");
}

#[test]
fn rclone() {
    run("rclone.sh");
}

#[test]
fn s3cmd() {
    run("s3cmd.sh");
}

#[test]
fn s5cmd() {
    run("s5cmd.sh");
}

#[test]
fn restic() {
    run("restic.sh");
}

#[test]
fn duplicity() {
    run("duplicity.sh");
}

#[test]
fn minio_py() {
    run("minio_py.py");
}

#[test]
fn delta_by_many_writers() {
    run("delta.py");
}

#[test]
fn nginx_haproxy_and_caddy_in_front() {
    run("proxies.py");
}

#[test]
fn early_refusals_reach_clients_through_proxies() {
    run_with("proxies.py", &["large-refusals"]);
}

#[test]
fn all_operations_of_botocore() {
    run("model.py");
}

#[test]
fn javascript_sdk_and_minio_js() {
    run("sdk.sh");
}

#[test]
fn a_page_in_chromium() {
    run("browser.sh");
}
