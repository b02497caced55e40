//! The fault tests: real processes, killed, frozen and cut off.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

/// The lock store of worker type `redis` empties, freezes, goes away; its workers die.
mod lock_store;
/// Workers, wardens and commands that are killed or frozen.
mod processes;
/// Sessions that are cut, a server that is stopped under load.
mod server;
/// Settings of role, database and server.
mod settings;
/// What each signal does, once and twice.
mod signals;
#[path = "../support/mod.rs"]
mod support;
/// What passes is waited for.
mod waits;
