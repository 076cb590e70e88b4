//! Where data goes: which volume takes a blob (`volumes`), and which disks make a new volume (`choose`, pure),
//! and which units move to make disks equally full (`rebalance`, pure).

mod begun;
pub mod choose;
pub mod found;
pub mod rebalance;
pub mod relocations;
pub mod volumes;
