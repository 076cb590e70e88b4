//! The checks of the other tests can fail: each kind of wrong is done on purpose here, and must be seen.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use cairn_tests::cluster::Cluster;
use cairn_tests::content::Content;
use cairn_tests::model::Model;

const BUCKET: &str = "harness";

#[test]
fn the_model_sees_every_kind_of_wrong() {
    let cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let (right, wrong) = (Content::random(50_000), Content::random(50_000));
    let mut model = Model::default();
    client.put(BUCKET, "right", &right.make()).unwrap();
    model.acknowledged("right", Some(right));
    client.put(BUCKET, "in flight", &right.make()).unwrap();
    model.acknowledged("in flight", Some(wrong));
    model.uncertain("in flight", Some(right));
    client.put(BUCKET, "wrong", &wrong.make()).unwrap();
    model.acknowledged("wrong", Some(right));
    client.put(BUCKET, "cut", &right.make()[..49_999]).unwrap();
    model.acknowledged("cut", Some(right));
    model.acknowledged("lost", Some(right));
    client.put(BUCKET, "undead", &right.make()).unwrap();
    model.acknowledged("undead", None);
    client.put(BUCKET, "unknown", &right.make()).unwrap();
    let violations = model.check(&client, BUCKET);
    let keys: Vec<&str> = violations
        .iter()
        .filter_map(|violation| violation.split(':').next())
        .collect();
    assert_eq!(
        keys,
        ["cut", "lost", "undead", "unknown", "wrong"],
        "{violations:?}"
    );
}

#[test]
#[should_panic(expected = "unexpected in the log")]
fn an_unexpected_line_in_the_log_fails_the_test() {
    let mut cluster = Cluster::start();
    cluster.kill();
    std::fs::remove_file(cluster.disk(3)).unwrap();
    cluster.restart();
}
