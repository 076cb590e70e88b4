//! The wall clock, as an argument. Used for what people see (Last-Modified) and never for a decision about data.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time for people, in UTC and to the second, of milliseconds since 1970.
pub fn rfc3339(at_ms: u64) -> String {
    let at = i64::try_from(at_ms / 1_000).ok();
    let at = at.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = at.and_then(|at| at.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{at_ms} ms after 1970"))
}

/// The time that [`rfc3339`] writes, in milliseconds since 1970; none of what is no such time.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> u64;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        #[allow(clippy::disallowed_methods)] // The one place that reads the wall clock.
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
