//! What is left of a line once framing has cut it at LF.

/// The line without the CR that some firmware writes before LF, and without blanks at both ends. An empty result is a keep-alive: skip it.
pub fn trim(line: &[u8]) -> &[u8] {
    line.trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cr_before_lf_goes_and_nothing_else() {
        assert_eq!(trim(b"{\"id\": 1}\r"), b"{\"id\": 1}");
        assert_eq!(trim(b"{}\r\n"), b"{}");
        assert_eq!(trim(b" \t\r"), b"");
        assert_eq!(trim(b"a\rb"), b"a\rb");
    }
}
