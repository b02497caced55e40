//! The fault tests: real processes, killed, frozen and cut off.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

/// The database's clock that is set anew.
mod clock;
/// What commands have left behind when they end, in whichever way.
mod descendants;
/// A server that is replaced by its standby.
mod failover;
/// Workers frozen in the middle of a start, a server frozen around the end of a lease.
mod freeze;
/// The lock store of worker type `redis` empties, freezes, goes away; its workers die.
mod lock_store;
/// Workers, wardens and commands that are killed or frozen.
mod processes;
/// What tasks say while they run, and what is left of it when their worker dies.
mod reports;
/// Sessions that are cut, a server that is stopped under load.
mod server;
/// Settings of role, database and server.
mod settings;
/// What each signal does, once and twice.
mod signals;
#[path = "../support/mod.rs"]
mod support;
/// Who is settled by others, and what is put right.
mod sweeps;
/// What passes is waited for.
mod waits;
