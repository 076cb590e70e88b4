//! Acceptance 2: `kill -9` at random moments under a mix of puts, overwrites, deletes and multipart uploads. After a
//! restart every acknowledged object has its acknowledged bytes, deleted ones stay deleted, no partial object is
//! listed, and the garbage that the interrupted requests left is collected.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_tests::client::{Client, Failure, Outcome};
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::model::Model;
use cairn_tests::setting;
use cairn_tests::status;
use rand::random_range;

const BUCKET: &str = "crash";
const WRITERS: usize = 6;
const KEYS_OF_WRITER: usize = 25;
const PART_BYTES_MIN: usize = 5 << 20;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(90);

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let rounds = setting::number("CAIRN_TEST_ROUNDS", setting::scaled(6, 30));
    let mut cluster = Cluster::start_with(Options {
        cache: "64MiB".into(),
        ..Options::default()
    });
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = Model::default();
    let mut acknowledged = 0;
    for round in 0..rounds {
        let running = AtomicBool::new(true);
        let (written, requests) = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    let mut writer = Writer {
                        client: &client,
                        number,
                        model: model.clone(),
                        acknowledged: 0,
                    };
                    let running = &running;
                    scope.spawn(move || writer.run(running))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(random_range(300..4000)));
            cluster.kill();
            running.store(false, Ordering::SeqCst);
            let ended: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            let requests: usize = ended.iter().map(|(_, acknowledged)| acknowledged).sum();
            let mut written = Model::default();
            ended.into_iter().for_each(|(model, _)| written.merge(model));
            (written, requests)
        });
        model = written;
        acknowledged += requests;
        cluster.restart();
        let violations = model.check(&client, BUCKET);
        assert!(
            violations.is_empty(),
            "round {round}, {requests} requests:\n{}",
            violations.join("\n")
        );
        println!(
            "round {round}: {requests} requests acknowledged, {} objects right",
            model.contents().len()
        );
    }
    assert!(
        acknowledged > rounds * 10,
        "{acknowledged} requests in {rounds} rounds are no load"
    );
    client.abort_uploads(BUCKET).unwrap();
    status::wait_until_settled(&cluster, SETTLE_TIME_MAX);
    let violations = model.check(&client, BUCKET);
    assert!(
        violations.is_empty(),
        "after the garbage was collected:\n{}",
        violations.join("\n")
    );
}

/// Writes its own keys, one request at a time, until the process is gone.
struct Writer<'a> {
    client: &'a Client,
    number: usize,
    model: Model,
    acknowledged: usize,
}

impl Writer<'_> {
    /// Answers what this writer's keys may hold, and how many requests were acknowledged.
    fn run(&mut self, running: &AtomicBool) -> (Model, usize) {
        self.model.keep(&format!("writer-{}/", self.number));
        while running.load(Ordering::SeqCst) {
            let key = format!("writer-{}/{}", self.number, random_range(0..KEYS_OF_WRITER));
            let goes_on = match random_range(0..10) {
                0..=6 => self.put(&key),
                7..=8 => self.write(&key, None, self.client.delete(BUCKET, &key)),
                _ => self.multipart(&key),
            };
            if !goes_on {
                break;
            }
        }
        (std::mem::take(&mut self.model), self.acknowledged)
    }

    fn put(&mut self, key: &str) -> bool {
        let bytes = match random_range(0..10) {
            0 => 0,
            1..=4 => random_range(1..16_384),
            5..=7 => random_range(16_384..300_000),
            _ => random_range(300_000..6_000_000),
        };
        let content = Content::random(bytes);
        let outcome = self
            .client
            .put_patiently(BUCKET, key, &content.make(), Duration::from_secs(20));
        self.write(key, Some(content), outcome.map(drop))
    }

    fn multipart(&mut self, key: &str) -> bool {
        let last_bytes = random_range(1..100_000);
        let content = Content::random(PART_BYTES_MIN + last_bytes);
        let body = content.make();
        let mut upload = match self.client.create_upload(BUCKET, key) {
            Ok(upload) => upload,
            Err(failure) => return Self::goes_on(&failure),
        };
        // Until it is completed, nothing of it may be seen.
        for (number, part) in [(1, &body[..PART_BYTES_MIN]), (2, &body[PART_BYTES_MIN..])] {
            if let Err(failure) = upload.part(number, part) {
                return Self::goes_on(&failure);
            }
        }
        if random_range(0..5) == 0 {
            return upload.abort().is_ok();
        }
        let outcome = upload.complete();
        self.write(key, Some(content), outcome)
    }

    fn write(&mut self, key: &str, content: Option<Content>, outcome: Outcome<()>) -> bool {
        match outcome {
            Ok(()) => {
                self.model.acknowledged(key, content);
                self.acknowledged += 1;
                true
            }
            Err(failure) => {
                self.model.uncertain(key, content);
                Self::goes_on(&failure)
            }
        }
    }

    /// After a kill there are no answers; an answer must never be anything but success or "busy".
    fn goes_on(failure: &Failure) -> bool {
        assert!(failure.status().is_none_or(|status| status == 503), "{failure}");
        failure.status().is_some()
    }
}
