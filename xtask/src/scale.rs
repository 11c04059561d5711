//! What rates of shares take, and what gives way first: measured figures, sizes of machines that stand on the page, and a simulation of outages. `figures table` writes it into
//! docs/scale.md; a figure that nobody has measured yet leaves its cells saying so.
mod simulation;

use simulation::{Outcome, Plant};
use std::fmt::Write as _;

/// Shares a second that the page is about, and the shape of farm whose figures it takes: ten million are a million of ten times the workers.
const RATES: [(f64, &str); 3] =
    [(100e3, "100000_per_s_10000_workers"), (1e6, "1000000_per_s_10000_workers"), (10e6, "1000000_per_s_10000_workers")];
const LAYOUTS: [&str; 4] = ["lean", "replayable", "full", "rollup"];
const DAY_S: f64 = 86_400.0;
const SEED: u64 = 5;

// Machines as they are rented: what a plan begins with and no figure gives.
/// Cores of a pool server for net, validate and log. One more is the control core.
const SHARE_CORES: f64 = 15.0;
/// Cores of a node of ClickHouse.
const NODE_CORES: f64 = 16.0;
/// Disk of a node of ClickHouse, bytes.
const NODE_DISK: f64 = 30e12;
/// What a disk writes steadily, bytes a second.
const DISK_BYTES_PER_S: f64 = 1e9;
/// What a network card carries, bytes a second.
const CARD_BYTES_PER_S: f64 = 1.25e9;
const REPLICAS: f64 = 2.0;
/// A resource of a pool server is planned to be used so far.
const USED: f64 = 0.7;
/// Cores of ClickHouse are planned for so many times the arrivals: what an outage held up has to go in as well.
const CATCH_UP: f64 = 3.0;

// Of the product: its defaults and bounds.
const KEEP_DAYS: f64 = 90.0;
const SEGMENT_ROWS_MAX: f64 = 524_288.0;
const INSERTS_PER_S: f64 = 10.0;
const IN_FLIGHT_MAX: f64 = 8.0;
const LOG_MAX_BYTES: f64 = 64.0 * 1024.0 * 1024.0 * 1024.0;

/// Looks a figure up by its name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<f64>;

/// A number, or the name of the first figure that it lacks.
type Known = Result<f64, String>;

fn figure(lookup: Lookup, name: &str) -> Known {
    lookup(name).filter(|value| *value > 0.0).ok_or_else(|| name.to_owned())
}

/// What a share and a row of one layout cost at one rate.
#[derive(Clone, Copy)]
struct Costs {
    rows_per_share: f64,
    segment_bytes_per_share: f64,
    table_row_bytes: f64,
    seal_ns: f64,
    ship_ns: f64,
    insert_ns: f64,
    merge_ns: f64,
}

/// Names of the figures that `costs` takes, and what each stands for.
fn inputs() -> Vec<(String, &'static str)> {
    let mut names = vec![
        (PATHS[0].0.to_owned(), "a share of aggregated traffic through the whole share path"),
        (PATHS[1].0.to_owned(), "the same with eight in flight for each connection"),
        (PATHS[2].0.to_owned(), "a share that comes alone in its packet"),
        (PATHS[3].0.to_owned(), "frames in memory to rows: the share path without sockets"),
        (SEAL.to_owned(), "sealing a share, whatever the layout"),
        (SHIP.to_owned(), "a row from its segment to the socket"),
    ];
    for layout in LAYOUTS {
        for (index, (_, shape)) in RATES.iter().enumerate().take(2) {
            let farm = if index == 0 { "at 100 k shares/s" } else { "at 1 M shares/s" };
            names.push((segment_bytes(layout, shape), farm));
            if layout == "rollup" {
                names.push((segment_rows(layout, shape), farm));
            }
        }
        names.push((table(layout, "insert_ns"), "inserting a row, three roll-ups included"));
        names.push((table(layout, "merge_ns"), "merging it once"));
        names.push((table(layout, "bytes_per_row"), "a row of shares on the server's disk, merged"));
    }
    names
}

/// Shares for each second of a core, by how they come.
const PATHS: [(&str, &str); 4] = [
    ("pool_64x64_shares_per_cpu_s", "64 in flight a connection"),
    ("pool_64x8_shares_per_cpu_s", "8 in flight"),
    ("pool_1000x1_shares_per_cpu_s", "one share a packet"),
    ("frames_to_row_shares_per_s", "without sockets"),
];
const SEAL: &str = "seal_ns_batch_512";
const SHIP: &str = "ship_ns";

fn segment_bytes(layout: &str, shape: &str) -> String {
    format!("segment_bytes_per_share_{layout}_{shape}")
}

fn segment_rows(layout: &str, shape: &str) -> String {
    format!("segment_rows_per_share_{layout}_{shape}")
}

/// Of the modern engine: what the page plans with.
fn table(layout: &str, what: &str) -> String {
    format!("engine_table_{layout}_{what}")
}

fn costs(lookup: Lookup, layout: &str, shape: &str) -> Result<Costs, String> {
    let get = |name: String| figure(lookup, &name);
    Ok(Costs {
        segment_bytes_per_share: get(segment_bytes(layout, shape))?,
        rows_per_share: if layout == "rollup" { get(segment_rows(layout, shape))? } else { 1.0 },
        seal_ns: get(SEAL.to_owned())?,
        ship_ns: get(SHIP.to_owned())?,
        insert_ns: get(table(layout, "insert_ns"))?,
        merge_ns: get(table(layout, "merge_ns"))?,
        table_row_bytes: get(table(layout, "bytes_per_row"))?,
    })
}

impl Costs {
    fn rows_per_s(&self, rate: f64) -> f64 {
        rate * self.rows_per_share
    }

    /// How often a row is merged on its way from a segment to a day's largest part: ten of a size become one.
    fn merges(&self, rows_per_s: f64) -> f64 {
        // A segment is a second of rows, or as many as one may hold.
        (rows_per_s * DAY_S / rows_per_s.min(SEGMENT_ROWS_MAX)).log10().ceil().max(1.0)
    }

    /// Cores of ClickHouse for so many rows a second into one partition: inserts and merges.
    fn insert_cores(&self, rows_per_s: f64) -> f64 {
        rows_per_s * self.insert_ns / 1e9
    }

    fn merge_cores(&self, rows_per_s: f64) -> f64 {
        rows_per_s * self.merges(rows_per_s) * self.merge_ns / 1e9
    }

    fn control_cores(&self, rate: f64) -> f64 {
        (rate * self.seal_ns + self.rows_per_s(rate) * self.ship_ns) / 1e9
    }

    fn segment_bytes_per_s(&self, rate: f64) -> f64 {
        rate * self.segment_bytes_per_share
    }

    fn table_bytes_a_day(&self, rate: f64) -> f64 {
        self.rows_per_s(rate) * DAY_S * self.table_row_bytes
    }
}

/// What one pool server with one node of ClickHouse uses of everything at this rate, 1 being all of it.
fn used(costs: &Costs, path_per_core: f64, rate: f64) -> [(&'static str, f64); 8] {
    let rows_per_s = costs.rows_per_s(rate);
    let wire = costs.segment_bytes_per_s(rate);
    [
        ("share cores", rate / path_per_core / SHARE_CORES),
        ("control core", costs.control_cores(rate)),
        // A row is written to the journal, in cells of 64 bytes, and to its segment.
        ("disk of the log", (rate * JOURNAL_BYTES + wire) / DISK_BYTES_PER_S),
        ("network card", wire / CARD_BYTES_PER_S),
        ("inserts a second", rows_per_s / SEGMENT_ROWS_MAX / INSERTS_PER_S),
        ("cores of inserts", costs.insert_cores(rows_per_s) / NODE_CORES),
        ("cores of inserts and merges", (costs.insert_cores(rows_per_s) + costs.merge_cores(rows_per_s)) / NODE_CORES),
        ("disk of the tables", costs.table_bytes_a_day(rate) * KEEP_DAYS / NODE_DISK),
    ]
}

/// Bytes of a row in the journal.
const JOURNAL_BYTES: f64 = 64.0;

/// How many machines a rate takes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    servers: f64,
    shards: f64,
    in_flight: f64,
    /// Of each server: room for six hours without ClickHouse, and a fifth more.
    log_max_bytes: f64,
}

fn plan(costs: &Costs, path_per_core: f64, rate: f64) -> Plan {
    let fits = |shards: f64| {
        let [.., (_, cores), (_, disk)] = used(costs, path_per_core, rate / shards);
        cores * CATCH_UP <= 1.0 && disk <= USED
    };
    let mut shards = 1.0;
    while !fits(shards) {
        shards += 1.0;
    }
    let [share_cores, control, disk, card, inserts, ..] = used(costs, path_per_core, rate).map(|(_, part)| part);
    let most = [share_cores, control, disk, card, inserts].into_iter().fold(0.0, f64::max);
    // A server ships into one shard: there are no fewer servers than shards, and as many into each.
    let servers = ((most / USED).ceil().max(shards) / shards).ceil() * shards;
    let rows_per_s = costs.rows_per_s(rate) / servers;
    let in_flight = (rows_per_s * CATCH_UP * costs.insert_ns / 1e9).ceil().clamp(1.0, IN_FLIGHT_MAX);
    let log_max_bytes = costs.segment_bytes_per_s(rate) / servers * 6.0 * 3600.0 * 1.2;
    Plan { servers, shards, in_flight, log_max_bytes }
}

fn plant(costs: &Costs, plan: &Plan, rate: f64) -> Plant {
    let servers_per_shard = plan.servers / plan.shards;
    Plant {
        shares_per_s: rate / plan.servers,
        rows_per_share: costs.rows_per_share,
        segment_row_bytes: costs.segment_bytes_per_share / costs.rows_per_share,
        seal_ns: costs.seal_ns,
        ship_ns: costs.ship_ns,
        insert_ns: costs.insert_ns,
        merge_ns: costs.merge_ns,
        shard_cores: NODE_CORES / servers_per_shard,
        servers_per_shard,
        in_flight: plan.in_flight,
        log_max_bytes: plan.log_max_bytes,
    }
}

/// Everything between the marks of docs/scale.md.
pub fn page(lookup: Lookup) -> String {
    let mut out = String::new();
    share_path(&mut out, lookup);
    days(&mut out, lookup);
    first_to_give_way(&mut out, lookup);
    plans(&mut out, lookup);
    outages(&mut out, lookup);
    figures_used(&mut out, lookup);
    out
}

// Writing to a String cannot fail, here and below.

fn share_path(out: &mut String, lookup: Lookup) {
    out.push_str("\n## Cores of the share path\n\nNet, validate and log of one server or of several, by how shares come. Rows and layouts make no difference here.\n\n| Shares/s |");
    for (_, how) in PATHS {
        let _ = write!(out, " {how} |");
    }
    out.push_str("\n|---:|---:|---:|---:|---:|\n");
    for (rate, _) in RATES {
        let _ = write!(out, "| {} |", si(rate, ""));
        for (name, _) in PATHS {
            let _ = write!(out, " {} |", cell(figure(lookup, name).map(|per_core| rounded(rate / per_core))));
        }
        out.push('\n');
    }
}

fn days(out: &mut String, lookup: Lookup) {
    out.push_str(
        "\n## A day\n\nAll servers together. Control cores seal and ship; ClickHouse's are those of one replica, inserts with their roll-ups and merges apart.\n\n\
         | Shares/s | Layout | Rows | Segments | Rows in ClickHouse | To ClickHouse | Control cores | Insert cores | Merge cores |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (rate, shape) in RATES {
        for layout in LAYOUTS {
            // Cell by cell: what is known of a row stands there while the rest waits for its figure.
            let bytes = figure(lookup, &segment_bytes(layout, shape));
            let rows_per_share = if layout == "rollup" { figure(lookup, &segment_rows(layout, shape)) } else { Ok(1.0) };
            let (rows, all) = (rows_per_share.map(|rows| rows * rate), costs(lookup, layout, shape));
            let with = |text: &dyn Fn(&Costs) -> String| cell(all.clone().map(|costs| text(&costs)));
            let table = figure(lookup, &table(layout, "bytes_per_row"));
            let inserts = figure(lookup, &self::table(layout, "insert_ns"));
            let (seal_ns, ship_ns) = (figure(lookup, SEAL), figure(lookup, SHIP));
            let times = |one: &Known, other: &Known| -> Known { Ok(one.clone()? * other.clone()?) };
            let control = || -> Known { Ok((rate * seal_ns.clone()? + rows.clone()? * ship_ns.clone()?) / 1e9) };
            let _ = writeln!(
                out,
                "| {} | {layout} | {} | {} | {} | {} | {} | {} | {} |",
                si(rate, ""),
                cell(rows.clone().map(|rows| si(rows * DAY_S, ""))),
                cell(bytes.clone().map(|bytes| si(bytes * rate * DAY_S, "B"))),
                cell(times(&table, &rows).map(|bytes| si(bytes * DAY_S, "B"))),
                cell(bytes.map(|bytes| si(bytes * rate, "B/s"))),
                cell(control().map(rounded)),
                cell(times(&inserts, &rows).map(|ns| rounded(ns / 1e9))),
                with(&|costs| rounded(costs.merge_cores(costs.rows_per_s(rate)))),
            );
        }
    }
}

fn first_to_give_way(out: &mut String, lookup: Lookup) {
    let _ = write!(
        out,
        "\n## What gives way first\n\nOne pool server of {} share cores and a control core, and one node of ClickHouse of {} cores and {}, disks of {} and cards of {}; shares come 8 in \
         flight for each connection. How much of each is used, 1 being all of it: what is above 1 has given way.\n\n| Shares/s | Layout | First | Then | Used of all, in this order |\n|---:|---|---|---|---|\n",
        SHARE_CORES,
        NODE_CORES,
        si(NODE_DISK, "B"),
        si(DISK_BYTES_PER_S, "B/s"),
        si(CARD_BYTES_PER_S, "B/s"),
    );
    for (rate, shape) in RATES {
        for layout in LAYOUTS {
            let all = || -> Result<String, String> {
                let mut used = used(&costs(lookup, layout, shape)?, figure(lookup, PATHS[1].0)?, rate);
                let in_order: Vec<String> = used.iter().map(|(_, part)| rounded(*part)).collect();
                used.sort_by(|one, other| other.1.total_cmp(&one.1));
                let shown = |(name, part): &(&str, f64)| format!("{name} ({})", rounded(*part));
                let [first, second, ..] = &used;
                Ok(format!("{} | {} | {}", shown(first), shown(second), in_order.join(", ")))
            };
            let _ =
                writeln!(out, "| {} | {layout} | {} |", si(rate, ""), all().unwrap_or_else(|name| format!("{} | |", not_measured(&name))));
        }
    }
    let names: Vec<&str> = used(&Costs::ONES, 1.0, 1.0).iter().map(|(name, _)| *name).collect();
    let _ = writeln!(out, "\nThe order: {}. The disk of the tables is that of {KEEP_DAYS} days.", names.join(", "));
}

impl Costs {
    const ONES: Self = Self {
        rows_per_share: 1.0,
        segment_bytes_per_share: 1.0,
        table_row_bytes: 1.0,
        seal_ns: 1.0,
        ship_ns: 1.0,
        insert_ns: 1.0,
        merge_ns: 1.0,
    };
}

fn plans(out: &mut String, lookup: Lookup) {
    let _ = write!(
        out,
        "\n## The plan\n\nServers so that none of their parts is used beyond {USED}; shards so that cores take {CATCH_UP} times the arrivals, and {KEEP_DAYS} days of rows fill {USED} of \
         the disks; {REPLICAS} replicas of each shard. Every server ships into one shard, so that there are no fewer servers than shards. `max_bytes` is for 6 hours without \
         ClickHouse and a fifth more.\n\n| Shares/s | Layout | Pool servers | Shards | Nodes of ClickHouse | `inserts_in_flight` | `max_bytes` of each server | 64 GiB last |\n|---:|---|---:|---:|---:|---:|---:|---:|\n"
    );
    for (rate, shape) in RATES {
        for layout in LAYOUTS {
            let all = || -> Result<String, String> {
                let costs = costs(lookup, layout, shape)?;
                let plan = plan(&costs, figure(lookup, PATHS[1].0)?, rate);
                let hours = LOG_MAX_BYTES / (costs.segment_bytes_per_s(rate) / plan.servers) / 3600.0;
                Ok(format!(
                    "{} | {} | {} | {} | {} | {} h",
                    plan.servers,
                    plan.shards,
                    plan.shards * REPLICAS,
                    plan.in_flight,
                    si(plan.log_max_bytes, "B"),
                    rounded(hours)
                ))
            };
            let _ = writeln!(
                out,
                "| {} | {layout} | {} |",
                si(rate, ""),
                all().unwrap_or_else(|name| format!("{} | | | | |", not_measured(&name)))
            );
        }
    }
}

fn outages(out: &mut String, lookup: Lookup) {
    let _ = write!(
        out,
        "\n## Outages, simulated\n\nA server of the plan and its part of a shard, second by second (`xtask/src/scale/simulation.rs`, seed {SEED}): ClickHouse is away, comes back, and what waited is shipped. \
         The third line of each is the plan with the `max_bytes` that is the default, which says when its log is full.\n\n\
         | Shares/s | Layout | Away | Log at its most | Log full after | Drained after | Times the arrivals | Parts at most | First to give way |\n|---:|---|---|---:|---:|---:|---:|---:|---|\n"
    );
    for (rate, shape) in RATES {
        for layout in LAYOUTS {
            let planned = || -> Result<(Costs, Plan), String> {
                let costs = costs(lookup, layout, shape)?;
                Ok((costs, plan(&costs, figure(lookup, PATHS[1].0)?, rate)))
            };
            match planned() {
                Err(name) => {
                    let _ = writeln!(out, "| {} | {layout} | {} | | | | | | |", si(rate, ""), not_measured(&name));
                }
                Ok((costs, plan)) => {
                    for (away, outage_s, max_bytes) in
                        [("30 min", 1800, plan.log_max_bytes), ("6 h", 21_600, plan.log_max_bytes), ("6 h, 64 GiB", 21_600, LOG_MAX_BYTES)]
                    {
                        let plant = plant(&costs, &Plan { log_max_bytes: max_bytes, ..plan }, rate);
                        let outcome = simulation::run(&plant, outage_s, SEED);
                        let _ = writeln!(out, "| {} | {layout} | {away} | {} |", si(rate, ""), told(&outcome, outage_s));
                    }
                }
            }
        }
    }
}

/// The cells of an outcome.
fn told(outcome: &Outcome, outage_s: u64) -> String {
    let seconds = |seconds: Option<u64>| seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s"));
    let times = outcome.drained_after_s.map_or_else(|| "-".to_owned(), |drained_s| rounded(outage_s as f64 / drained_s.max(1) as f64));
    let mut troubles = vec![
        (outcome.full_after_s.is_some(), "the log: shares are refused"),
        (outcome.refused_inserts_s > 0, "merges: inserts are refused"),
        (outcome.delayed_s > 0, "merges: inserts are slowed down"),
        (outcome.drained_after_s.is_none(), "inserts: the backlog stays"),
    ];
    troubles.retain(|(has, _)| *has);
    format!(
        "{} | {} | {} | {times} | {} | {}",
        si(outcome.log_peak_bytes, "B"),
        seconds(outcome.full_after_s),
        seconds(outcome.drained_after_s),
        outcome.parts_max,
        troubles.first().map_or("nothing", |(_, what)| what)
    )
}

fn figures_used(out: &mut String, lookup: Lookup) {
    out.push_str("\n## Figures that all of it comes from\n\n| Figure | What it is here | Value |\n|---|---|---:|\n");
    for (name, what) in inputs() {
        let _ = writeln!(out, "| `{name}` | {what} | {} |", lookup(&name).map_or_else(|| "not measured".to_owned(), rounded));
    }
}

fn not_measured(name: &str) -> String {
    format!("not measured: `{name}`")
}

fn cell(text: Result<String, String>) -> String {
    text.unwrap_or_else(|_| "not measured".to_owned())
}

/// Three digits that count.
fn rounded(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// With a prefix for thousands.
fn si(value: f64, unit: &str) -> String {
    let (mut scaled, mut prefix) = (value, "");
    for next in ["k", "M", "G", "T", "P"] {
        // What would be rounded up to a thousand is one of the next.
        if scaled.abs() < 999.5 {
            break;
        }
        (scaled, prefix) = (scaled / 1000.0, next);
    }
    let space = if prefix.is_empty() && unit.is_empty() { "" } else { " " };
    format!("{}{space}{prefix}{unit}", rounded(scaled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Figures of about the size that they have.
    fn figures() -> BTreeMap<String, f64> {
        inputs()
            .into_iter()
            .map(|(name, _)| {
                let value = match name.as_str() {
                    name if name.ends_with("_per_cpu_s") => 500_000.0,
                    "frames_to_row_shares_per_s" => 2e6,
                    SEAL => 40.0,
                    SHIP => 40.0,
                    name if name.starts_with("segment_bytes") => 85.0,
                    name if name.starts_with("segment_rows") => 0.1,
                    name if name.ends_with("insert_ns") => 600.0,
                    name if name.ends_with("merge_ns") => 200.0,
                    _ => 45.0,
                };
                (name, value)
            })
            .collect()
    }

    #[test]
    fn without_a_figure_the_page_says_so_and_with_all_of_them_it_does_not() {
        let empty = page(&|_| None);
        assert!(empty.contains("not measured: `segment_bytes_per_share_lean_100000_per_s_10000_workers`"), "{empty}");
        let figures = figures();
        let full = page(&|name| figures.get(name).copied());
        assert!(!full.contains("not measured"), "{full}");
        for (without, _) in inputs() {
            let most = page(&|name| figures.get(name).copied().filter(|_| name != without));
            assert!(most.contains("not measured"), "{without} is not used");
        }
        for page in [empty, full] {
            let mut columns = 0;
            for line in page.lines() {
                let cells = line.matches('|').count();
                if line.starts_with("|---") || (columns > 0 && line.starts_with('|')) {
                    columns = if line.starts_with("|---") { cells } else { columns };
                    assert_eq!(cells, columns, "{line}");
                } else {
                    columns = 0;
                }
            }
        }
    }

    #[test]
    fn a_day_of_a_million_a_second_is_what_its_figures_multiply_to() {
        let figures = figures();
        let full = page(&|name| figures.get(name).copied());
        // 86.4 G rows of 85 bytes; 45 on the server; 40 ns + 40 ns of control core, 600 ns of inserts; five merges of 200 ns.
        assert!(full.contains("| 1 M | replayable | 86.4 G | 7.34 TB | 3.89 TB | 85 MB/s | 0.08 | 0.6 | 1.2 |"), "{full}");
        // Of 0.1 rows a share: a tenth of it, but for sealing.
        assert!(full.contains("| 1 M | rollup | 8.64 G | 7.34 TB | 389 GB | 85 MB/s | 0.044 | 0.06 | 0.1 |"), "{full}");
        assert!(full.contains("| 10 M | 20 | 20 | 20 | 5 |"), "{full}");
    }

    #[test]
    fn a_plan_uses_nothing_beyond_its_bound_and_one_machine_less_would() {
        let figures = figures();
        let lookup = |name: &str| figures.get(name).copied();
        for (rate, shape) in RATES {
            for layout in LAYOUTS {
                let costs = costs(&lookup, layout, shape).expect("all figures");
                let plan = plan(&costs, 500_000.0, rate);
                assert!(plan.servers >= plan.shards && plan.servers % plan.shards == 0.0, "{plan:?}");
                let each = used(&costs, 500_000.0, rate / plan.servers);
                assert!(each[..5].iter().all(|(_, part)| *part <= USED), "{each:?}");
                let shard = used(&costs, 500_000.0, rate / plan.shards);
                assert!(shard[6].1 * CATCH_UP <= 1.0 && shard[7].1 <= USED, "{plan:?} {shard:?}");
                if plan.shards > 1.0 {
                    let fewer = used(&costs, 500_000.0, rate / (plan.shards - 1.0));
                    assert!(fewer[6].1 * CATCH_UP > 1.0 || fewer[7].1 > USED, "{plan:?} {fewer:?}");
                }
            }
        }
    }

    #[test]
    fn an_outage_of_the_plan_loses_nothing_and_drains_three_times_as_fast_as_shares_come() {
        let figures = figures();
        let lookup = |name: &str| figures.get(name).copied();
        for (rate, shape) in RATES {
            for layout in LAYOUTS {
                let costs = costs(&lookup, layout, shape).expect("all figures");
                let plan = plan(&costs, 500_000.0, rate);
                let outcome = simulation::run(&plant(&costs, &plan, rate), 21_600, SEED);
                assert_eq!((outcome.refused, outcome.refused_inserts_s), (0.0, 0), "{rate} {layout} {plan:?} {outcome:?}");
                let drained_s = outcome.drained_after_s.expect("drained");
                assert!(drained_s as f64 <= 21_600.0 / 2.5, "{rate} {layout} {plan:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn numbers_have_three_digits_and_their_prefix() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (999.4, "999"),
            (999.9, "1 k"),
            (100_000.0, "100 k"),
            (8.64e9, "8.64 G"),
            (1.234e13, "12.3 T"),
            (0.0123, "0.0123"),
        ] {
            assert_eq!(si(value, ""), text);
        }
        assert_eq!((si(85e6, "B/s"), si(85.0, "B")), ("85 MB/s".to_owned(), "85 B".to_owned()));
    }
}
