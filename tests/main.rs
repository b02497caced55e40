//! The integration tests: everything but injected faults.
//! Each starts what it needs by itself.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

/// Dispatch through SQL: ids, order of positions, refused input.
mod dispatch;
/// The safety poll never leaves out what waits.
mod housekeeping;
/// Migrations and the golden schema; every query can be prepared.
mod migrate;
/// The oracle can fail.
mod oracle;
/// Private servers, and what runs on them.
mod servers;
mod support;
