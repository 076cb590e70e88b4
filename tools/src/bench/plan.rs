//! What to measure: operations, mixes, and the cells (mix × size × concurrency) they make. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One S3 request kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// PutObject.
    Put,
    /// GetObject, whole.
    Get,
    /// HeadObject.
    Head,
    /// DeleteObject.
    Delete,
    /// ListObjectsV2, one page of keys, from anywhere in the set.
    List,
    /// ListObjectsV2 with a delimiter, one page of common prefixes.
    ListDirs,
}

impl Op {
    /// Every operation, in the order of results.
    pub const ALL: [Op; 6] = [Op::Put, Op::Get, Op::Head, Op::Delete, Op::List, Op::ListDirs];

    /// The name in flags and results.
    pub fn name(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::Head => "head",
            Op::Delete => "delete",
            Op::List => "list",
            Op::ListDirs => "list-dirs",
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Op, String> {
        let name = text.trim();
        let found = Op::ALL.into_iter().find(|op| op.name() == name);
        found.ok_or_else(|| {
            format!("{name:?} is not an operation; there are put, get, head, delete, list and list-dirs")
        })
    }
}

/// Operations and how often each is done, in relation to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    weights: Vec<(Op, u32)>,
    total: u32,
}

impl Mix {
    /// Nothing but one operation.
    pub fn only(op: Op) -> Mix {
        Mix {
            weights: vec![(op, 1)],
            total: 1,
        }
    }

    /// The operations, in the order they were given.
    pub fn ops(&self) -> impl Iterator<Item = Op> + use<'_> {
        self.weights.iter().map(|&(op, _)| op)
    }

    /// Whether the operation is part of it.
    pub fn has(&self, op: Op) -> bool {
        self.weight(op) > 0
    }

    /// The sum of all weights: [`Mix::pick`] takes numbers below it.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// The operation that a number below [`Mix::total`] stands for.
    pub fn pick(&self, mut number: u32) -> Op {
        for &(op, weight) in &self.weights {
            if number < weight {
                return op;
            }
            number -= weight;
        }
        self.weights[self.weights.len() - 1].0
    }

    fn weight(&self, op: Op) -> u32 {
        self.weights
            .iter()
            .find(|&&(have, _)| have == op)
            .map_or(0, |&(_, weight)| weight)
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut mix = Mix {
            weights: Vec::new(),
            total: 0,
        };
        for part in text.split(',') {
            let (op, weight) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not like put=30"))?;
            let op: Op = op.parse()?;
            let weight = weight
                .trim()
                .parse::<u32>()
                .ok()
                .filter(|weight| (1..=1_000_000).contains(weight));
            let weight =
                weight.ok_or_else(|| format!("the weight in {part:?} is not a number from 1 to 1000000"))?;
            if mix.has(op) {
                return Err(format!("{} is there twice", op.name()));
            }
            mix.weights.push((op, weight));
            mix.total += weight;
        }
        if mix.has(Op::Delete) && mix.weights.len() > 1 && mix.weight(Op::Delete) > mix.weight(Op::Put) {
            return Err("more deletes than puts: they would soon delete nothing".to_owned());
        }
        Ok(mix)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(op, _)] = self.weights.as_slice() {
            return f.write_str(op.name());
        }
        for (i, (op, weight)) in self.weights.iter().enumerate() {
            write!(f, "{}{}={weight}", if i > 0 { "," } else { "" }, op.name())?;
        }
        Ok(())
    }
}

/// How many objects of one size to work on: what was asked for, fewer if they are more than `bytes_max` together.
pub fn working_set(objects: u32, size: u64, bytes_max: u64) -> u32 {
    let fit = bytes_max.checked_div(size).unwrap_or(u64::MAX).max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).min(objects)
}

/// Parses `500ms`, `10s`, `2m`, `1h`: from 100 ms to 24 h.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration from 100ms to 24h; write 500ms, 10s, 2m or 1h");
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    let count: u64 = digits.trim_end().parse().map_err(|_| bad())?;
    let millis = count
        .checked_mul(scale)
        .filter(|millis| (100..=86_400_000).contains(millis))
        .ok_or_else(bad)?;
    Ok(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_parse_and_print() {
        let mix: Mix = "put=30, get=60,list=10".parse().unwrap();
        assert_eq!(mix.to_string(), "put=30,get=60,list=10");
        assert_eq!(Mix::only(Op::Head).to_string(), "head");
        assert_eq!(mix.ops().collect::<Vec<_>>(), [Op::Put, Op::Get, Op::List]);
        for (text, why) in [
            ("", "not like put=30"),
            ("put", "not like put=30"),
            ("post=3", "not an operation"),
            ("put=0", "1 to 1000000"),
            ("put=-1", "1 to 1000000"),
            ("put=4294967296", "1 to 1000000"),
            ("put=1,put=2", "twice"),
            ("put=1,delete=2", "more deletes"),
            ("get=1,delete=1", "more deletes"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!("delete=1".parse::<Mix>().is_ok());
    }

    #[test]
    fn picks_follow_the_weights() {
        let mix: Mix = "put=3,get=6,delete=1".parse().unwrap();
        let picked: Vec<Op> = (0..mix.total()).map(|number| mix.pick(number)).collect();
        for op in Op::ALL {
            assert_eq!(
                picked.iter().filter(|&&one| one == op).count() as u32,
                mix.weight(op)
            );
        }
    }

    #[test]
    fn durations_parse() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration(" 10 s "), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        for text in [
            "",
            "s",
            "10",
            "-1s",
            "1.5s",
            "99ms",
            "25h",
            "10 s s",
            "10é",
            "999999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_working_set_is_bounded() {
        assert_eq!(working_set(1000, 4096, 1 << 30), 1000);
        assert_eq!(working_set(1000, 16 << 20, 1 << 30), 64);
        assert_eq!(working_set(1000, 4 << 30, 1 << 30), 1);
        assert_eq!(working_set(1000, 0, 1 << 30), 1000);
    }
}
