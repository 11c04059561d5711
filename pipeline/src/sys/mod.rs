//! The machine: cores and clocks.
mod clock;
mod pin;

pub use clock::WallClock;
pub use pin::{allowed_cores, pin_to_core};
