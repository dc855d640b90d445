//! The live daemon's socket: HTTP and JSON on a unix socket that only its owner may use.

mod client;
mod http;
mod server;

pub(crate) use client::{Client, find};
pub(crate) use server::{Server, Service};
