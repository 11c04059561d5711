//! The machine: cores, clocks and pages.
mod clock;
pub(crate) mod pages;
mod pin;

pub use clock::WallClock;
pub use pages::ask_for_huge_pages_alone;
pub use pin::{allowed_cores, pin_to_core};
