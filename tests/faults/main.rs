//! The fault tests: real processes, killed, frozen and cut off.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../support/mod.rs"]
mod support;
