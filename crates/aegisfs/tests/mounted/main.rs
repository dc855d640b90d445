//! The program on real mounts: what an operator does, by the commands an operator has.
//!
//! Needs root and /dev/fuse; says so and skips without. Every command runs under a time limit, and every
//! test ends what it started, also when it fails.

#![expect(clippy::print_stdout, reason = "a test tells what it did")]

mod acls;
mod bad_input;
mod cleaning;
mod coded;
mod flags;
mod idle_class;
mod inspecting;
mod kernel_ways;
mod latency;
mod lifecycle;
mod many;
mod members;
mod messages;
mod mixed;
mod mounting;
mod nfs_handles;
mod opcodes;
mod policies;
mod posix_bytes;
mod posix_faults;
mod posix_locks;
mod posix_names;
mod posix_xattrs;
mod privileges;
mod requirements;
mod requirements_bytes;
mod requirements_sync;
mod stage;
mod suites;
mod trimming;
