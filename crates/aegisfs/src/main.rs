//! AegisFS: one filesystem from many devices.
fn main() {}
