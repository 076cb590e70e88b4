//! Work that nobody has to think about: garbage, orphans, what nothing names, repair, what scrubbing found, the census, sealing full
//! volumes; giving up on disks that stay away, rebuilding what they held, and clearing those that return; making disks equally full when asked.
//!
//! Each is a [`worker::Worker`] with a name, a state that operators can see, and a pace. None of them decides by the
//! wall clock: what may be deleted follows from ledger rows, leases and who is reading.

pub mod absence;
pub mod adding;
pub mod census;
pub mod epochs;
pub mod garbage;
pub mod holds;
pub mod ledger_check;
pub mod leftovers;
pub mod orphans;
pub mod polling;
pub mod rebalance;
pub mod rebuild;
pub mod reconstruct;
pub mod repair;
pub mod scrub;
pub mod sealing;
pub mod settling;
pub mod strays;
pub mod telling;
pub mod unnamed;
pub mod worker;
