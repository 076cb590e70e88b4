//! What a bucket must hold: the record of acknowledged requests, and of those whose outcome nobody knows.
//!
//! A key is written by one client at a time, so a request that was not answered leaves two possibilities for its key,
//! and the next acknowledged one leaves one.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Client;
use crate::content::Content;

/// What each key may hold; `None` is nothing. A key that is not here holds nothing.
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: BTreeMap<String, Vec<Option<Content>>>,
}

/// What was found wrong.
pub type Violations = Vec<String>;

impl Model {
    /// The request was acknowledged: this and nothing else is there.
    pub fn acknowledged(&mut self, key: &str, content: Option<Content>) {
        self.keys.insert(key.to_owned(), vec![content]);
    }

    /// The request got no answer: this, or what was there before.
    pub fn uncertain(&mut self, key: &str, content: Option<Content>) {
        self.keys
            .entry(key.to_owned())
            .or_insert_with(|| vec![None])
            .push(content);
    }

    /// What a key may hold.
    pub fn possible(&self, key: &str) -> &[Option<Content>] {
        self.keys.get(key).map_or(&[None], Vec::as_slice)
    }

    /// Forgets all keys but those of this prefix.
    pub fn keep(&mut self, prefix: &str) {
        self.keys.retain(|key, _| key.starts_with(prefix));
    }

    /// Takes over the keys of another record that has none of these.
    pub fn merge(&mut self, other: Model) {
        self.keys.extend(other.keys);
    }

    /// Keys and what they certainly hold.
    pub fn contents(&self) -> Vec<(&str, Content)> {
        self.keys
            .iter()
            .filter_map(|(key, possible)| match possible[..] {
                [Some(content)] => Some((key.as_str(), content)),
                _ => None,
            })
            .collect()
    }

    /// Reads the whole bucket, and takes what it finds for certain from now on.
    pub fn check(&mut self, client: &Client, bucket: &str) -> Violations {
        let mut violations = Vec::new();
        let listed = match client.list(bucket) {
            Ok(listed) => listed,
            Err(failure) => return vec![format!("listing {bucket}: {failure}")],
        };
        if !listed.is_sorted() {
            violations.push("the listing is not in order".to_owned());
        }
        let listed: BTreeSet<String> = listed.into_iter().collect();
        let keys: BTreeSet<String> = self.keys.keys().chain(&listed).cloned().collect();
        for key in keys {
            match self.check_key(client, bucket, &key, listed.contains(&key)) {
                Ok(found) => self.acknowledged(&key, found),
                Err(violation) => violations.push(format!("{key}: {violation}")),
            }
        }
        violations
    }

    fn check_key(
        &self,
        client: &Client,
        bucket: &str,
        key: &str,
        listed: bool,
    ) -> Result<Option<Content>, String> {
        let possible = self.possible(key);
        let found = client.find(bucket, key).map_err(|failure| failure.to_string())?;
        if found.is_some() != listed {
            return Err(format!("found: {}, listed: {listed}", found.is_some()));
        }
        let Some(found) = found else {
            return if possible.contains(&None) {
                Ok(None)
            } else {
                Err(format!("lost; {possible:?}"))
            };
        };
        let fits =
            |content: &&Option<Content>| content.is_some_and(|content| content.compare(&found).is_ok());
        match possible.iter().find(fits) {
            Some(content) => Ok(*content),
            None => {
                let reasons = possible.iter().map(|content| match content {
                    None => "nothing was possible".to_owned(),
                    Some(content) => content.compare(&found).err().unwrap_or_default(),
                });
                Err(format!("wrong bytes: {}", reasons.collect::<Vec<_>>().join("; ")))
            }
        }
    }
}
