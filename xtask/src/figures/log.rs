//! The topic `log`: what a row costs in the share log, what a share takes on disk in each layout, how long a gigabyte of it keeps a start from listening, and what tier `disk` adds to an answer.
use super::suites::{gather, joined, lines_of};
use super::{Bench, Series};
use crate::Failure;
use crate::measure;
use serde_json::Value;

/// Connections and shares in flight per connection: what one farm looks like, and enough in flight to keep the log busy through a sync.
const SHAPES: [(u32, u32); 2] = [(64, 8), (1000, 8)];
const TIERS: [&str; 3] = ["memory", "process", "disk"];

impl Bench<'_> {
    pub(super) fn log(&self) -> Result<Vec<Value>, Failure> {
        let mut gathered = Vec::new();
        for run in 0..self.request.runs {
            let mut lines = lines_of(&self.examples.join("rates"), &[])?;
            lines.push_str(&lines_of(&self.examples.join("recovery"), &[])?);
            gather(&mut gathered, run, &lines)?;
            println!("run {run}: {} figures", gathered.len());
        }
        // The same bytes every time.
        let mut bytes = Vec::new();
        gather(&mut bytes, 0, &lines_of(&self.examples.join("bytes"), &[])?)?;
        gathered.append(&mut bytes);
        let mut figures: Vec<Value> =
            gathered.iter().map(|one| self.figure(&one.name, &one.values, &one.unit, &one.counted, &joined(&one.conditions))).collect();
        for (connections, depth) in SHAPES {
            self.tiers(connections, depth, &mut figures)?;
        }
        Ok(figures)
    }

    /// The tiers in turn under the same load.
    fn tiers(&self, connections: u32, depth: u32, figures: &mut Vec<Value>) -> Result<(), Failure> {
        let mut series = TIERS.map(|_| Series::default());
        let mut rounds_us = Vec::new();
        for run in 0..self.request.runs {
            for turn in 0..TIERS.len() {
                let index = (run + turn) % TIERS.len();
                let Some((tier, series)) = TIERS.get(index).zip(series.get_mut(index)) else { continue };
                let server = self.server_on(&format!("tier-{tier}-{connections}x{depth}-{run}"), 10_000, "auto", "auto", tier)?;
                let result = self.load(server.stratum, server.process.pid(), connections, depth, run + 1)?;
                println!("{connections} x {depth} run {run}: {tier} {result}");
                series.push(&result)?;
                if *tier == "disk" {
                    let page = measure::get(server.stats, "/metrics")?;
                    let rounds = metric(&page, "otedama_log_sync_completed_total")?;
                    rounds_us.push(metric(&page, "otedama_log_sync_spent_us_total")? / rounds.max(1.0));
                }
                server.process.stop()?;
            }
        }
        let load = |tier: &str| {
            format!(
                "tier {tier}; practice chain, {connections} connections x {depth} shares in flight, closed loop, loopback, valid proof of work; server on core {}, loadgen on core {}; {} s after 1 s of warm-up",
                super::SERVER_CORE,
                super::LOAD_CORE,
                self.request.seconds
            )
        };
        for (tier, series) in TIERS.iter().zip(&series) {
            let conditions = load(tier);
            let name = |what: &str| format!("tier_{tier}_{connections}x{depth}_{what}");
            let counted = "submit written to answer read, as loadgen sees it";
            figures.push(self.figure(&name("latency_us_p50"), &series.p50_us, "us", counted, &conditions));
            figures.push(self.figure(&name("latency_us_p99"), &series.p99_us, "us", counted, &conditions));
            figures.push(self.figure(
                &name("shares_per_s"),
                &series.per_s,
                "shares/s",
                "answered shares per second of wall time",
                &conditions,
            ));
        }
        let counted = "mean of a round of the sync thread: copy, fdatasync";
        figures.push(self.figure(&format!("tier_disk_{connections}x{depth}_sync_us"), &rounds_us, "us", counted, &load("disk")));
        Ok(())
    }
}

/// A value without labels on a Prometheus page.
fn metric(page: &str, name: &str) -> Result<f64, Failure> {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .ok_or_else(|| Failure::Environment(format!("/metrics has no {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let page = "# HELP a_b_total x\n# TYPE a_b_total counter\na_b_total_more 5\na_b_total 7\n";
        assert_eq!(metric(page, "a_b_total").unwrap(), 7.0);
        assert!(metric(page, "a_c_total").is_err());
    }
}
