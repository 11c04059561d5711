//! A modern ClickHouse without a server: libchdb, loaded at run time, behind the subset of ClickHouse's HTTP interface that the shipper, `reconcile` and analysts use.
//!
//! It is a process of its own on purpose: the library is 566 MB, takes 0.2 to 0.6 GB of memory and 16 to 25 threads, and a crash in it must never be a crash of the pool.
//! `library` is the only file with `unsafe`; `session` runs one statement as the server would; `http` is the server; `statement` reads as much SQL as both need.
#![deny(unsafe_code)]

pub mod exception;
pub mod http;
pub mod library;
pub mod session;
pub mod statement;
