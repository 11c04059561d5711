//! What a submit claims, decoded: the one form that all tiers of the parser come to and that the session judges.
use super::IdToken;
use super::request::{Param, Request};
use super::workers::Workers;
use otedama_primitives::{WorkerId, decode_hex, hex_long, hex_pair, hex_word};

/// A submit with every field that could be decoded. A field that could not be is None; what that means is the session's to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// None when it cannot be echoed.
    pub id: Option<IdToken>,
    /// The worker, where it is authorized on the connection.
    pub worker: Option<WorkerId>,
    /// Its job as a number, and which sending of it: 0 for the plain id.
    pub job: Option<(u32, u8)>,
    /// As a big-endian number of its wire bytes.
    pub extranonce2: Option<u64>,
    /// Header time.
    pub ntime: Option<u32>,
    /// Header nonce.
    pub nonce: Option<u32>,
    /// The version bits: None when malformed, Some(None) when the share rolls none.
    pub rolled: Option<Option<u32>>,
    /// There are at least five params, and the worker is a string.
    pub has_shape: bool,
    /// The job is a string.
    pub names_job: bool,
}

impl Claim {
    /// Decodes the params of a submit. `extranonce2_bytes` is the size that the session was told.
    #[inline]
    pub fn of(request: &Request<'_>, workers: &Workers, extranonce2_bytes: u8) -> Self {
        let [worker, job, extranonce2, ntime, nonce, version, ..] = &request.params;
        let (ntime, nonce) = two_words(ntime, nonce);
        Self {
            id: request.id,
            worker: if let Param::Text(name) = worker { workers.find(name) } else { None },
            job: if let Param::Text(text) = job { job_name(text) } else { None },
            extranonce2: if let Param::Text(text) = extranonce2 { number_of_bytes(text, extranonce2_bytes) } else { None },
            ntime,
            nonce,
            rolled: rolled_bits(version),
            has_shape: request.params_count >= 5 && matches!(worker, Param::Text(_)),
            names_job: matches!(job, Param::Text(_)),
        }
    }
}

/// Our job ids are 8 hex digits, and 2 more where a job was sent again: which sending it was, from 1. Anything else was never one of ours.
#[inline]
fn job_name(text: &[u8]) -> Option<(u32, u8)> {
    match text.split_at_checked(8) {
        Some((id, b"")) => Some((eight_digits(id)?, 0)),
        Some((id, sending @ [_, _])) => Some((eight_digits(id)?, sending_of(sending)?)),
        _ => None,
    }
}

/// The two digits of a sending; 0 is none.
#[inline]
pub(super) fn sending_of(text: &[u8]) -> Option<u8> {
    let mut byte = [0; 1];
    decode_hex(text, &mut byte).ok()?;
    Some(byte[0]).filter(|sending| *sending > 0)
}

#[inline]
fn eight_digits(text: &[u8]) -> Option<u32> {
    let (word, valid) = hex_word(*text.as_array()?);
    valid.then_some(word)
}

/// Exactly `size` bytes of hex, at most 8, as a big-endian number.
#[inline]
pub(super) fn number_of_bytes(text: &[u8], size: u8) -> Option<u64> {
    if text.len() != usize::from(size) * 2 {
        return None;
    }
    let mut padded = [b'0'; 16];
    match text.as_array::<16>() {
        Some(whole) => padded = *whole,
        None => padded.get_mut(16usize.checked_sub(text.len())?..)?.copy_from_slice(text),
    }
    let (number, valid) = hex_long(padded);
    valid.then_some(number)
}

/// Two header words, which are nearly always of eight digits: decoded together then.
#[inline(always)]
fn two_words(first: &Param<'_>, second: &Param<'_>) -> (Option<u32>, Option<u32>) {
    if let (Param::Text(first), Param::Text(second)) = (first, second)
        && let (Some(first), Some(second)) = (first.as_array::<8>(), second.as_array::<8>())
        && let (words, true) = hex_pair(*first, *second)
    {
        return (Some(words[0]), Some(words[1]));
    }
    (word(first), word(second))
}

/// A header word: a string of 1 to 8 hex digits (some firmware drops leading zeros), with or without "0x".
#[inline(always)]
fn word(param: &Param<'_>) -> Option<u32> {
    if let Param::Text(text) = *param { word_of_hex(text) } else { None }
}

#[inline(always)]
pub(super) fn word_of_hex(text: &[u8]) -> Option<u32> {
    eight_digits(text).or_else(|| word_of_odd_hex(text))
}

#[cold]
fn word_of_odd_hex(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"0x").or_else(|| text.strip_prefix(b"0X")).unwrap_or(text);
    if digits.is_empty() {
        return None;
    }
    let mut padded = [b'0'; 8];
    padded.get_mut(8usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    eight_digits(&padded)
}

/// The sixth param: None when it is malformed, Some(None) when the share rolls no bits. Some firmware sends 64 hex digits there, a hash: no version bits.
/// A seventh and later ones are not looked at.
#[inline]
fn rolled_bits(param: &Param<'_>) -> Option<Option<u32>> {
    match *param {
        Param::Null => Some(None),
        Param::Text(text) if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) => Some(None),
        Param::Text(text) => word_of_hex(text).map(Some),
        _ => None,
    }
}
