//! Cairn's gateway.
pub mod ledger;
