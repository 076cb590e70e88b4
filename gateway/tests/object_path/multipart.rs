//! Multipart uploads: the rules of completing, checksums computed by hand, and parts that come at the wrong moment.

use crate::support::cluster::{BUCKET, World, source};
use crate::support::content::{body, content};
use crate::support::store::{Held, When, deletes};
use gateway::error::{Error, Result};
use gateway::ledger::model::{BlobRef, BlobRow, ObjectRow};
use gateway::ledger::{CommitBuilder, key};
use gateway::object::condition::{ETagIs, WriteConditions};
use gateway::object::digest::{Algorithm, hex};
use gateway::object::get::Wanted;
use gateway::object::multipart::{Completion, ListedPart, UploadTarget};
use gateway::object::put::{Expected, Stored};
use md5::{Digest, Md5};
use std::sync::Arc;

const MIN: usize = 5 << 20;

async fn begin(world: &World, algorithm: Option<Algorithm>, full_object: bool) -> UploadTarget {
    let upload = world
        .objects
        .create_upload(BUCKET, "object", Default::default(), algorithm, full_object)
        .await
        .unwrap();
    UploadTarget {
        bucket: BUCKET.into(),
        name: "object".into(),
        upload,
    }
}

async fn part(world: &World, target: &UploadTarget, number: u16, bytes: &bytes::Bytes) -> ListedPart {
    let stored = world
        .objects
        .put_part(target.clone(), number, body(bytes), Expected::default())
        .await
        .unwrap();
    assert_eq!(stored.etag, hex(&Md5::digest(bytes)));
    ListedPart {
        number: number.into(),
        etag: stored.etag,
        checksum: stored.checksum.map(|c| c.digest.to_vec()),
    }
}

async fn complete(world: &World, target: &UploadTarget, parts: &[ListedPart]) -> Result<Stored> {
    world
        .objects
        .complete_upload(target.clone(), parts.to_vec(), Completion::default())
        .await
}

#[tokio::test]
async fn parts_make_an_object_in_order() {
    let world = World::new("rs(4,2)", 6).await;
    let target = begin(&world, None, false).await;
    let contents = [content(1, MIN), content(2, MIN + 1), content(3, 1)];
    // Sent out of order, with gaps in the numbers.
    let last = part(&world, &target, 10_000, &contents[2]).await;
    let first = part(&world, &target, 2, &contents[0]).await;
    let middle = part(&world, &target, 7, &contents[1]).await;
    let page = world.objects.list_parts(&target, 2, 1).await.unwrap();
    assert_eq!((page.parts[0].0, page.parts.len(), page.truncated), (7, 1, true));
    let stored = complete(&world, &target, &[first, middle, last]).await.unwrap();
    let md5s: Vec<u8> = contents.iter().flat_map(|c| Md5::digest(c).to_vec()).collect();
    assert_eq!(stored.etag, format!("{}-3", hex(&Md5::digest(&md5s))));
    let whole = contents.concat();
    assert!(world.get("object").await.unwrap() == whole);
    assert!(world.get_range("object", Wanted::Part(7)).await.unwrap() == contents[1]);
    let over = Wanted::From {
        first: MIN as u64 - 3,
        last: Some(2 * MIN as u64 + 1),
    };
    assert!(world.get_range("object", over).await.unwrap() == whole[MIN - 3..2 * MIN + 2]);
    assert!(matches!(
        world.get_range("object", Wanted::Part(1)).await,
        Err(Error::RangeNotSatisfiable { .. })
    ));
    world.census().await.assert_clean();
}

#[tokio::test]
async fn completing_is_refused_where_s3_refuses_it() {
    let world = World::new("rs(4,2)", 6).await;
    let target = begin(&world, None, false).await;
    let one = part(&world, &target, 1, &content(1, MIN)).await;
    let two = part(&world, &target, 2, &content(2, MIN - 1)).await;
    let three = part(&world, &target, 3, &content(3, 10)).await;
    let with = |part: &ListedPart, etag: &str| ListedPart {
        etag: etag.into(),
        ..part.clone()
    };
    let refused = async |parts: &[&ListedPart]| {
        let parts: Vec<ListedPart> = parts.iter().map(|p| (*p).clone()).collect();
        complete(&world, &target, &parts).await.expect_err("refused")
    };
    refused(&[]).await;
    assert!(matches!(refused(&[&three, &one]).await, Error::InvalidPartOrder));
    assert!(matches!(refused(&[&one, &one]).await, Error::InvalidPartOrder));
    assert!(matches!(
        refused(&[&one, &two, &three]).await,
        Error::EntityTooSmall { number: 2 }
    ));
    assert!(matches!(
        refused(&[&with(&one, "0"), &two]).await,
        Error::InvalidPart { number: 1 }
    ));
    let four = ListedPart {
        number: 4,
        ..three.clone()
    };
    assert!(matches!(
        refused(&[&one, &four]).await,
        Error::InvalidPart { number: 4 }
    ));
    let wrong_size = Completion {
        size: Some(1),
        ..Default::default()
    };
    let parts = vec![one.clone(), two.clone()];
    let refused = world
        .objects
        .complete_upload(target.clone(), parts.clone(), wrong_size)
        .await;
    assert!(matches!(refused, Err(Error::InvalidRequest(_))));
    world.put("object", &content(1, 1)).await.unwrap();
    let create = WriteConditions {
        none_match: Some(ETagIs::Any),
        matches: None,
    };
    let create = Completion {
        conditions: create,
        ..Default::default()
    };
    let refused = world
        .objects
        .complete_upload(target.clone(), parts.clone(), create)
        .await;
    assert!(matches!(refused, Err(Error::PreconditionFailed)));
    // None of it harmed the upload.
    let stored = complete(&world, &target, &parts).await.unwrap();
    assert_eq!(stored.size as usize, 2 * MIN - 1);
    let again = complete(&world, &target, &parts).await.unwrap();
    assert_eq!((again.etag, again.modified_ms), (stored.etag, stored.modified_ms));
    world.put("object", &content(1, 1)).await.unwrap();
    assert!(matches!(
        complete(&world, &target, &parts).await,
        Err(Error::NoSuchUpload)
    ));
    let late = world
        .objects
        .put_part(target, 1, body(&content(1, 10)), Expected::default())
        .await;
    assert!(matches!(late, Err(Error::NoSuchUpload)));
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn checksums_of_the_parts_and_of_the_whole() {
    let world = World::new("rs(4,2)", 6).await;
    let contents = [content(1, MIN), content(2, MIN + 77), content(3, 12_345)];
    for algorithm in Algorithm::ALL {
        for full_object in [false, true] {
            let target = begin(&world, Some(algorithm), full_object).await;
            let mut parts = Vec::new();
            for (n, bytes) in contents.iter().enumerate() {
                parts.push(part(&world, &target, n as u16 + 1, bytes).await);
                assert_eq!(parts[n].checksum, Some(algorithm.digest(bytes)), "{algorithm:?}");
            }
            let mut wrong = parts.clone();
            wrong[1].checksum = Some(vec![0; algorithm.digest_len()]);
            assert!(matches!(
                complete(&world, &target, &wrong).await,
                Err(Error::InvalidPart { number: 2 })
            ));
            let expected = match full_object {
                true => algorithm.digest(&contents.concat()),
                false => algorithm.digest(
                    &contents
                        .iter()
                        .flat_map(|c| algorithm.digest(c))
                        .collect::<Vec<_>>(),
                ),
            };
            let bad = Completion {
                checksum: Some(vec![1; algorithm.digest_len()]),
                ..Default::default()
            };
            let refused = world
                .objects
                .complete_upload(target.clone(), parts.clone(), bad)
                .await;
            let good = Completion {
                checksum: Some(expected.clone()),
                full_object: Some(full_object),
                ..Default::default()
            };
            let of_other_type = Completion {
                full_object: Some(!full_object),
                ..Default::default()
            };
            let other = world
                .objects
                .complete_upload(target.clone(), parts.clone(), of_other_type)
                .await;
            let stored = world.objects.complete_upload(target.clone(), parts, good).await;
            if full_object && !algorithm.combines() {
                assert!(
                    matches!(stored, Err(Error::InvalidRequest(_))),
                    "{algorithm:?} cannot cover the whole"
                );
                world.objects.abort_upload(&target).await.unwrap();
                continue;
            }
            assert!(matches!(refused, Err(Error::BadDigest { .. })), "{algorithm:?}");
            assert!(matches!(other, Err(Error::BadDigest { .. })), "{algorithm:?}");
            let checksum = stored.unwrap().checksum.unwrap();
            assert_eq!(checksum.digest, expected, "{algorithm:?} full {full_object}");
            assert_eq!(checksum.composite_parts, if full_object { 0 } else { 3 });
        }
    }
    let target = begin(&world, Some(Algorithm::Crc32), false).await;
    let other = Expected {
        algorithm: Some(Algorithm::Sha1),
        ..Default::default()
    };
    let refused = world.objects.put_part(target, 1, body(&contents[2]), other).await;
    assert!(matches!(refused, Err(Error::InvalidRequest(_))));
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn parts_are_copied_by_reference_or_by_range() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 9 << 20);
    world.put("source", &bytes).await.unwrap();
    let target = begin(&world, None, false).await;
    let shards = world.cluster.node.shard_count();
    let mut parts = Vec::new();
    for number in [1, 2, 2] {
        let stored = world
            .objects
            .copy_part(target.clone(), number, source("source"), Wanted::All)
            .await
            .unwrap();
        parts.push(ListedPart {
            number: number.into(),
            etag: stored.etag,
            checksum: None,
        });
    }
    assert_eq!(
        world.cluster.node.shard_count(),
        shards,
        "the whole is copied by reference"
    );
    let range = Wanted::From {
        first: 1_000_000,
        last: Some(6_999_999),
    };
    let stored = world
        .objects
        .copy_part(target.clone(), 3, source("source"), range)
        .await
        .unwrap();
    assert_eq!(stored.etag, hex(&Md5::digest(&bytes[1_000_000..7_000_000])));
    parts.push(ListedPart {
        number: 3,
        etag: stored.etag,
        checksum: None,
    });
    let past = Wanted::From {
        first: 0,
        last: Some(9 << 20),
    };
    let refused = world
        .objects
        .copy_part(target.clone(), 4, source("source"), past)
        .await;
    assert!(matches!(refused, Err(Error::RangeNotSatisfiable { .. })));
    parts.dedup_by_key(|p| p.number);
    complete(&world, &target, &parts).await.unwrap();
    world.census().await.assert_clean();
    let whole = [&bytes[..], &bytes[..], &bytes[1_000_000..7_000_000]].concat();
    assert!(world.get("object").await.unwrap() == whole);
    // The object names one blob twice; each name counts, in a copy of it too.
    world.copy("object", "copy").await.unwrap();
    for name in ["source", "object"] {
        world.delete(name).await.unwrap();
        world.collect().await;
        world.census().await.assert_clean();
    }
    assert!(world.get("copy").await.unwrap() == whole);
    world.delete("copy").await.unwrap();
    world.collect().await;
    assert_eq!(world.cluster.node.shard_count(), 0);
}

/// Parts replaced while the upload is completed, twice at once: it is one of the whole contents, and nothing leaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parts_replaced_while_the_upload_is_completed() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    for round in 0..30u64 {
        let target = begin(&world, None, false).await;
        let parts = vec![part(&world, &target, 1, &content(round, 50_000)).await];
        let racing: Vec<_> = (0..4)
            .map(|n| {
                let (world, target, parts) = (world.clone(), target.clone(), parts.clone());
                tokio::spawn(async move {
                    for _ in 0..(round % 5) * n {
                        tokio::task::yield_now().await;
                    }
                    match n % 2 {
                        0 => complete(&world, &target, &parts).await.map(drop),
                        _ => {
                            let body = body(&content(round + 1_000 * n, 50_000));
                            let number = 1 + (n == 3) as u16 * (round % 2) as u16;
                            world
                                .objects
                                .put_part(target, number, body, Expected::default())
                                .await
                                .map(drop)
                        }
                    }
                })
            })
            .collect();
        for task in racing {
            match task.await.unwrap() {
                Ok(()) | Err(Error::InvalidPart { number: 1 } | Error::NoSuchUpload) => {}
                Err(error) => panic!("{error}"),
            }
        }
        match world.get("object").await {
            Ok(bytes) => {
                assert!(bytes == content(round, 50_000), "not what was completed");
                world.delete("object").await.unwrap();
            }
            Err(Error::NoSuchKey) => {
                assert!(matches!(
                    complete(&world, &target, &parts).await,
                    Err(Error::InvalidPart { .. })
                ));
                world.objects.abort_upload(&target).await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        world.collect().await;
        world.census().await.assert_clean();
    }
}

/// A part that commits between the moment the parts were read and the commit that ends the upload belongs to nobody.
async fn a_part_comes_late(end: impl AsyncFnOnce(&World, &UploadTarget, ListedPart, Held) -> Result<()>) {
    let world = World::new("rs(4,2)", 6).await;
    let target = begin(&world, None, false).await;
    let first = part(&world, &target, 1, &content(1, 100_000)).await;
    let held = world.cluster.store.hold(When::Before, deletes(b'u'));
    end(&world, &target, first, held).await.unwrap();
    world.objects.gate.empty().await;
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn a_part_that_comes_while_the_upload_is_completed_is_not_leaked() {
    a_part_comes_late(async |world, target, first, mut held| {
        let late = async {
            held.arrived().await;
            let late = world
                .objects
                .put_part(target.clone(), 2, body(&content(2, 100_000)), Expected::default())
                .await;
            held.go_on();
            late
        };
        let parts = [first];
        let (completed, _) = tokio::join!(complete(world, target, &parts), late);
        completed.map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_part_that_comes_while_the_upload_is_aborted_is_not_leaked() {
    a_part_comes_late(async |world, target, _, mut held| {
        let late = async {
            held.arrived().await;
            let late = world
                .objects
                .put_part(target.clone(), 2, body(&content(2, 100_000)), Expected::default())
                .await;
            held.go_on();
            late
        };
        let (aborted, _) = tokio::join!(world.objects.abort_upload(target), late);
        aborted
    })
    .await;
}

#[tokio::test]
async fn a_part_that_comes_while_the_bucket_is_deleted_is_not_leaked() {
    let world = World::new("rs(4,2)", 6).await;
    let target = begin(&world, None, false).await;
    // The part is about to commit; it decided before the bucket was marked.
    let mut part_held = world
        .cluster
        .store
        .hold(When::Before, crate::support::store::puts(b'p'));
    let bytes = content(2, 100_000);
    let put = world
        .objects
        .put_part(target.clone(), 2, body(&bytes), Expected::default());
    tokio::pin!(put);
    tokio::select! {
        _ = &mut put => panic!("the commit is held"),
        _ = part_held.arrived() => {}
    }
    let mut abort_held = world.cluster.store.hold(When::Before, deletes(b'u'));
    let between = async {
        abort_held.arrived().await;
        part_held.go_on();
        let _ = (&mut put).await; // Stored or refused: either is right.
        abort_held.go_on();
    };
    let (deleted, ()) = tokio::join!(world.objects.delete_bucket(BUCKET), between);
    deleted.unwrap();
    world.objects.gate.empty().await;
    world.collect().await;
    world.census().await.assert_clean();
}

/// Sixty-four parts at once, as an eager client sends them: none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_parts_at_once() {
    let world = Arc::new(World::new("replica(3)", 3).await);
    let target = begin(&world, None, false).await;
    let tasks: Vec<_> = (1..=64u16)
        .map(|n| {
            let (world, target) = (world.clone(), target.clone());
            tokio::spawn(async move {
                let body = body(&content(n.into(), 1_000));
                world.objects.put_part(target, n, body, Expected::default()).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(
        world
            .objects
            .list_parts(&target, 0, 1_000)
            .await
            .unwrap()
            .parts
            .len(),
        64
    );
    world.objects.abort_upload(&target).await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
}

/// An object of 5 TiB has 81,920 blobs: it can be copied, overwritten and deleted.
#[tokio::test]
async fn the_largest_object_can_be_deleted() {
    let world = World::new("replica(3)", 3).await;
    world.put("small", &content(1, 10)).await.unwrap();
    let bucket = world.objects.bucket(BUCKET).await.unwrap().row.id;
    let blobs: Vec<BlobRef> = (0..81_920)
        .map(|n| BlobRef {
            volume: 1,
            blob: 1 << 40 | n,
            length: 64 << 20,
        })
        .collect();
    let row = ObjectRow {
        size: 5 << 40,
        etag: "x-10000".into(),
        blobs: blobs.clone(),
        ..Default::default()
    };
    let mut commit = CommitBuilder::new().put(key::object(bucket, "large"), &row);
    for blob in &blobs {
        commit = commit.put(
            key::blob(1, blob.blob),
            &BlobRow {
                length: blob.length,
                references: 1,
                owner: "x".into(),
            },
        );
    }
    world.cluster.ledger().commit(commit.build()).await.unwrap();
    world.copy("large", "copy").await.unwrap();
    world.put("copy", &content(2, 10)).await.unwrap();
    world.delete("large").await.unwrap();
    world.collect().await;
    assert!(matches!(world.get("large").await, Err(Error::NoSuchKey)));
    world.census().await.assert_clean();
}

/// Clients that time out complete again while the first completion is under way: each hears the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn completions_at_once_all_answer_the_same() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    for round in 0..20 {
        let target = begin(&world, None, false).await;
        let listed = vec![part(&world, &target, 1, &content(round, 1_000)).await];
        let completions = (0..12).map(|_| {
            let (world, target, listed) = (world.clone(), target.clone(), listed.clone());
            tokio::spawn(async move { complete(&world, &target, &listed).await })
        });
        let completions: Vec<_> = completions.collect();
        let mut etags = std::collections::BTreeSet::new();
        for completion in completions {
            let stored = completion.await.unwrap();
            etags.insert(
                stored
                    .unwrap_or_else(|error| panic!("round {round}: {error}"))
                    .etag,
            );
        }
        assert_eq!(etags.len(), 1);
        assert_eq!(world.get("object").await.unwrap(), content(round, 1_000));
    }
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn uploads_of_a_key_are_listed_as_they_were_begun() {
    let world = World::new("rs(4,2)", 6).await;
    let mut begun = Vec::new();
    for _ in 0..20 {
        begun.push(begin(&world, None, false).await.upload);
    }
    let query = gateway::object::list::Query {
        limit: 100,
        ..Default::default()
    };
    let page = world.objects.list_uploads(BUCKET, &query, None).await.unwrap();
    let listed: Vec<u128> = page
        .entries
        .into_iter()
        .map(|entry| match entry {
            gateway::object::list::Entry::Item(_, entry) => entry.upload,
            gateway::object::list::Entry::Prefix(prefix) => panic!("{prefix}"),
        })
        .collect();
    assert_eq!(listed, begun);
}

/// A copy is one piece: its ETag is the MD5 of all of it, and its checksum that of the whole.
#[tokio::test]
async fn a_copy_of_an_object_in_parts_is_described_as_one() {
    let world = World::new("rs(4,2)", 6).await;
    let target = begin(&world, Some(Algorithm::Sha256), false).await;
    let contents = [content(1, MIN), content(2, 1_000)];
    let listed = [
        part(&world, &target, 1, &contents[0]).await,
        part(&world, &target, 2, &contents[1]).await,
    ];
    let completed = complete(&world, &target, &listed).await.unwrap();
    assert!(completed.etag.ends_with("-2"));
    let whole = [&contents[0][..], &contents[1][..]].concat();
    let copied = world.copy("object", "copy").await.unwrap();
    assert_eq!(copied.etag, hex(&Md5::digest(&whole)));
    let checksum = copied.checksum.expect("as the source has one");
    assert_eq!(checksum.composite_parts, 0);
    assert_eq!(checksum.digest[..], sha2::Sha256::digest(&whole)[..]);
    assert_eq!(world.get("copy").await.unwrap(), whole);
    let again = world.copy("copy", "again").await.unwrap();
    assert_eq!(again.etag, copied.etag, "what is known is not read again");
    world.census().await.assert_clean();
}

/// A checksum that the source does not have is computed from what it holds.
#[tokio::test]
async fn a_copy_gets_the_checksum_that_is_asked_for() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, MIN);
    world.put("object", &bytes).await.unwrap();
    for (algorithm, to) in [
        (Algorithm::Sha256, "a"),
        (Algorithm::Crc32, "b"),
        (Algorithm::Crc32, "b"),
    ] {
        let from = source("object");
        let copied = world
            .objects
            .copy(from, BUCKET, to, None, Some(algorithm), Default::default());
        let copied = copied.await.unwrap();
        let checksum = copied.checksum.expect("it was asked for");
        assert_eq!(
            (checksum.algorithm.as_str(), checksum.composite_parts),
            (algorithm.name(), 0)
        );
        assert_eq!(checksum.digest[..], algorithm.digest(&bytes)[..]);
        assert_eq!(copied.etag, hex(&Md5::digest(&bytes)));
        assert_eq!(world.get(to).await.unwrap(), bytes);
    }
    world.census().await.assert_clean();
}
