//! Runs the analyst's book on generated rows: how long each recipe takes, what it answers, and the page docs/sql/README.md with its pictures.
//!
//! `cargo xtask figures sql` is this with its usual sizes. `cargo run --release -p otedama-shipper --example analyst -- --rows 10000000 --times 5 [--url URL] [--page docs/sql]`;
//! without a URL it starts Debian's server, which `cargo xtask test --lane clickhouse` installs, or with OTEDAMA_TEST_SERVER=engine libchdb. Standard output is one line of JSON per recipe.
#[path = "../../tests/analyst/mod.rs"]
mod analyst;
mod chart;
#[path = "../../tests/running/mod.rs"]
mod running;
#[path = "../../tests/server/mod.rs"]
mod server;

use analyst::{SINCE_S, UNTIL_S};
use otedama_shipper::recipes::{RECIPES, Recipe, find};
use otedama_shipper::{HttpSink, ShipperSettings, Sink, Timeouts, query};
use running::{Running, settings};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Rows of a result that the page shows.
const SHOWN: usize = 5;
/// Results with more columns are shown as a list of their first row.
const COLUMNS_MAX: usize = 12;

struct Options {
    rows: u64,
    times: usize,
    url: Option<String>,
    page: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { rows: 1_000_000, times: 3, url: None, page: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        match word.as_str() {
            "--rows" => options.rows = value.parse().map_err(|_| format!("--rows {value:?} is no number"))?,
            "--times" => {
                options.times = value.parse().ok().filter(|times| *times > 0).ok_or_else(|| format!("--times {value:?} is no count"))?
            }
            "--url" => options.url = Some(value),
            "--page" => options.page = Some(value.into()),
            other => return Err(format!("there is no option {other}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(run(&options))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(3)
        }
    }
}

/// What one recipe gave.
struct Outcome {
    recipe: &'static Recipe,
    values: Vec<(String, String)>,
    ms: Vec<f64>,
    /// Header and rows.
    table: Vec<Vec<String>>,
}

impl Outcome {
    fn median_ms(&self) -> f64 {
        let mut sorted = self.ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn column(&self, name: &str) -> Vec<String> {
        let Some(index) = self.table[0].iter().position(|column| column == name) else { return Vec::new() };
        self.table[1..].iter().map(|row| row[index].clone()).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.column(name).iter().map(|cell| cell.parse().unwrap_or(0.0)).collect()
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let debian = if options.url.is_none() { server::Server::start("analyst") } else { None };
    let url = options.url.clone().or_else(|| debian.as_ref().map(server::Server::url)).ok_or("there is no server: give --url")?;
    let text = |error: otedama_shipper::SinkError| error.to_string();
    let database = "otedama_book";
    // A query over ten million rows may take its time where the machine is busy.
    let timeouts = Timeouts { query: Duration::from_secs(300), ..Timeouts::default() };
    let of_server = |server: u8| ShipperSettings { database: database.into(), instance: 7 + server, timeouts, ..settings(url.clone()) };
    let plain = HttpSink::new(&url, "", "", of_server(0).timeouts);
    plain.query(&format!("DROP DATABASE IF EXISTS {database}")).await.map_err(text)?;
    eprintln!("generating {} rows", options.rows);
    let (logs, _) = analyst::generate(options.rows, 5, 524_288, false);
    for server in 0..2 {
        let metas = logs.store(server).segments().map_err(|error| error.to_string())?;
        let (rows, started) = (metas.iter().map(|meta| u64::from(meta.rows)).sum::<u64>(), Instant::now());
        let run = Running::start(of_server(server as u8), logs.store(server));
        run.until_shipped(metas.len() as u64).await;
        run.end().await;
        eprintln!("shipped {rows} rows in {:.1} s", started.elapsed().as_secs_f64());
    }
    let version = plain.query("SELECT version()").await.map_err(text)?.trim().to_owned();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for recipe in RECIPES {
        let mut values = Vec::new();
        for parameter in recipe.parameters() {
            let value = match parameter.name {
                "since" => "2026-11-19 23:00:00".to_owned(),
                "until" => "2026-11-21 01:00:00".to_owned(),
                "day" => "2026-11-20".to_owned(),
                "worker" => "account01.rig02".to_owned(),
                "seg" | "seq" => share(&outcomes, parameter.name)?,
                _ => continue,
            };
            values.push((parameter.name.to_owned(), value));
        }
        let sql = recipe.bind(&values, UNTIL_S * 1_000_000).map_err(|error| error.to_string())?;
        let mut ms = Vec::new();
        let mut result = String::new();
        for _ in 0..options.times {
            let started = Instant::now();
            result = query(&of_server(0), &format!("{sql} FORMAT TabSeparatedWithNames"))
                .await
                .map_err(|error| format!("{}: {error}", recipe.name))?;
            ms.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        let table: Vec<Vec<String>> = result.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
        let outcome = Outcome { recipe, values, ms, table };
        println!(
            "{}",
            serde_json::json!({ "recipe": recipe.name, "ms": outcome.median_ms(), "runs": outcome.ms, "answers": outcome.table.len().saturating_sub(1), "rows": options.rows, "server": version })
        );
        eprintln!("{}: {:.0} ms", recipe.name, outcome.median_ms());
        outcomes.push(outcome);
    }
    if let Some(folder) = &options.page {
        write_page(folder, &outcomes, options, &version, &of_server(0)).await?;
    }
    plain.query(&format!("DROP DATABASE {database}")).await.map_err(text)?;
    Ok(())
}

/// A share to explain: the best one.
fn share(outcomes: &[Outcome], name: &str) -> Result<String, String> {
    let best = outcomes.iter().find(|outcome| outcome.recipe.name == "best_shares").ok_or("best_shares comes first")?;
    best.column(name).first().cloned().ok_or_else(|| "there is no share".to_owned())
}

async fn write_page(
    folder: &Path,
    outcomes: &[Outcome],
    options: &Options,
    version: &str,
    settings: &ShipperSettings,
) -> Result<(), String> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    let of = |name: &str| outcomes.iter().find(|outcome| outcome.recipe.name == name).ok_or_else(|| format!("there is no {name}"));
    let mut page = format!(
        "# The analyst's book\n\n\
         Questions that people ask of a pool, each answered by one SELECT in a file of its own. `otedama sql` lists them; `otedama sql NAME [name=value]...` runs one on the configured\n\
         ClickHouse or, without one, on the log itself. Every recipe runs on 18.16 as well as on servers of today, and CI holds each against answers worked out row by row from a\n\
         million generated shares (`cargo test -p otedama-shipper --test book`).\n\n\
         Parameters stand in the files as `{{since:DateTime}}`, so a modern client runs them too: `clickhouse-client -d otedama --param_since '2026-11-20 00:00:00' ... < luck.sql`.\n\
         Times are UTC everywhere. `work` is in expected hashes and exact; type `sum(work)` bare on any roll-up and on `shares_named`, and on servers from 24.8 on `shares` too.\n\
         What a column means stands beside it: `SELECT name, comment FROM system.columns WHERE database = 'otedama' AND table = 'shares'`. [Ten questions](questions.md) that no recipe answers were\n\
         answered from these comments alone.\n\
         Count shares with `sum(share_count)`: `count()` is the same but where the log is of `[log] row = \"rollup\"`, whose sums are rows that stand for many shares, without a session and\n\
         a job; recipes by session, job or nonce leave them out, and those on header fields leave out rows of layout `lean`.\n\n\
         `cargo run --release -p otedama-shipper --example analyst -- --rows {0} --times {1} --page docs/sql` wrote this page, pictures and all: {0} generated shares of 48 workers over 26\n\
         hours, some of which are up to something, on ClickHouse {version}.\n\
         Milliseconds are the median of {1} runs from request to answer over all of the rows; [figures](../figures.md#sql) has those over ten million, of a modern server too.\n\n\
         | Recipe | What it shows | ms |\n|---|---|---:|\n",
        options.rows, options.times
    );
    // Infallible, here and below: writing to a String.
    for outcome in outcomes {
        let _ = writeln!(page, "| [{0}](#{0}) | {1} | {2:.0} |", outcome.recipe.name, outcome.recipe.title(), outcome.median_ms());
    }
    let pictures = pictures(of("refusals_over_time")?, of("stale_after_block")?, settings).await?;
    for (name, _, svg) in &pictures {
        write(&format!("{name}.svg"), svg)?;
    }
    for outcome in outcomes {
        let recipe = outcome.recipe;
        let _ = write!(page, "\n## {0}\n\n**{1}** [{0}.sql]({0}.sql)\n\n", recipe.name, recipe.question());
        for parameter in recipe.parameters() {
            let default = parameter.default.map_or("must be given".to_owned(), |default| format!("default `{default}`"));
            let _ = writeln!(page, "- `{}` ({}, {default}): {}", parameter.name, parameter.kind.label(), parameter.meaning);
        }
        let values: String = outcome.values.iter().map(|(name, value)| format!(" {name}='{value}'")).collect();
        let _ = write!(page, "\n{}\n\n`otedama sql {}{values}`\n\n{}", recipe.answer(), recipe.name, shown(&outcome.table));
        for (name, caption, _) in pictures.iter().filter(|(name, ..)| *name == recipe.name) {
            let _ = writeln!(page, "\n![{caption}]({name}.svg)");
        }
    }
    write("README.md", &page)
}

/// The start of a result as Markdown.
fn shown(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    let Some((header, rows)) = table.split_first() else { return text };
    let cell = |cell: &String| cell.replace('|', "\\|");
    if header.len() > COLUMNS_MAX {
        text.push_str("| column | value |\n|---|---|\n");
        for (name, value) in header.iter().zip(rows.first().into_iter().flatten()) {
            let _ = writeln!(text, "| {name} | {} |", cell(value));
        }
        return text;
    }
    let _ = writeln!(text, "| {} |\n|{}", header.join(" | "), "---|".repeat(header.len()));
    for row in rows.iter().take(SHOWN) {
        let short: Vec<String> =
            row.iter().map(|value| if value.len() > 70 { format!("{}...", &value[..64]) } else { cell(value) }).collect();
        let _ = writeln!(text, "| {} |", short.join(" | "));
    }
    if rows.len() > SHOWN {
        let _ = writeln!(text, "\n{} rows in all.", rows.len());
    }
    text
}

/// The cells of a recipe with these values and this list of columns.
async fn cells(settings: &ShipperSettings, name: &str, values: &[(&str, &str)], columns: &str) -> Result<Vec<Vec<String>>, String> {
    let recipe = find(name).ok_or_else(|| format!("there is no {name}"))?;
    let values: Vec<_> = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let sql = recipe.bind(&values, 0).map_err(|error| error.to_string())?;
    let result = query(settings, &format!("SELECT {columns} FROM ({sql}) FORMAT TabSeparated")).await.map_err(|error| error.to_string())?;
    Ok(result.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

/// A cell as a number.
fn cell(row: &[String], index: usize) -> f64 {
    row.get(index).and_then(|cell| cell.parse().ok()).unwrap_or(0.0)
}

type Picture = (&'static str, &'static str, String);

async fn pictures(refusals: &Outcome, stale: &Outcome, settings: &ShipperSettings) -> Result<Vec<Picture>, String> {
    let whole = [("since", "2026-11-19 23:00:00"), ("until", "2026-11-21 01:00:00"), ("step_s", "600")];
    let steps = cells(settings, "hashrate_of_pool", &whole, "toUInt32(step), th_per_s").await?;
    let pool = steps.iter().map(|row| ((cell(row, 0) - SINCE_S as f64) / 3600.0, cell(row, 1))).collect();
    let quarter = [("since", "2026-11-20 12:00:00"), ("until", "2026-11-20 12:15:00")];
    let workers = cells(settings, "hashrate_by_worker", &quarter, "worker_name, th_per_s_low, th_per_s, th_per_s_high").await?;
    // The largest is a tenth of the pool and would press the others flat.
    let workers: Vec<_> = workers.into_iter().skip(1).take(24).collect();
    let names: Vec<String> = workers.iter().map(|row| row[0].clone()).collect();
    let intervals: Vec<_> = workers.iter().map(|row| (cell(row, 1), cell(row, 2), cell(row, 3))).collect();
    let by_hour =
        |reason: &str| refusals.numbers(reason).into_iter().enumerate().map(|(hour, count)| (hour as f64, count)).collect::<Vec<_>>();
    let reasons = ["stale", "low_difficulty", "duplicate", "bad_time"];
    let by_server = |instance: &str| {
        let of = stale.column("instance");
        let points = stale.numbers("first_share_ms").into_iter().zip(stale.numbers("stale_shares"));
        of.iter().zip(points).filter(|(number, _)| *number == instance).map(|(_, point)| point).collect::<Vec<_>>()
    };
    Ok(vec![
        (
            "hashrate_of_pool",
            "Hashrate of the pool in steps of ten minutes",
            chart::lines("Hashrate of the pool", "hours", "TH/s", &[("pool".to_owned(), pool)]),
        ),
        (
            "hashrate_by_worker",
            "Workers in a quarter of an hour with their 95 % intervals",
            chart::intervals("Hashrate in a quarter of an hour, with 95 % intervals", "TH/s", &names, &intervals),
        ),
        (
            "refusals_over_time",
            "Refused shares by reason and hour",
            chart::lines("Refused shares by hour", "hours", "shares", &reasons.map(|reason| (reason.to_owned(), by_hour(reason)))),
        ),
        (
            "stale_after_block",
            "Stale shares of each new block against the time until its first accepted share",
            chart::points(
                "Stale shares of a new block against its latency",
                "ms to the first accepted share",
                "stale shares",
                &["7", "8"].map(|instance| (format!("server {instance}"), by_server(instance))),
            ),
        ),
    ])
}
