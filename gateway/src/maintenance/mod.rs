//! Work that nobody has to think about: garbage, orphans, repair, what scrubbing found, sealing full volumes.
//!
//! Each is a [`worker::Worker`] with a name, a state that operators can see, and a pace. None of them decides by the
//! wall clock: what may be deleted follows from ledger rows, leases and who is reading.

pub mod garbage;
pub mod orphans;
pub mod repair;
pub mod scrub;
pub mod sealing;
pub mod worker;
