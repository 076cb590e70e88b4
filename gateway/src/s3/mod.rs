//! The S3 protocol: what passes `front` and s3s parses becomes a call on `object`, and its answer becomes what s3s prints.
//!
//! Invariant: s3s's types stop here. `service` is the only `impl S3`, one line an operation; the conversions are in
//! the files by subject, errors are mapped in `error` and nowhere else.

mod absent;
mod auth;
mod body;
mod convert;
mod cors;
mod error;
mod fields;
pub mod front;
mod listing;
mod multipart;
mod object;
mod service;
mod unread;

pub use auth::StaticKeys;
pub use front::{Front, S3Settings};
pub(crate) use listing::check_token;
pub use service::S3Gateway;
