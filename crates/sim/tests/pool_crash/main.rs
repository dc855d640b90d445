//! The pool and a real database on it, with the power cut at every event, and with devices that fail, die and rot.

mod commits;
mod damage;
mod edges;
mod faults;
mod log_ring;
mod members;
mod stage;
mod superblocks;
