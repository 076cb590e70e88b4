//! Listings against a naive model: prefixes, delimiters, pages of any size, from anywhere.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::content;
use bytes::Bytes;
use gateway::error::Error;
use gateway::ledger::model::{ObjectRow, UploadRow};
use gateway::ledger::{CommitBuilder, key};
use gateway::object::list::{Entry, Page, Query};
use proptest::prelude::*;
use std::collections::BTreeSet;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A key: short, of few letters, so that prefixes, delimiters and neighbours meet.
fn name() -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        3 => Just("a"), 2 => Just("b"), 4 => Just("/"), 1 => Just("\0"), 1 => Just("\u{1}"), 1 => Just("é"),
        1 => Just("日"), 1 => Just("\u{10FFFF}"), 1 => Just("\u{7f}"), 1 => Just("--"), 1 => Just(" "),
    ];
    proptest::collection::vec(letter, 1..7).prop_map(|letters| letters.concat())
}

fn delimiter() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(""), 5 => Just("/"), 1 => Just("a"), 1 => Just("--"), 1 => Just("é"), 1 => Just("a/"), 1 => Just("\0"),
        1 => Just("日"), 1 => Just("\u{10FFFF}"),
    ]
    .prop_map(str::to_owned)
}

fn prefix() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 3 => name().prop_map(|n| n.chars().take(2).collect())]
}

/// The entries of a listing, items and common prefixes in order, as S3 defines them.
fn model<'a>(
    names: impl IntoIterator<Item = &'a String>,
    prefix: &str,
    delimiter: &str,
) -> BTreeSet<(String, bool)> {
    let entry = |name: &String| {
        let behind = name.strip_prefix(prefix)?;
        match behind.find(delimiter) {
            Some(at) if !delimiter.is_empty() => {
                Some((name[..prefix.len() + at + delimiter.len()].to_owned(), true))
            }
            _ => Some((name.clone(), false)),
        }
    };
    names.into_iter().filter_map(entry).collect()
}

fn seen<T>(page: &Page<T>) -> Vec<(String, bool)> {
    page.entries
        .iter()
        .map(|e| (e.name().to_owned(), matches!(e, Entry::Prefix(_))))
        .collect()
}

async fn with_objects(names: &BTreeSet<String>) -> World {
    let world = World::new("replica(1)", 1).await;
    let bucket = world.objects.bucket(BUCKET).await.unwrap().row.id;
    // Rows without bytes: a listing reads nothing else. A neighbour bucket must not show.
    let mut commit = CommitBuilder::new();
    for name in names {
        commit = commit
            .put(
                key::object(bucket, name),
                &ObjectRow {
                    etag: name.clone(),
                    ..Default::default()
                },
            )
            .put(key::object(bucket + 1, name), &ObjectRow::default());
    }
    world.cluster.ledger().commit(commit.build()).await.unwrap();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn objects_are_listed_as_the_model_has_them(
        names in proptest::collection::btree_set(name(), 0..60),
        queries in proptest::collection::vec(
            (prefix(), delimiter(), proptest::option::of(prop_oneof![name(), prefix()]), 1usize..6),
            1..8,
        ),
    ) {
        runtime().block_on(async {
            let world = with_objects(&names).await;
            for (prefix, delimiter, after, limit) in queries {
                let all: Vec<(String, bool)> = model(&names, &prefix, &delimiter).into_iter().collect();
                // One page from anywhere.
                let query = Query { prefix, delimiter, after, limit };
                let page = world.objects.list(BUCKET, &query).await.unwrap();
                let behind = names.iter().filter(|name| query.after.as_ref().is_none_or(|after| *name > after));
                let mut expected: Vec<_> = model(behind, &query.prefix, &query.delimiter).into_iter().collect();
                // Who names a group has seen it.
                expected.retain(|(name, common)| !common || query.after.as_ref() != Some(name));
                let first: Vec<_> = expected.iter().take(query.limit).cloned().collect();
                prop_assert_eq!(seen(&page), first, "{:?}", &query);
                prop_assert_eq!(page.truncated, expected.len() > query.limit, "{:?}", &query);
                for entry in &page.entries {
                    if let Entry::Item(name, row) = entry {
                        prop_assert_eq!(name, &row.etag);
                    }
                }
                // All pages, as a client walks them.
                let mut walked = Vec::new();
                let mut query = Query { after: None, ..query };
                loop {
                    let page = world.objects.list(BUCKET, &query).await.unwrap();
                    walked.extend(seen(&page));
                    if !page.truncated {
                        break;
                    }
                    query.after = page.entries.last().map(|e| e.name().to_owned());
                }
                prop_assert_eq!(walked, all, "{:?}", &query);
            }
            Ok(())
        })?;
    }

    #[test]
    fn uploads_are_listed_as_the_model_has_them(
        uploads in proptest::collection::btree_set((name(), 0u128..4), 0..40),
        prefix in prefix(),
        delimiter in delimiter(),
        limit in 1usize..6,
        marker in (name(), proptest::option::of(0u128..4)),
    ) {
        runtime().block_on(async {
            let world = World::new("replica(1)", 1).await;
            let bucket = world.objects.bucket(BUCKET).await.unwrap().row.id;
            let mut commit = CommitBuilder::new();
            for (name, upload) in &uploads {
                commit = commit.put(key::upload(bucket, name, *upload), &UploadRow::default());
            }
            world.cluster.ledger().commit(commit.build()).await.unwrap();
            let grouped = |(name, upload): &(String, u128)| {
                let entry = model([name], &prefix, &delimiter).pop_first();
                entry.map(|(n, common)| (n, (!common).then_some(*upload)))
            };
            let all: BTreeSet<(String, Option<u128>)> = uploads.iter().filter_map(grouped).collect();
            let all: Vec<_> = all.into_iter().collect();
            let seen = |page: &Page<gateway::object::list::UploadEntry>| -> Vec<(String, Option<u128>)> {
                let entry = |e: &Entry<gateway::object::list::UploadEntry>| match e {
                    Entry::Item(name, entry) => (name.clone(), Some(entry.upload)),
                    Entry::Prefix(name) => (name.clone(), None),
                };
                page.entries.iter().map(entry).collect()
            };
            // One page from anywhere: behind a key, or behind one upload of it.
            let (after, after_upload) = marker;
            let behind = |(name, upload): &&(String, u128)| match (name.cmp(&after), after_upload) {
                (std::cmp::Ordering::Equal, Some(marker)) => *upload > marker,
                (order, _) => order.is_gt(),
            };
            let expected: BTreeSet<_> = uploads.iter().filter(behind).filter_map(grouped).collect();
            let mut expected: Vec<_> = expected.into_iter().collect();
            expected.retain(|(name, upload)| upload.is_some() || *name != after);
            let query = Query { prefix, delimiter, after: Some(after), limit };
            let page = world.objects.list_uploads(BUCKET, &query, after_upload).await.unwrap();
            prop_assert_eq!(seen(&page), expected.iter().take(limit).cloned().collect::<Vec<_>>(), "{:?} {:?}", &query, after_upload);
            prop_assert_eq!(page.truncated, expected.len() > limit);
            // All pages, as a client walks them.
            let (mut walked, mut query, mut after_upload) = (Vec::new(), Query { after: None, ..query }, None);
            loop {
                let page = world.objects.list_uploads(BUCKET, &query, after_upload).await.unwrap();
                walked.extend(seen(&page));
                if !page.truncated {
                    break;
                }
                let last = seen(&page).pop().unwrap();
                (query.after, after_upload) = (Some(last.0), last.1);
            }
            prop_assert_eq!(walked, all);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn long_listings_come_in_pages_of_a_thousand() {
    let names: BTreeSet<String> = (0..2_500).map(|n| format!("{:02}/{n:05}", n % 7)).collect();
    let world = with_objects(&names).await;
    let mut query = Query {
        limit: 5_000,
        ..Default::default()
    };
    let mut walked = Vec::new();
    for (count, truncated) in [(1_000, true), (1_000, true), (500, false)] {
        let page = world.objects.list(BUCKET, &query).await.unwrap();
        assert_eq!((page.entries.len(), page.truncated), (count, truncated));
        walked.extend(page.entries.iter().map(|e| e.name().to_owned()));
        query.after = walked.last().cloned();
    }
    assert!(walked.iter().eq(names.iter()));
    let groups = world
        .objects
        .list(
            BUCKET,
            &Query {
                delimiter: "/".into(),
                limit: 1_000,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(groups.entries.len(), 7);
    let none = world.objects.list(BUCKET, &Query::default()).await.unwrap();
    assert_eq!((none.entries.len(), none.truncated), (0, false));
    assert!(matches!(
        world.objects.list("none", &query).await,
        Err(Error::NoSuchBucket)
    ));
}

#[tokio::test]
async fn buckets_are_listed_by_name() {
    let world = World::new("replica(1)", 1).await;
    for name in ["zoo", "alpha", "alpha-2", "beta"] {
        world.objects.create_bucket(name).await.unwrap();
    }
    let names = async |prefix: &str, from: &str, limit| -> Vec<String> {
        world
            .objects
            .list_buckets(prefix, from, limit)
            .await
            .unwrap()
            .found
            .into_iter()
            .map(|b| b.name)
            .collect()
    };
    assert_eq!(
        names("", "", 100).await,
        ["alpha", "alpha-2", "beta", "cairn", "zoo"]
    );
    assert_eq!(names("alpha", "", 100).await, ["alpha", "alpha-2"]);
    assert_eq!(names("", "b", 2).await, ["beta", "cairn"]);
    assert!(matches!(
        world.objects.create_bucket("zoo").await,
        Err(Error::BucketAlreadyOwnedByYou)
    ));
    world.put("object", &Bytes::from_static(b"x")).await.unwrap();
    assert!(matches!(
        world.objects.delete_bucket(BUCKET).await,
        Err(Error::BucketNotEmpty)
    ));
    world.objects.delete_bucket("zoo").await.unwrap();
    assert!(matches!(
        world.objects.delete_bucket("zoo").await,
        Err(Error::NoSuchBucket)
    ));
    assert_eq!(names("", "", 100).await.len(), 4);
}

/// A page that begins inside a group still shows the group, if there is more of it; one that begins with the group does not.
#[tokio::test]
async fn a_listing_that_starts_inside_a_group_shows_it() {
    let world = World::new("rs(4,2)", 6).await;
    for key in ["a/b", "a/c", "d"] {
        world.put(key, &content(1, 10)).await.unwrap();
    }
    for (after, expected) in [
        ("a/b", vec!["a/", "d"]),
        ("a/c", vec!["d"]),
        ("a/", vec!["d"]),
        ("a", vec!["a/", "d"]),
    ] {
        let query = Query {
            delimiter: "/".into(),
            after: Some(after.into()),
            limit: 10,
            ..Query::default()
        };
        let page = world.objects.list(BUCKET, &query).await.unwrap();
        let names: Vec<_> = page.entries.iter().map(|entry| entry.name().to_owned()).collect();
        assert_eq!(names, expected, "after {after}");
    }
}
