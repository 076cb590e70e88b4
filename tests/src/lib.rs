//! Placeholder until the crate gets its first module.
