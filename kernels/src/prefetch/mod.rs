//! Asks for a cache line before it is read, so that the misses of a whole batch are under way together. A hint: it changes no value anywhere.
//!
//! Against plain loads in a loop of their own: a load that misses holds its place in the CPU until the line comes and stops what follows, a prefetch does not.

#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Gets the cache line of `place` under way. Does nothing where there is no such instruction.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(place);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
