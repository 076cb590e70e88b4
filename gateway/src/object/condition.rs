//! Conditional requests: pure decisions on an object's row. RFC 9110 §13 as S3 applies it.

use crate::error::{Error, Result};
use crate::ledger::model::ObjectRow;

/// An ETag condition: any object at all, or one with this ETag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ETagIs {
    /// `*`
    Any,
    /// This ETag, without quotes.
    Tag(String),
}

impl ETagIs {
    fn holds(&self, row: &ObjectRow) -> bool {
        match self {
            ETagIs::Any => true,
            ETagIs::Tag(tag) => *tag == row.etag,
        }
    }
}

/// Conditions of GET, HEAD and the source of a copy. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadConditions {
    /// If-Match.
    pub matches: Option<ETagIs>,
    /// If-None-Match.
    pub none_match: Option<ETagIs>,
    /// If-Modified-Since.
    pub modified_since_s: Option<i64>,
    /// If-Unmodified-Since.
    pub unmodified_since_s: Option<i64>,
    /// Whether "the client has it already" is a failed precondition, as for the source of a copy.
    pub for_copy: bool,
}

impl ReadConditions {
    /// Whether the object may be read. An ETag condition decides alone where a time condition stands beside it.
    pub fn check(&self, row: &ObjectRow) -> Result<()> {
        let modified_s = (row.modified_ms / 1_000) as i64;
        match (&self.matches, self.unmodified_since_s) {
            (Some(tag), _) if !tag.holds(row) => return Err(Error::PreconditionFailed),
            (None, Some(since)) if modified_s > since => return Err(Error::PreconditionFailed),
            _ => {}
        }
        let has_it = match (&self.none_match, self.modified_since_s) {
            (Some(tag), _) => tag.holds(row),
            (None, Some(since)) => modified_s <= since,
            (None, None) => false,
        };
        match has_it {
            false => Ok(()),
            true if self.for_copy => Err(Error::PreconditionFailed),
            true => Err(Error::NotModified {
                etag: row.etag.clone(),
                modified_ms: row.modified_ms,
            }),
        }
    }
}

/// Conditions of PUT, CompleteMultipartUpload and DELETE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteConditions {
    /// If-Match.
    pub matches: Option<ETagIs>,
    /// If-None-Match.
    pub none_match: Option<ETagIs>,
}

impl WriteConditions {
    /// Whether the object may be written over what is there now.
    pub fn check(&self, current: Option<&ObjectRow>) -> Result<()> {
        match (&self.matches, current) {
            (Some(_), None) => return Err(Error::NoSuchKey),
            (Some(tag), Some(row)) if !tag.holds(row) => return Err(Error::PreconditionFailed),
            _ => {}
        }
        match (&self.none_match, current) {
            (Some(tag), Some(row)) if tag.holds(row) => Err(Error::PreconditionFailed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> ObjectRow {
        ObjectRow {
            etag: "abc".into(),
            modified_ms: 100_500,
            ..Default::default()
        }
    }

    fn tag(t: &str) -> Option<ETagIs> {
        Some(ETagIs::Tag(t.into()))
    }

    #[test]
    fn reads() {
        let check = |c: ReadConditions| match c.check(&row()) {
            Ok(()) => 200,
            Err(Error::NotModified { .. }) => 304,
            Err(_) => 412,
        };
        let none = ReadConditions::default;
        assert_eq!(check(none()), 200);
        assert_eq!(
            check(ReadConditions {
                matches: tag("abc"),
                ..none()
            }),
            200
        );
        assert_eq!(
            check(ReadConditions {
                matches: tag("x"),
                ..none()
            }),
            412
        );
        assert_eq!(
            check(ReadConditions {
                none_match: tag("abc"),
                ..none()
            }),
            304
        );
        assert_eq!(
            check(ReadConditions {
                none_match: tag("x"),
                modified_since_s: Some(200),
                ..none()
            }),
            200
        );
        assert_eq!(
            check(ReadConditions {
                modified_since_s: Some(100),
                ..none()
            }),
            304
        );
        assert_eq!(
            check(ReadConditions {
                modified_since_s: Some(99),
                ..none()
            }),
            200
        );
        assert_eq!(
            check(ReadConditions {
                unmodified_since_s: Some(99),
                ..none()
            }),
            412
        );
        assert_eq!(
            check(ReadConditions {
                unmodified_since_s: Some(100),
                ..none()
            }),
            200
        );
        assert_eq!(
            check(ReadConditions {
                matches: tag("abc"),
                unmodified_since_s: Some(1),
                ..none()
            }),
            200
        );
        assert_eq!(
            check(ReadConditions {
                none_match: Some(ETagIs::Any),
                for_copy: true,
                ..none()
            }),
            412
        );
    }

    #[test]
    fn writes() {
        let create = WriteConditions {
            none_match: Some(ETagIs::Any),
            ..Default::default()
        };
        assert!(create.check(None).is_ok());
        assert!(matches!(
            create.check(Some(&row())),
            Err(Error::PreconditionFailed)
        ));
        let replace = WriteConditions {
            matches: tag("abc"),
            ..Default::default()
        };
        assert!(replace.check(Some(&row())).is_ok());
        assert!(matches!(replace.check(None), Err(Error::NoSuchKey)));
        assert!(
            WriteConditions {
                matches: tag("x"),
                ..Default::default()
            }
            .check(Some(&row()))
            .is_err()
        );
    }
}
