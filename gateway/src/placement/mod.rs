//! Where data goes: which volume takes a blob (`volumes`), and which disks make a new volume (`choose`, pure).

pub mod choose;
pub mod volumes;
