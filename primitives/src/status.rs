//! What became of a share: one byte, one table for wire code, label and text.

/// The verdict on a submit. The number is in the log and in ClickHouse: append-only.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ShareStatus {
    /// At or under its target: credited.
    Accepted = 0,
    /// Its job is unknown or has ended.
    Stale = 1,
    /// The same header was credited before.
    Duplicate = 2,
    /// The hash is above the share target.
    LowDifficulty = 3,
    /// ntime outside of the template's window.
    BadTime = 4,
    /// Version bits outside of the negotiated mask.
    BadVersion = 5,
    /// A field of the wrong type, size or alphabet.
    Malformed = 6,
    /// The worker is not authorized on this connection.
    Unauthorized = 7,
    /// Refused to protect the server: log full, duplicate table full.
    Overload = 8,
}

impl ShareStatus {
    /// Every status, in the order of its number.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Stale,
        Self::Duplicate,
        Self::LowDifficulty,
        Self::BadTime,
        Self::BadVersion,
        Self::Malformed,
        Self::Unauthorized,
        Self::Overload,
    ];

    /// The status of a number from the log; None for one from a newer release.
    pub const fn from_u8(number: u8) -> Option<Self> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }

    /// Metric label, JSON key and ClickHouse enum name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Stale => "stale",
            Self::Duplicate => "duplicate",
            Self::LowDifficulty => "low_difficulty",
            Self::BadTime => "bad_time",
            Self::BadVersion => "bad_version",
            Self::Malformed => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::Overload => "overload",
        }
    }

    /// The status of a label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.label() == label)
    }

    /// Stratum V1 error code; 0 for accepted. 21 to 25 are the field's de facto codes (slush, cgminer), 20 is "other".
    pub const fn wire_code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Stale => 21,
            Self::Duplicate => 22,
            Self::LowDifficulty => 23,
            Self::Unauthorized => 24,
            Self::BadTime | Self::BadVersion | Self::Malformed | Self::Overload => 20,
        }
    }

    /// The text a miner reads beside the code; it names the cause where the code is 20.
    pub const fn wire_text(self) -> &'static str {
        match self {
            Self::Accepted => "",
            Self::Stale => "job not found (stale)",
            Self::Duplicate => "duplicate share",
            Self::LowDifficulty => "low difficulty share",
            Self::BadTime => "bad_time: ntime outside of the job's window",
            Self::BadVersion => "bad_version: version bits outside of the negotiated mask",
            Self::Malformed => "malformed: a field has the wrong type, size or alphabet",
            Self::Unauthorized => "unauthorized worker",
            Self::Overload => "overload: the server cannot record this share now",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_labels_and_codes_are_the_published_ones() {
        let table: Vec<_> = ShareStatus::ALL.iter().map(|s| (*s as u8, s.label(), s.wire_code())).collect();
        assert_eq!(
            table,
            [
                (0, "accepted", 0),
                (1, "stale", 21),
                (2, "duplicate", 22),
                (3, "low_difficulty", 23),
                (4, "bad_time", 20),
                (5, "bad_version", 20),
                (6, "malformed", 20),
                (7, "unauthorized", 24),
                (8, "overload", 20),
            ]
        );
        for status in ShareStatus::ALL {
            assert_eq!(ShareStatus::from_u8(status as u8), Some(status));
            assert_eq!(ShareStatus::from_label(status.label()), Some(status));
        }
        assert_eq!(ShareStatus::from_u8(9), None);
    }
}
