//! What a suite reports: one JSON line for each figure, which `cargo xtask figures` gathers over several runs.
use serde_json::json;

/// One figure of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name in docs/figures.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Of `value`.
    pub unit: &'static str,
    /// What exactly was counted, in words.
    pub counted: String,
    /// Under which it holds.
    pub conditions: String,
}

impl Figure {
    /// The line that is printed.
    pub fn line(&self) -> String {
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "counted": self.counted,
            "conditions": self.conditions,
        })
        .to_string()
    }
}

/// How a suite is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The core that everything is pinned to.
    pub core: usize,
    /// Samples of each variant.
    pub samples: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_line_of_json() {
        let figure = Figure { name: "n".into(), value: 1.5, unit: "cycles", counted: "a \"b\"\nc".into(), conditions: "d".into() };
        let line = figure.line();
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["name"].as_str(), read["value"].as_f64(), read["unit"].as_str()), (Some("n"), Some(1.5), Some("cycles")));
    }
}
