//! The ledger fails in the middle of things. Whether the commit took effect is unknown to the gateway; either way
//! there is a whole object or none, and the next gateway finds everything consistent.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{body, content};
use crate::support::store::{deletes, puts};
use crate::unnamed::sweep_and_collect;
use gateway::error::Error;
use gateway::ledger::memory::CommitFault;
use gateway::object::multipart::{Completion, ListedPart, UploadTarget};
use gateway::object::put::Expected;

const FAULTS: [CommitFault; 2] = [CommitFault::Lost, CommitFault::Applied];

impl World {
    /// The engine is opened again, and a new gateway started on it, as an operator would.
    async fn reopened(self) -> World {
        assert!(
            matches!(self.get("x").await, Err(Error::Ledger(_))),
            "the engine refuses everything now"
        );
        self.cluster.store.rows.reopen();
        let world = self.crash().await;
        sweep_and_collect(&world).await;
        world.census().await.assert_clean();
        world
    }
}

#[tokio::test]
async fn at_the_commit_of_a_put() {
    for fault in FAULTS {
        for size in [0, 1_000, 100_000, 9 << 20] {
            let world = World::new("rs(4,2)", 6).await;
            let (old, new) = (content(1, 20_000), content(2, size));
            world.put("object", &old).await.unwrap();
            world.cluster.store.fail(fault, puts(b'o'));
            assert!(
                matches!(world.put("object", &new).await, Err(Error::Ledger(_))),
                "{fault:?} {size}"
            );
            let world = world.reopened().await;
            let expected = if fault == CommitFault::Applied { &new } else { &old };
            assert!(
                world.get("object").await.unwrap() == *expected,
                "{fault:?} {size}"
            );
            world.put("object", &content(3, size)).await.unwrap();
            world.collect().await;
            world.census().await.assert_clean();
        }
    }
}

/// Every commit on the way of a first put: the blob ids, the volume, the lease's range.
#[tokio::test]
async fn at_any_commit_of_a_put() {
    for fault in FAULTS {
        for table in [b'c', b'r', b'v', b'o'] {
            let world = World::new("rs(4,2)", 6).await;
            world.cluster.store.fail(fault, puts(table));
            let put = world.put("object", &content(1, 100_000)).await;
            assert!(
                matches!(put, Err(Error::Ledger(_))),
                "{fault:?} {}: {put:?}",
                table as char
            );
            let world = world.reopened().await;
            let stored = world.get("object").await;
            assert_eq!(
                stored.is_ok(),
                table == b'o' && fault == CommitFault::Applied,
                "{stored:?}"
            );
            world.put("object", &content(2, 100_000)).await.unwrap();
            assert!(world.get("object").await.unwrap() == content(2, 100_000));
        }
    }
}

#[tokio::test]
async fn at_the_commit_of_a_delete_a_copy_and_a_completion() {
    for fault in FAULTS {
        let applied = fault == CommitFault::Applied;
        let world = World::new("rs(4,2)", 6).await;
        let bytes = content(1, 100_000);
        world.put("object", &bytes).await.unwrap();
        world.cluster.store.fail(fault, puts(b'o'));
        assert!(world.copy("object", "copy").await.is_err());
        let world = world.reopened().await;
        assert_eq!(world.get("copy").await.is_ok(), applied);

        world.cluster.store.fail(fault, deletes(b'o'));
        assert!(world.delete("object").await.is_err());
        let world = world.reopened().await;
        assert_eq!(world.get("object").await.is_err(), applied);

        let upload = world
            .objects
            .create_upload(BUCKET, "upload", Default::default(), None, false)
            .await
            .unwrap();
        let target = UploadTarget {
            bucket: BUCKET.into(),
            name: "upload".into(),
            upload,
        };
        let stored = world
            .objects
            .put_part(target.clone(), 1, body(&bytes), Expected::default())
            .await
            .unwrap();
        let parts = vec![ListedPart {
            number: 1,
            etag: stored.etag,
            checksum: None,
        }];
        world.cluster.store.fail(fault, puts(b'o'));
        let failed = world
            .objects
            .complete_upload(target.clone(), parts.clone(), Completion::default())
            .await;
        assert!(failed.is_err());
        let world = world.reopened().await;
        // The client asks again, and the answer is the same in both cases.
        world
            .objects
            .complete_upload(target, parts, Completion::default())
            .await
            .unwrap();
        assert!(world.get("upload").await.unwrap() == bytes);
        world.collect().await;
        world.census().await.assert_clean();
    }
}

#[tokio::test]
async fn in_the_middle_of_collecting() {
    use gateway::maintenance::{garbage::Garbage, worker::Worker};
    for fault in FAULTS {
        let world = World::new("rs(4,2)", 6).await;
        world.put("kept", &content(1, 100_000)).await.unwrap();
        world.put("object", &content(2, 100_000)).await.unwrap();
        world.delete("object").await.unwrap();
        world.cluster.store.fail(fault, deletes(b'g'));
        assert!(Garbage::new(world.objects.clone()).step().await.is_err());
        let world = world.reopened().await;
        assert!(world.get("kept").await.unwrap() == content(1, 100_000));
    }
}

/// Abandoned blobs whose garbage rows could not be written are not forgotten.
#[tokio::test]
async fn while_abandoned_blobs_are_queued() {
    use gateway::maintenance::{garbage::Garbage, worker::Worker};
    for fault in FAULTS {
        let world = World::new("rs(4,2)", 6).await;
        let failed = world
            .put_body("object", crate::support::content::broken(&content(2, 9 << 20)))
            .await;
        assert!(failed.is_err());
        assert!(!world.objects.abandoned.is_empty());
        world.cluster.store.fail(fault, puts(b'g'));
        assert!(Garbage::new(world.objects.clone()).step().await.is_err());
        assert!(!world.objects.abandoned.is_empty());
        world.reopened().await;
    }
}

/// A bucket that was being deleted when the ledger failed is there or gone after the next start.
#[tokio::test]
async fn in_the_middle_of_deleting_a_bucket() {
    for fault in FAULTS {
        for remove in [false, true] {
            let world = World::new("rs(4,2)", 6).await;
            match remove {
                false => world.cluster.store.fail(fault, puts(b'b')),
                true => world.cluster.store.fail(fault, deletes(b'b')),
            }
            assert!(world.objects.delete_bucket(BUCKET).await.is_err());
            let world = world.reopened().await;
            match world.objects.bucket(BUCKET).await {
                Ok(_) => drop(world.put("object", &content(1, 10)).await.unwrap()),
                Err(Error::NoSuchBucket) => world.objects.create_bucket(BUCKET).await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
