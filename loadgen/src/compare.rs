//! Two results side by side, and whether the second is worse.
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Latencies differ by a microsecond for no reason: a smaller difference than this is none, whatever its ratio.
const LATENCY_US_SAME: f64 = 2.0;

/// Results that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// No file there.
    #[error("cannot read {path}: {source}; give a folder that --out wrote, or its result.json")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not what `--out` writes.
    #[error("{path} is no result of loadgen run --out: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Runs of two kinds.
    #[error("the runs are not of one kind: {key} is {one} in the first and {two} in the second")]
    Unlike {
        /// The option that differs.
        key: &'static str,
        /// In the first.
        one: String,
        /// In the second.
        two: String,
    },
}

/// A result as it was written, and where it came from.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As the user named it.
    pub name: String,
    /// result.json.
    pub result: Value,
}

impl Stored {
    /// Reads a folder that `--out` wrote, or a result.json.
    pub fn read(path: &Path) -> Result<Self, CompareError> {
        let file = if path.is_dir() { path.join("result.json") } else { path.to_owned() };
        let text = std::fs::read_to_string(&file).map_err(|source| CompareError::Read { path: file.clone(), source })?;
        let format = |what: String| CompareError::Format { path: file.clone(), what };
        let result: Value = serde_json::from_str(&text).map_err(|error| format(error.to_string()))?;
        if result["schema"] != 1 {
            return Err(format(format!("schema is {}, not 1", result["schema"])));
        }
        if !result["latency_us"].is_object() {
            return Err(format("it has no latency_us".into()));
        }
        Ok(Self { name: path.display().to_string(), result })
    }

    fn number(&self, pointer: &str) -> Option<f64> {
        self.result.pointer(pointer).and_then(Value::as_f64)
    }
}

/// What two results come to.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The table for people.
    pub text: String,
    /// Names of the figures in which the second is worse by more than the tolerance.
    pub regressions: Vec<&'static str>,
    /// Whether both were taken in turns within one run.
    pub interleaved: bool,
}

/// A figure: its name, its place in result.json, whether more is better, and whether it is judged or only shown.
type Figure = (&'static str, &'static str, bool, bool);

const FIGURES: [Figure; 10] = [
    ("shares/s", "/shares_per_s", true, true),
    ("shares per server CPU-second", "/server_shares_per_cpu_s", true, true),
    ("server CPU us per share", "/server_cpu_us_per_share", false, false),
    ("latency p50 us", "/latency_us/p50", false, true),
    ("latency p90 us", "/latency_us/p90", false, true),
    ("latency p99 us", "/latency_us/p99", false, true),
    ("latency p99.9 us", "/latency_us/p999", false, true),
    ("latency p99.99 us", "/latency_us/p9999", false, false),
    ("latency p99.999 us", "/latency_us/p99999", false, false),
    ("latency max us", "/latency_us/max", false, false),
];

/// Compares `after` with `before`: worse by more than `tolerance` (0.05 is five per cent) is a regression.
pub fn compare(before: &Stored, after: &Stored, tolerance: f64) -> Result<Comparison, CompareError> {
    for key in ["mode", "connections", "depth", "rate"] {
        if before.result[key] != after.result[key] {
            return Err(CompareError::Unlike { key, one: before.result[key].to_string(), two: after.result[key].to_string() });
        }
    }
    let mut text = String::new();
    let mut regressions = Vec::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "before {}\nafter  {}\n\n{:<30} {:>14} {:>14} {:>8}", before.name, after.name, "", "before", "after", "ratio");
    for (name, pointer, more_is_better, judged) in FIGURES {
        let (Some(one), Some(two)) = (before.number(pointer), after.number(pointer)) else { continue };
        let ratio = if one > 0.0 { two / one } else { f64::NAN };
        let is_latency = pointer.starts_with("/latency_us");
        let worse = if more_is_better { two < one * (1.0 - tolerance) } else { two > one * (1.0 + tolerance) };
        let worse = worse && judged && !(is_latency && (two - one).abs() < LATENCY_US_SAME);
        if worse {
            regressions.push(name);
        }
        let mark = if worse { "  REGRESSION" } else { "" };
        let digits = if is_latency { 0 } else { 1 + 2 * usize::from(one < 100.0) };
        let _ = writeln!(text, "{name:<30} {one:>14.digits$} {two:>14.digits$} {ratio:>8.3}{mark}");
    }
    for (name, key) in [("wrong answers", "wrong"), ("submits without an answer", "unanswered")] {
        let (one, two) = (before.result[key].as_u64().unwrap_or(0), after.result[key].as_u64().unwrap_or(0));
        let worse = two > one;
        if worse {
            regressions.push(name);
        }
        let _ = writeln!(text, "{name:<30} {one:>14} {two:>14} {:>8}{}", "", if worse { "  REGRESSION" } else { "" });
    }
    for (side, stored) in [("before", before), ("after", after)] {
        if stored.result["generator_limited"] == true {
            let _ = writeln!(text, "\nIn the run {side} the load generator was the limit: its figures are not the server's.");
        }
    }
    let run = &before.result["interleaved"];
    let interleaved = run.is_number() && *run == after.result["interleaved"];
    let _ = if interleaved {
        writeln!(text, "\nBoth were measured in turns within one run.")
    } else {
        writeln!(
            text,
            "\nThe two runs were NOT interleaved: a machine drifts by more than most changes are worth. Use loadgen run --target A --against B."
        )
    };
    let _ = match regressions.len() {
        0 => writeln!(text, "No regression beyond {} %.", 100.0 * tolerance),
        count => writeln!(text, "{count} regression(s) beyond {} %: {}.", 100.0 * tolerance, regressions.join(", ")),
    };
    Ok(Comparison { text, regressions, interleaved })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(rate: f64, p99: u64, run: Value) -> Stored {
        let result = json!({"schema": 1, "mode": "valid", "connections": 4, "depth": 8, "rate": null, "shares_per_s": rate, "wrong": 0,
            "unanswered": 0, "latency_us": {"p50": 20, "p99": p99}, "interleaved": run});
        Stored { name: "test".into(), result }
    }

    #[test]
    fn worse_beyond_the_tolerance_is_a_regression_and_better_never_is() {
        let before = stored(1000.0, 100, Value::Null);
        let named = |rate, p99| compare(&before, &stored(rate, p99, Value::Null), 0.05).expect("like").regressions;
        assert_eq!(named(951.0, 105), Vec::<&str>::new());
        assert_eq!(named(949.0, 100), ["shares/s"]);
        assert_eq!(named(2000.0, 106), ["latency p99 us"]);
        assert_eq!(named(2000.0, 1), Vec::<&str>::new());
        assert_eq!(
            compare(&stored(9.0, 1, Value::Null), &stored(9.0, 2, Value::Null), 0.05).expect("like").regressions,
            Vec::<&str>::new()
        );
    }

    #[test]
    fn a_wrong_answer_is_a_regression_whatever_the_tolerance() {
        let mut after = stored(1000.0, 100, Value::Null);
        after.result["wrong"] = 1.into();
        let comparison = compare(&stored(1000.0, 100, Value::Null), &after, 0.9).expect("like");
        assert_eq!(comparison.regressions, ["wrong answers"]);
    }

    #[test]
    fn only_halves_of_one_run_count_as_interleaved() {
        let interleaved = |one: Value, two: Value| compare(&stored(1.0, 1, one), &stored(1.0, 1, two), 0.05).expect("like");
        assert!(interleaved(7.into(), 7.into()).interleaved);
        for (one, two) in [(Value::Null, Value::Null), (7.into(), 8.into()), (Value::Null, 7.into())] {
            let comparison = interleaved(one, two);
            assert!(!comparison.interleaved && comparison.text.contains("NOT interleaved"), "{}", comparison.text);
        }
    }

    #[test]
    fn runs_of_two_kinds_are_refused() {
        let mut other = stored(1.0, 1, Value::Null);
        other.result["depth"] = 64.into();
        let error = compare(&stored(1.0, 1, Value::Null), &other, 0.05).expect_err("unlike").to_string();
        assert!(error.contains("depth is 8 in the first and 64 in the second"), "{error}");
    }
}
