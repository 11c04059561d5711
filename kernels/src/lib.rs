//! (see the crate's documentation below)
