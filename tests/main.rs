//! The integration tests: everything but injected faults.
//! Each starts what it needs by itself.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

/// The bench runs, and touches no one's tasks.
mod bench;
/// The command line: help, what it prints, refused input, exit codes.
mod cli;
/// The examples of other languages, where the language is there.
mod clients;
/// What says where the database is, and what is said where it cannot be reached.
mod connecting;
/// Dispatch through SQL: ids, order of positions, refused input.
mod dispatch;
/// Every example prints what its header says.
mod examples;
/// What a worker is told by flags and settings.
mod flags;
/// Each kind of role does what it is for, and nothing else.
mod grants;
/// Commands: their files, directories, environments, users, and that they can dispatch.
mod handlers;
/// The safety poll never leaves out what waits.
mod housekeeping;
/// Workers of type redis: what they tell each other, and ends that are held up.
mod joint_turns;
/// Workers of type redis: what Postgres sees of them, and which Redis they accept.
mod lock_store;
/// Migrations and the golden schema; every query can be prepared.
mod migrate;
/// The oracle can fail.
mod oracle;
/// How tasks end, and what whoever waits for them is told.
mod outcomes;
/// Deep queues: what is parked comes back.
mod parking;
/// What the workers' statements read, whatever the statistics say.
mod plans;
/// Data that is odd, or cannot be read or stored, harms its own task alone.
mod poison;
/// Through PgBouncer: what works, and what says that it cannot.
mod pooler;
/// Random queues keep the order and leave nothing behind.
mod property;
/// README is short, and what it tells people to type works.
mod readme;
/// Handlers are read anew.
mod reload;
/// Which tasks run at each step, for every worker type.
mod scenarios;
/// Private servers, and what runs on them.
mod servers;
/// A worker as a service of systemd.
mod service;
mod support;
/// The command line as people use it: arguments, filters, JSON, colours, pages.
mod terminal;
/// Encrypted connections: each mode with each kind of server.
mod tls;
/// Turns that the test takes itself, beside others.
mod turns;
/// A task that would wait for ever is refused.
mod waiter;
