//! The topics `kernels` and `parser`: the `benches` binary several times, each time every variant side by side in one process.
use super::Bench;
use crate::Failure;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One figure over the runs.
#[derive(Debug, PartialEq)]
pub(super) struct Gathered {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) counted: String,
    /// Distinct ones, in the order of the runs: where batches are cut is measured anew by every process.
    pub(super) conditions: Vec<String>,
    pub(super) values: Vec<f64>,
}

impl Bench<'_> {
    /// The suites of the topic, as often as asked for.
    pub(super) fn suites(&self) -> Result<Vec<Value>, Failure> {
        let mut gathered = Vec::new();
        for run in 0..self.request.runs {
            let core = super::SERVER_CORE.to_string();
            let lines = lines_of(&self.benches, &[self.request.suites(), &["--core", &core]].concat())?;
            gather(&mut gathered, run, &lines)?;
            println!("run {run}: {} figures", gathered.len());
        }
        Ok(gathered.iter().map(|one| self.figure(&one.name, &one.values, &one.unit, &one.counted, &joined(&one.conditions))).collect())
    }
}

/// What a measuring program prints.
pub(super) fn lines_of(binary: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let said = format!("{} {}", binary.display(), arguments.join(" "));
    let done = Command::new(binary)
        .args(arguments)
        .output()
        .map_err(|error| Failure::Environment(format!("{said}: {error}; leave out --no-build to build it")))?;
    if !done.status.success() {
        return Err(Failure::Environment(format!("{said}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr))));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Adds the lines of one run. Every run has every figure: one that is missing or doubled is an error, never a median over fewer runs.
pub(super) fn gather(gathered: &mut Vec<Gathered>, run: usize, lines: &str) -> Result<(), Failure> {
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let odd = |what: &str| Failure::Environment(format!("benches printed a line {what}: {line}"));
        let value: Value = serde_json::from_str(line).map_err(|error| odd(&format!("that is no JSON ({error})")))?;
        let text = |key: &str| value[key].as_str().map(str::to_owned).ok_or_else(|| odd(&format!("without {key}")));
        let (name, number) =
            (text("name")?, value["value"].as_f64().filter(|number| number.is_finite()).ok_or_else(|| odd("without a value"))?);
        match gathered.iter_mut().find(|one| one.name == name) {
            Some(one) if one.values.len() == run => {
                one.values.push(number);
                let conditions = text("conditions")?;
                if !one.conditions.contains(&conditions) {
                    one.conditions.push(conditions);
                }
            }
            None if run == 0 => gathered.push(Gathered {
                name,
                unit: text("unit")?,
                counted: text("counted")?,
                conditions: vec![text("conditions")?],
                values: vec![number],
            }),
            _ => return Err(odd(&format!("that run {run} has once more, or the runs before it not at all"))),
        }
    }
    match gathered.iter().find(|one| one.values.len() != run + 1) {
        Some(one) => Err(Failure::Environment(format!("run {run} of benches has no {}", one.name))),
        None if gathered.is_empty() => Err(Failure::Environment("benches printed no figure".to_owned())),
        None => Ok(()),
    }
}

/// Conditions of several runs as one: between commas, what differs stands with its alternatives.
pub(super) fn joined(conditions: &[String]) -> String {
    let parted: Vec<Vec<&str>> = conditions.iter().map(|one| one.split(", ").collect()).collect();
    let Some(first) = parted.first() else { return String::new() };
    if parted.iter().any(|parts| parts.len() != first.len()) {
        return conditions.join("; in other runs: ");
    }
    let alternatives = |at: usize| {
        let mut distinct: Vec<&str> = Vec::new();
        for parts in &parted {
            if !distinct.contains(&parts[at]) {
                distinct.push(parts[at]);
            }
        }
        distinct.join(" or ")
    };
    (0..first.len()).map(alternatives).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_under(name: &str, value: f64, conditions: &str) -> String {
        format!("{{\"name\":\"{name}\",\"value\":{value},\"unit\":\"u\",\"counted\":\"c\",\"conditions\":\"{conditions}\"}}\n")
    }

    fn line(name: &str, value: f64) -> String {
        line_under(name, value, "d")
    }

    #[test]
    fn conditions_that_differ_between_runs_are_all_listed() {
        let mut gathered = Vec::new();
        for (run, cuts) in ["2 x 16 from 19", "2 x 16 from 17", "2 x 16 from 19"].into_iter().enumerate() {
            gather(&mut gathered, run, &(line_under("a", 1.0, &format!("one core, {cuts}, quiet")) + &line("b", 1.0))).unwrap();
        }
        assert_eq!(gathered[0].conditions, ["one core, 2 x 16 from 19, quiet", "one core, 2 x 16 from 17, quiet"]);
        assert_eq!(joined(&gathered[0].conditions), "one core, 2 x 16 from 19 or 2 x 16 from 17, quiet");
        assert_eq!(joined(&gathered[1].conditions), "d");
        assert_eq!(joined(&["a, b".to_owned(), "a".to_owned()]), "a, b; in other runs: a");
    }

    #[test]
    fn figures_are_gathered_by_name_over_the_runs() {
        let mut gathered = Vec::new();
        gather(&mut gathered, 0, &(line("a", 1.0) + &line("b", 5.0))).unwrap();
        gather(&mut gathered, 1, &(line("b", 6.0) + "\n" + &line("a", 2.0))).unwrap();
        assert_eq!(
            gathered.iter().map(|one| (one.name.as_str(), one.values.as_slice())).collect::<Vec<_>>(),
            [("a", &[1.0, 2.0][..]), ("b", &[5.0, 6.0])]
        );
    }

    #[test]
    fn a_run_that_lacks_or_doubles_a_figure_is_refused() {
        let first = line("a", 1.0) + &line("b", 5.0);
        for second in [line("a", 2.0), line("a", 2.0) + &line("a", 2.0) + &line("b", 1.0), first.clone() + &line("c", 1.0), String::new()] {
            let mut gathered = Vec::new();
            gather(&mut gathered, 0, &first).unwrap();
            assert!(gather(&mut gathered, 1, &second).is_err(), "{second}");
        }
        for odd in ["", "no json", "{\"name\":\"a\"}", "{\"name\":\"a\",\"value\":null}", &(line("a", 1.0) + &line("a", 1.0))] {
            assert!(gather(&mut Vec::new(), 0, odd).is_err(), "{odd}");
        }
    }
}
