//! A scheme: which code, with which parameters. The only way the rest of Cairn talks about codes.
//!
//! A scheme that exists is valid: it can be built by [`Scheme::rs`], [`Scheme::replica`], [`Scheme::lrc`] and parsing only,
//! and those check. It prints as it parses: `rs(4,2)`, `replica(3)`, `lrc(12,2,2)`.
//!
//! Invariant: a scheme derived from another ([`Scheme::small`], [`Scheme::narrowed`]) survives as many losses as it.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The most shards of a stripe, data and parity: an index fits in a byte, and GF(2^8) has enough points.
pub const STRIPE_SHARDS_MAX: usize = 255;

/// A code and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheme(Code);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Code {
    Replica { copies: u8 },
    Rs { data: u8, parity: u8 },
    Lrc { data: u8, groups: u8, globals: u8 },
}

impl Scheme {
    /// Reed-Solomon: `data` shards, and `parity` more of which any can be lost. At least 2 and 1, at most 255 in all.
    pub fn rs(data: usize, parity: usize) -> Result<Scheme> {
        let bad = |why: &str| {
            Err(Error::BadScheme {
                scheme: format!("rs({data},{parity})"),
                why: why.to_owned(),
            })
        };
        if data == 0 {
            return bad("it needs data shards, k ≥ 2");
        }
        if data == 1 {
            return bad("one data shard is replication: k ≥ 2, or replica(m+1)");
        }
        if parity == 0 {
            return bad("without parity nothing may be lost: m ≥ 1");
        }
        match (u8::try_from(data), u8::try_from(parity)) {
            (Ok(data), Ok(parity)) if data.checked_add(parity).is_some() => {
                Ok(Scheme(Code::Rs { data, parity }))
            }
            _ => bad("a stripe has at most 255 shards, k + m ≤ 255"),
        }
    }

    /// `copies` whole copies, 1 to 255.
    pub fn replica(copies: usize) -> Result<Scheme> {
        match u8::try_from(copies) {
            Ok(copies) if copies > 0 => Ok(Scheme(Code::Replica { copies })),
            _ => Err(Error::BadScheme {
                scheme: format!("replica({copies})"),
                why: "the number of copies is 1 to 255".to_owned(),
            }),
        }
    }

    /// Locally repairable: `data` shards in `groups` groups of one size, at least 2 shards each, a local parity for each
    /// group, and `globals` parities over all. Any `globals` + 1 shards can be lost. At most 255 in all.
    pub fn lrc(data: usize, groups: usize, globals: usize) -> Result<Scheme> {
        let bad = |why: String| {
            Err(Error::BadScheme {
                scheme: format!("lrc({data},{groups},{globals})"),
                why,
            })
        };
        if groups == 0 {
            return bad("it needs groups, l ≥ 1".into());
        }
        if globals == 0 {
            return bad("it needs global parities, g ≥ 1".into());
        }
        if !data.is_multiple_of(groups) {
            return bad(format!(
                "{data} data shards do not make {groups} groups of one size: l divides k"
            ));
        }
        if data / groups < 2 {
            return bad("a group has at least 2 data shards, k ≥ 2l".into());
        }
        match (u8::try_from(data), u8::try_from(groups), u8::try_from(globals)) {
            (Ok(data), Ok(groups), Ok(globals))
                if usize::from(data) + usize::from(groups) + usize::from(globals) <= STRIPE_SHARDS_MAX =>
            {
                Ok(Scheme(Code::Lrc {
                    data,
                    groups,
                    globals,
                }))
            }
            _ => bad("a stripe has at most 255 shards, k + l + g ≤ 255".into()),
        }
    }

    /// k: the shards that hold the stripe's bytes. It takes at least as many to have it all.
    pub fn data_shards(&self) -> usize {
        match self.0 {
            Code::Replica { .. } => 1,
            Code::Rs { data, .. } | Code::Lrc { data, .. } => data.into(),
        }
    }

    /// m: the shards that are computed from the data.
    pub fn parity_shards(&self) -> usize {
        match self.0 {
            Code::Replica { copies } => usize::from(copies) - 1,
            Code::Rs { parity, .. } => parity.into(),
            Code::Lrc { groups, globals, .. } => usize::from(groups) + usize::from(globals),
        }
    }

    /// How many shards of a stripe can be lost, whichever they are.
    pub fn losses_survived(&self) -> usize {
        match self.0 {
            Code::Replica { .. } | Code::Rs { .. } => self.parity_shards(),
            Code::Lrc { globals, .. } => usize::from(globals) + 1,
        }
    }

    /// The groups of a locally repairable code, each with a parity shard of its own; 0 of other codes.
    pub fn local_groups(&self) -> usize {
        match self.0 {
            Code::Replica { .. } | Code::Rs { .. } => 0,
            Code::Lrc { groups, .. } => groups.into(),
        }
    }

    /// k + m: the shards of a stripe, and the failure domains it needs.
    pub fn total_shards(&self) -> usize {
        self.data_shards() + self.parity_shards()
    }

    /// The scheme for small objects, copies: it survives the same losses and reads from one disk.
    pub fn small(&self) -> Scheme {
        match u8::try_from(self.losses_survived() + 1) {
            Ok(copies) => Scheme(Code::Replica { copies }),
            Err(_) => unreachable!("a stripe has more shards than it survives losses of"),
        }
    }

    /// The scheme to write with when only `domains` failure domains are healthy. Width shrinks, the losses survived
    /// never: rs(4,2) gives way to rs(3,2), rs(2,2), replica(3); lrc(12,2,2) to lrc(10,2,2) and so on, then rs(4,3), rs(3,3), rs(2,3),
    /// replica(4). `None` when the same number of losses could not be survived.
    pub fn narrowed(&self, domains: usize) -> Option<Scheme> {
        if domains >= self.total_shards() {
            return Some(*self);
        }
        let losses = self.losses_survived();
        let group_len = domains
            .saturating_sub(self.parity_shards())
            .checked_div(self.local_groups());
        if let (Code::Lrc { groups, globals, .. }, Some(group_len @ 2..)) = (self.0, group_len) {
            return Scheme::lrc(group_len * usize::from(groups), groups.into(), globals.into()).ok();
        }
        match domains.checked_sub(losses)?.min(self.data_shards()) {
            0 => None,
            1 => Some(self.small()),
            data => Scheme::rs(data, losses).ok(),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Code::Replica { copies } => write!(f, "replica({copies})"),
            Code::Rs { data, parity } => write!(f, "rs({data},{parity})"),
            Code::Lrc {
                data,
                groups,
                globals,
            } => write!(f, "lrc({data},{groups},{globals})"),
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scheme> {
        let bad = |why: String| Error::BadScheme {
            scheme: text.to_owned(),
            why,
        };
        let form = || bad("write rs(4,2), lrc(12,2,2) or replica(3), with your numbers".to_owned());
        let (name, rest) = text.trim().split_once('(').ok_or_else(form)?;
        let arguments = rest.strip_suffix(')').ok_or_else(form)?;
        let number = |text: &str| {
            let text = text.trim();
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let value = if digits { text.parse().ok() } else { None };
            value.ok_or_else(|| bad(format!("{text:?} is not a number of shards")))
        };
        let arguments: Vec<&str> = arguments.split(',').collect();
        match (name.trim(), arguments.as_slice()) {
            ("rs", [data, parity]) => Scheme::rs(number(data)?, number(parity)?),
            ("rs", other) => Err(bad(format!("rs takes two numbers, k and m, not {}", other.len()))),
            ("replica", [copies]) => Scheme::replica(number(copies)?),
            ("replica", other) => Err(bad(format!("replica takes one number, not {}", other.len()))),
            ("lrc", [data, groups, globals]) => Scheme::lrc(number(data)?, number(groups)?, number(globals)?),
            ("lrc", other) => Err(bad(format!(
                "lrc takes three numbers, k, l and g, not {}",
                other.len()
            ))),
            (name, _) => Err(bad(format!(
                "there is no code {name:?}; there are rs, lrc and replica"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scheme(text: &str) -> Scheme {
        text.parse().unwrap()
    }

    #[test]
    fn prints_as_it_parses() {
        for text in [
            "rs(4,2)",
            "rs(2,1)",
            "rs(12,4)",
            "rs(254,1)",
            "rs(2,253)",
            "replica(1)",
            "replica(3)",
            "replica(255)",
            "lrc(12,2,2)",
            "lrc(2,1,1)",
            "lrc(240,12,3)",
        ] {
            assert_eq!(scheme(text).to_string(), text);
        }
        for text in [" rs(4,2) ", "rs (4, 2)", "rs( 4 ,2 )", "\trs(4,2)\n"] {
            assert_eq!(scheme(text), Scheme::rs(4, 2).unwrap());
        }
    }

    #[test]
    fn a_bad_one_says_why() {
        for (text, why) in [
            ("", "write rs(4,2)"),
            ("rs", "write rs(4,2)"),
            ("rs(4,2", "write rs(4,2)"),
            ("rs(4,2))", "is not a number"),
            ("rs(4)", "two numbers"),
            ("rs(4,2,1)", "two numbers"),
            ("rs(,2)", "\"\" is not a number"),
            ("rs(+4,2)", "\"+4\" is not a number"),
            ("rs(-4,2)", "\"-4\" is not a number"),
            ("rs(99999999999999999999999,2)", "is not a number"),
            ("rs(0,2)", "k ≥ 2"),
            ("rs(1,2)", "replica(m+1)"),
            ("rs(4,0)", "m ≥ 1"),
            ("rs(254,2)", "k + m ≤ 255"),
            ("rs(300,2)", "k + m ≤ 255"),
            ("replica(0)", "1 to 255"),
            ("replica(256)", "1 to 255"),
            ("replica(1,2)", "one number"),
            ("RS(4,2)", "no code \"RS\""),
            ("lrc(12,2)", "three numbers"),
            ("lrc(12,0,2)", "l ≥ 1"),
            ("lrc(12,2,0)", "g ≥ 1"),
            ("lrc(12,5,2)", "l divides k"),
            ("lrc(0,2,2)", "k ≥ 2l"),
            ("lrc(4,4,2)", "k ≥ 2l"),
            ("lrc(240,12,4)", "k + l + g ≤ 255"),
            ("lrc(99999999999,1,1)", "k + l + g ≤ 255"),
        ] {
            let error = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn width_shrinks_parity_never() {
        let narrowed = |text: &str, domains| scheme(text).narrowed(domains).map(|s| s.to_string());
        for (domains, expected) in [
            (7, Some("rs(4,2)")),
            (6, Some("rs(4,2)")),
            (5, Some("rs(3,2)")),
            (4, Some("rs(2,2)")),
            (3, Some("replica(3)")),
        ] {
            assert_eq!(narrowed("rs(4,2)", domains).as_deref(), expected);
        }
        for domains in 0..3 {
            assert_eq!(narrowed("rs(4,2)", domains), None);
            assert_eq!(narrowed("replica(3)", domains), None);
        }
        assert_eq!(narrowed("replica(3)", 3).as_deref(), Some("replica(3)"));
        assert_eq!(narrowed("replica(3)", 300).as_deref(), Some("replica(3)"));
        assert_eq!(scheme("rs(4,2)").small(), scheme("replica(3)"));
        assert_eq!(scheme("rs(2,253)").small(), scheme("replica(254)"));
        assert_eq!(scheme("replica(2)").small(), scheme("replica(2)"));
        for (domains, expected) in [
            (16, Some("lrc(12,2,2)")),
            (15, Some("lrc(10,2,2)")),
            (14, Some("lrc(10,2,2)")),
            (8, Some("lrc(4,2,2)")),
            (7, Some("rs(4,3)")),
            (5, Some("rs(2,3)")),
            (4, Some("replica(4)")),
            (3, None),
        ] {
            assert_eq!(narrowed("lrc(12,2,2)", domains).as_deref(), expected, "{domains}");
        }
        assert_eq!(scheme("lrc(12,2,2)").small(), scheme("replica(4)"));
        // Never more data shards than the scheme has.
        assert_eq!(narrowed("lrc(20,10,2)", 31).as_deref(), Some("rs(20,3)"));
    }

    proptest! {
        #[test]
        fn derived_schemes_survive_the_same_losses(data in 2usize..=254, parity in 1usize..=253, domains in 0usize..300) {
            prop_assume!(data + parity <= STRIPE_SHARDS_MAX);
            let scheme = Scheme::rs(data, parity).unwrap();
            prop_assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
            prop_assert_eq!(scheme.total_shards(), data + parity);
            prop_assert_eq!(scheme.small().parity_shards(), parity);
            match scheme.narrowed(domains) {
                Some(narrow) => {
                    prop_assert_eq!(narrow.parity_shards(), parity);
                    prop_assert_eq!(narrow.total_shards(), domains.min(data + parity));
                }
                None => prop_assert!(domains <= parity),
            }
        }

        #[test]
        fn derived_lrcs_survive_the_same_losses(
            group_len in 2usize..=40,
            groups in 1usize..=20,
            globals in 1usize..=20,
            domains in 0usize..300,
        ) {
            prop_assume!(group_len * groups + groups + globals <= STRIPE_SHARDS_MAX);
            let scheme = Scheme::lrc(group_len * groups, groups, globals).unwrap();
            prop_assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
            prop_assert_eq!(scheme.small().losses_survived(), globals + 1);
            match scheme.narrowed(domains) {
                Some(narrow) => {
                    prop_assert_eq!(narrow.losses_survived(), globals + 1);
                    prop_assert!(narrow.total_shards() <= domains);
                    prop_assert!(narrow.data_shards() <= scheme.data_shards());
                }
                None => prop_assert!(domains <= globals + 1),
            }
        }

        #[test]
        fn no_text_panics(text in "[a-z]{0,8}\\(?[0-9,+ -]{0,12}\\)?") {
            if let Ok(scheme) = text.parse::<Scheme>() {
                prop_assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
            }
        }
    }
}
