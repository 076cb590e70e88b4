use std::sync::mpsc as blocking;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::ledger::store::Mutation;

/// Applies nothing, tells the size of every batch, and waits for a go before each.
struct Gated {
    sizes: blocking::Sender<usize>,
    go: blocking::Receiver<Result<(), String>>,
}

impl Apply for Gated {
    fn apply(&mut self, batch: &[Commit]) -> Result<Vec<Outcome>, String> {
        self.sizes.send(batch.len()).unwrap();
        self.go.recv().unwrap()?;
        Ok((1..=batch.len() as u64).map(Ok).collect())
    }
}

struct Fixture {
    group: Arc<GroupCommit>,
    sizes: blocking::Receiver<usize>,
    go: blocking::Sender<Result<(), String>>,
}

fn fixture() -> Fixture {
    let (sizes_sender, sizes) = blocking::channel();
    let (go, go_receiver) = blocking::channel();
    let apply = Gated {
        sizes: sizes_sender,
        go: go_receiver,
    };
    Fixture {
        group: Arc::new(GroupCommit::start(apply, Latch::default()).unwrap()),
        sizes,
        go,
    }
}

impl Fixture {
    fn commit(&self, bytes: usize) -> tokio::task::JoinHandle<Outcome> {
        let group = Arc::clone(&self.group);
        let mutation = Mutation::Put {
            key: Bytes::new(),
            value: Bytes::from(vec![0; bytes]),
        };
        let commit = Commit {
            preconditions: Vec::new(),
            mutations: vec![mutation],
        };
        tokio::spawn(async move { group.commit(commit).await })
    }

    async fn batch_size(&self) -> usize {
        tokio::task::block_in_place(|| self.sizes.recv_timeout(Duration::from_secs(10))).unwrap()
    }

    /// Lets every spawned commit reach the queue.
    /// The last permit comes back a moment after the last answer.
    async fn has_all_room(&self) {
        for _ in 0..500 {
            if self.group.room.available_permits() == QUEUE_BYTES_MAX {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!(
            "{} permits never came back",
            QUEUE_BYTES_MAX - self.group.room.available_permits()
        );
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_meanwhile_is_the_next_batch() {
    let fixture = fixture();
    let first = fixture.commit(1);
    assert_eq!(fixture.batch_size().await, 1);
    let others: Vec<_> = (0..50).map(|_| fixture.commit(1)).collect();
    fixture.settle().await;
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(first.await.unwrap(), Ok(1));
    assert_eq!(fixture.batch_size().await, 50);
    assert!(
        others.iter().all(|other| !other.is_finished()),
        "nobody is answered before the batch is durable"
    );
    fixture.go.send(Ok(())).unwrap();
    for other in others {
        assert!(other.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_bounded_by_count_and_by_bytes() {
    let fixture = fixture();
    let mut commits = vec![fixture.commit(1)];
    assert_eq!(fixture.batch_size().await, 1);
    commits.extend((0..BATCH_COMMITS_MAX + 10).map(|_| fixture.commit(1)));
    fixture.settle().await;
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(fixture.batch_size().await, BATCH_COMMITS_MAX);
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(fixture.batch_size().await, 10);
    commits.extend((0..4).map(|_| fixture.commit(BATCH_BYTES_MAX / 2)));
    fixture.settle().await;
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(fixture.batch_size().await, 2);
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(fixture.batch_size().await, 2);
    fixture.go.send(Ok(())).unwrap();
    for commit in commits {
        assert!(commit.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_makes_callers_wait_and_a_huge_commit_fits() {
    let fixture = fixture();
    let huge = fixture.commit(QUEUE_BYTES_MAX + 1);
    assert_eq!(fixture.batch_size().await, 1);
    let waiting = fixture.commit(1);
    fixture.settle().await;
    assert_eq!(fixture.group.room.available_permits(), 0);
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(huge.await.unwrap(), Ok(1));
    assert_eq!(fixture.batch_size().await, 1);
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(1));
    fixture.has_all_room().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_does_not_break_the_batch() {
    let fixture = fixture();
    let first = fixture.commit(1);
    assert_eq!(fixture.batch_size().await, 1);
    let others: Vec<_> = (0..10).map(|_| fixture.commit(1)).collect();
    fixture.settle().await;
    others.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
    fixture.settle().await;
    fixture.go.send(Ok(())).unwrap();
    assert_eq!(fixture.batch_size().await, 10);
    fixture.go.send(Ok(())).unwrap();
    assert!(first.await.unwrap().is_ok());
    for other in others.into_iter().skip(1).step_by(2) {
        assert!(other.await.unwrap().is_ok());
    }
    fixture.has_all_room().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_latches_for_those_who_wait_and_those_who_come() {
    let fixture = fixture();
    let first = fixture.commit(1);
    assert_eq!(fixture.batch_size().await, 1);
    let queued = fixture.commit(1);
    fixture.settle().await;
    fixture.go.send(Err("EIO".to_owned())).unwrap();
    let failure = Err(LedgerError::Unavailable {
        what: "EIO".to_owned(),
    });
    assert_eq!(first.await.unwrap(), failure);
    assert_eq!(queued.await.unwrap(), failure);
    assert_eq!(fixture.commit(1).await.unwrap(), failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_writer_latches() {
    let Fixture { group, sizes, go } = fixture();
    drop((sizes, go));
    assert!(matches!(
        group.commit(Commit::default()).await,
        Err(LedgerError::Unavailable { .. })
    ));
    assert!(matches!(
        group.commit(Commit::default()).await,
        Err(LedgerError::Unavailable { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_drains_and_then_refuses() {
    let fixture = fixture();
    let commits: Vec<_> = (0..20).map(|_| fixture.commit(1)).collect();
    fixture.settle().await;
    let stopping = tokio::spawn({
        let group = Arc::clone(&fixture.group);
        async move { group.shutdown().await }
    });
    // One batch, or two: the writer may have begun before all were queued.
    fixture.go.send(Ok(())).unwrap();
    let _ended = fixture.go.send(Ok(()));
    stopping.await.unwrap();
    for commit in commits {
        assert!(commit.await.unwrap().is_ok());
    }
    assert_eq!(fixture.commit(1).await.unwrap(), Err(shut_down()));
}
