//! One section of the configuration, read key by key; what is wrong is noted with its place.

use super::mistake::Mistakes;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys that a flag or a variable gave already.
pub struct Given<'a>(pub &'a [&'a str]);

/// A section.
pub struct Section<'a, 't> {
    name: &'a str,
    at: usize,
    table: &'a DeTable<'t>,
    given: Given<'a>,
    mistakes: &'a mut Mistakes,
}

impl<'a, 't> Section<'a, 't> {
    /// The section of this name, whose header is at this byte.
    pub fn new(
        name: &'a str,
        at: usize,
        table: &'a DeTable<'t>,
        given: Given<'a>,
        mistakes: &'a mut Mistakes,
    ) -> Self {
        Section {
            name,
            at,
            table,
            given,
            mistakes,
        }
    }

    /// Notes the keys that are none of these.
    pub fn know(&mut self, keys: &[&str]) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !keys.contains(&name) {
                let what = format!("unknown key `{name}` in [{}]", self.name);
                let suggestion = did_you_mean(name, keys, "`", "`")
                    .unwrap_or_else(|| format!("there are {}", keys.join(", ")));
                self.mistakes.add(Some(key.span().start), what, Some(suggestion));
            }
        }
    }

    fn find(&self, key: &str) -> Option<&'a Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    fn note(&mut self, value: &Spanned<DeValue<'_>>, what: String) {
        self.mistakes.add(Some(value.span().start), what, None);
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue<'_>>, example: &str) {
        let found = with_article(value.get_ref().type_str());
        let what = format!("`{key}` is written like {example}, and this is {found}");
        self.note(value, what);
    }

    /// A string that `parse` understands.
    pub fn text<T>(
        &mut self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.find(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, example);
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                self.note(value, format!("`{key}`: {why}"));
                None
            }
        }
    }

    /// As [`Section::text`], and must be there.
    pub fn required<T>(
        &mut self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.find(key).is_none() && !self.given.0.contains(&key) {
            let what = format!("[{}] lacks `{key}`", self.name);
            let suggestion = format!("add a line like {key} = {example}");
            self.mistakes.add(Some(self.at), what, Some(suggestion));
        }
        self.text(key, example, parse)
    }

    /// A size: a string with its unit, or a number of bytes.
    pub fn size(
        &mut self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<u64, String>,
    ) -> Option<u64> {
        let value = self.find(key)?;
        match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => match parse(number.as_str()) {
                Ok(bytes) => Some(bytes),
                Err(why) => {
                    self.note(value, format!("`{key}`: {why}"));
                    None
                }
            },
            _ => self.text(key, example, parse),
        }
    }

    /// A list of different paths; nothing is wrong with an empty one.
    pub fn paths(
        &mut self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<PathBuf, String>,
    ) -> Option<Vec<PathBuf>> {
        let value = self.find(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, example);
            return None;
        };
        let (mut paths, mut seen) = (Vec::new(), HashSet::new());
        for item in items.iter() {
            let Some(text) = item.get_ref().as_str() else {
                let found = with_article(item.get_ref().type_str());
                self.note(item, format!("`{key}` is a list of paths, and this is {found}"));
                continue;
            };
            match parse(text) {
                Err(why) => self.note(item, format!("`{key}`: {why}")),
                Ok(path) if !seen.insert(path.clone()) => {
                    self.note(item, format!("`{key}`: {text:?} is there twice"));
                }
                Ok(path) => paths.push(path),
            }
        }
        Some(paths)
    }

    /// Notes that nobody could reach what is listened on, if everybody is told an address that is no machine's.
    pub fn address_of_listen(&mut self, listen_key: &str, listen: Option<SocketAddr>, address_key: &str) {
        let is_said = self.find(address_key).is_some() || self.given.0.contains(&address_key);
        let is_open = listen.is_some_and(|listen| listen.ip().is_unspecified());
        if let (Some(value), true, false) = (self.find(listen_key), is_open, is_said) {
            let what = format!("`{listen_key}` is every interface, which does not say how others reach it");
            let suggestion = format!("add a line like {address_key} = \"10.0.0.1:9002\"");
            self.mistakes
                .add(Some(value.span().start), what, Some(suggestion));
        }
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

/// Words for the one of `known` that is nearly `name`.
pub fn did_you_mean(name: &str, known: &[&str], open: &str, close: &str) -> Option<String> {
    let nearest = known.iter().map(|other| (distance(name, other), other)).min()?;
    let (distance, other) = nearest;
    (distance <= name.len().max(other.len()) / 3).then(|| format!("did you mean {open}{other}{close}?"))
}

/// Letters to add, drop, change or swap with their neighbour (Damerau's distance, without overlaps).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut table = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = table[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let drop = table[(i - 1) * width + j] + 1;
                let add = table[i * width + j - 1] + 1;
                let is_swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if is_swapped {
                    table[(i - 2) * width + j - 2] + 1
                } else {
                    usize::MAX
                };
                change.min(drop).min(add).min(swap)
            };
        }
    }
    table[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_a_key_is_recognised() {
        let keys = ["listen", "memory", "admin_listen"];
        for (wrong, right) in [
            ("lisen", "listen"),
            ("memroy", "memory"),
            ("admin-listen", "admin_listen"),
        ] {
            let told = did_you_mean(wrong, &keys, "`", "`");
            assert_eq!(told, Some(format!("did you mean `{right}`?")));
        }
        assert_eq!(did_you_mean("colour", &keys, "`", "`"), None);
        assert_eq!(distance("abcd", "acbd"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
