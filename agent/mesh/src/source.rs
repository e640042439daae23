//! Where objects come from.

#[cfg(target_os = "linux")]
pub mod files;
