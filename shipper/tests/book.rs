//! Every recipe of docs/sql, and every statement of docs/sql/questions.md under the reader's login, run on a million generated rows and held against answers worked out here, row
//! by row and without SQL.
//!
//! `OTEDAMA_MODERN_CLICKHOUSE_URL` names a modern server for the second of the two tests, as in `modern.rs`.
mod analyst;
mod running;
mod server;

use analyst::{DAY_S, Fact, Facts, Logs, SINCE_S, UNTIL_S, WORKERS};
use otedama_primitives::{ShareStatus, flags};
use otedama_sharelog::BlockStatus;
use otedama_shipper::recipes::{RECIPES, Recipe};
use otedama_shipper::schema::{self, Flavour};
use otedama_shipper::{ShipperSettings, query, reconcile};
use running::{Running, settings};
use std::collections::{BTreeMap, BTreeSet};

const ROWS: u64 = 1_000_000;
const SEED: u64 = 5;
const SINCE: &str = "2026-11-20 03:00:00";
const UNTIL: &str = "2026-11-20 21:00:00";
const SINCE_T: u64 = DAY_S + 3 * 3600;
const UNTIL_T: u64 = DAY_S + 21 * 3600;
const SECONDS: f64 = (UNTIL_T - SINCE_T) as f64;

/// A cell of an expected result.
enum Cell {
    Text(String),
    /// A number that the recipe rounds to this many decimals.
    Near(f64, i32),
}

use Cell::{Near, Text};

fn text(value: impl std::fmt::Display) -> Cell {
    Text(value.to_string())
}

fn flag(value: bool) -> Cell {
    Text(u8::from(value).to_string())
}

struct Expected {
    values: Vec<(&'static str, String)>,
    rows: Vec<Vec<Cell>>,
}

/// Dates as the server prints them; the calendar is that of the log's own `--by` columns, not the shipper's.
fn when(seconds: u64) -> Cell {
    assert!((SINCE_S - 10..UNTIL_S).contains(&seconds));
    let days = [(DAY_S - 86_400, "2026-11-19"), (DAY_S, "2026-11-20"), (DAY_S + 86_400, "2026-11-21")];
    let (start, day) = days.into_iter().rfind(|(start, _)| *start <= seconds).expect("within the span");
    let second = seconds - start;
    Text(format!("{day} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60))
}

fn second(fact: &Fact) -> u64 {
    fact.row.arrival_us / 1_000_000
}

fn is(fact: &Fact, status: ShareStatus) -> bool {
    fact.row.status == status as u8
}

fn in_span(seconds: u64) -> bool {
    (SINCE_T..UNTIL_T).contains(&seconds)
}

/// What `quantileExact` takes: the element at this part of the sorted values.
fn quantile<T: PartialOrd + Copy>(values: &mut [T], level: f64) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("comparable"));
    values[(level * values.len() as f64) as usize]
}

fn difficulty(work: u64) -> f64 {
    work as f64 * 65535.0 / 2f64.powi(48)
}

/// Chance of at most `count` events where `expected` are expected, by summing the terms upwards.
fn poisson_at_most(count: i64, expected: f64) -> f64 {
    let mut term = (-expected).exp();
    let mut sum = 0.0;
    for k in 0..=count {
        sum += term;
        term *= expected / (k + 1) as f64;
    }
    sum
}

/// Complementary error function: Taylor's series near 0, the continued fraction beyond.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut tail = x;
    for n in (1..200).rev() {
        tail = x + n as f64 / 2.0 / tail;
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / tail
}

struct Book<'a> {
    facts: &'a Facts,
    /// Number of each row's segment, and its place there.
    places: [Vec<(u64, u32)>; 2],
    metas: [Vec<otedama_sharelog::SegmentMeta>; 2],
}

impl<'a> Book<'a> {
    fn new(facts: &'a Facts, logs: &Logs) -> Self {
        let metas = [0, 1].map(|server| logs.store(server).segments().expect("segments"));
        let places =
            [0, 1].map(|server| metas[server].iter().flat_map(|meta| (0..meta.rows).map(move |seq| (meta.seg, seq))).collect::<Vec<_>>());
        for (rows, places) in facts.rows.iter().zip(&places) {
            assert_eq!(rows.len(), places.len(), "every row is sealed");
        }
        Self { facts, places, metas }
    }

    fn spanned(&self) -> impl Iterator<Item = &'a Fact> {
        self.facts.all().filter(|fact| in_span(second(fact)))
    }

    fn accepted(&self) -> impl Iterator<Item = &'a Fact> {
        self.spanned().filter(|fact| is(fact, ShareStatus::Accepted))
    }

    /// Facts of the span by worker number.
    fn by_worker(&self, take: impl Fn(&Fact) -> bool) -> BTreeMap<u64, Vec<&'a Fact>> {
        let mut workers: BTreeMap<u64, Vec<&Fact>> = BTreeMap::new();
        for fact in self.spanned().filter(|fact| take(fact)) {
            workers.entry(fact.row.worker).or_default().push(fact);
        }
        workers
    }

    fn agent(&self, session: u64) -> &'a str {
        &self.facts.sessions[&session].agent
    }

    /// Rows by key, made with `row`.
    fn grouped<K: Ord>(
        facts: impl Iterator<Item = &'a Fact>,
        key: impl Fn(&Fact) -> K,
        row: impl Fn(&K, &[&Fact]) -> Vec<Cell>,
    ) -> Vec<Vec<Cell>> {
        let mut groups: BTreeMap<K, Vec<&Fact>> = BTreeMap::new();
        for fact in facts {
            groups.entry(key(fact)).or_default().push(fact);
        }
        groups.iter().map(|(key, facts)| row(key, facts)).collect()
    }

    fn worker_number(&self, number: usize) -> u64 {
        let name = Self::worker_name(number);
        *self.facts.names.iter().find(|(_, known)| **known == name).expect("a worker").0
    }

    fn worker_name(number: usize) -> String {
        format!("account{:02}.rig{:02}", number / 6, number % 6)
    }

    fn blocks_in_span(&self) -> impl Iterator<Item = &'a otedama_sharelog::BlockRecord> {
        self.facts.blocks.iter().filter(|block| in_span(block.found_us / 1_000_000))
    }

    fn credited(facts: &[&Fact]) -> u128 {
        facts.iter().filter(|fact| is(fact, ShareStatus::Accepted)).map(|fact| u128::from(fact.row.work)).sum()
    }

    fn work(facts: &[&Fact]) -> u128 {
        facts.iter().map(|fact| u128::from(fact.row.work)).sum()
    }

    fn count(facts: &[&Fact], status: ShareStatus) -> usize {
        facts.iter().filter(|fact| is(fact, status)).count()
    }

    /// The hundredth row of the first server: the one whose hash is true.
    fn example(&self) -> (&'a Fact, u64, u32) {
        let (seg, seq) = self.places[0][100];
        (&self.facts.rows[0][100], seg, seq)
    }

    fn expected(&self, recipe: &Recipe) -> Expected {
        let span = || vec![("since", SINCE.to_owned()), ("until", UNTIL.to_owned())];
        let with = |name: &'static str, value: &str| [span(), vec![(name, value.to_owned())]].concat();
        let facts = self.facts;
        let network = Facts::network_hashes();
        let reasons = &ShareStatus::ALL[1..];
        let (values, rows) = match recipe.name {
            "answer_time" => (
                span(),
                Self::grouped(
                    self.spanned(),
                    |fact| (fact.session >> 56, fact.row.net),
                    |&(instance, net), group| {
                        let mut us: Vec<_> = group.iter().map(|fact| fact.row.latency_us).collect();
                        let build = &facts.runs[instance as usize - 7].build;
                        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|level| quantile(&mut us, level));
                        vec![text(build), text(net), text(us.len()), text(p50), text(p99), text(p999), text(us[us.len() - 1])]
                    },
                ),
            ),
            "arrival_bursts" => (
                span(),
                Self::grouped(
                    self.spanned(),
                    |fact| second(fact) / 3600,
                    |hour, group| {
                        let mut by_second: BTreeMap<u64, u64> = BTreeMap::new();
                        group.iter().for_each(|fact| *by_second.entry(second(fact)).or_default() += 1);
                        let mut counts: Vec<_> = by_second.values().copied().collect();
                        let mean = group.len() as f64 / 3600.0;
                        let variance = (hour * 3600..(hour + 1) * 3600)
                            .map(|second| (by_second.get(&second).copied().unwrap_or(0) as f64 - mean).powi(2))
                            .sum::<f64>()
                            / 3600.0;
                        let p99 = quantile(&mut counts, 0.99);
                        vec![
                            when(hour * 3600),
                            text(group.len()),
                            Near(mean, 3),
                            text(p99),
                            text(counts[counts.len() - 1]),
                            Near(variance / mean, 3),
                        ]
                    },
                ),
            ),
            "best_shares" => {
                let mut all: Vec<(usize, usize)> =
                    (0..2).flat_map(|server| (0..facts.rows[server].len()).map(move |index| (server, index))).collect();
                all.retain(|&(server, index)| {
                    let fact = &facts.rows[server][index];
                    is(fact, ShareStatus::Accepted) && in_span(second(fact))
                });
                all.sort_by(|a, b| facts.rows[b.0][b.1].row.share_difficulty.total_cmp(&facts.rows[a.0][a.1].row.share_difficulty));
                let rows = all[..10].iter().map(|&(server, index)| {
                    let (fact, (seg, seq)) = (&facts.rows[server][index], self.places[server][index]);
                    let best = f64::from(fact.row.share_difficulty);
                    vec![
                        text(facts.name(fact.row.worker)),
                        Near(best, 3),
                        Near(100.0 * best / (network * 65535.0 / 2f64.powi(48)), 4),
                        when(second(fact)),
                        text(fact.row.arrival_us % 1_000_000),
                        text(seg),
                        text(seq),
                    ]
                });
                (with("rows", "10"), rows.collect())
            }
            "blocks_found" => (
                span(),
                self.blocks_in_span()
                    .map(|block| {
                        let age_us = block.found_us - facts.jobs[&block.job.0].record.created_us;
                        vec![
                            when(block.found_us / 1_000_000),
                            text(block.found_us % 1_000_000),
                            text(block.height),
                            text(block.status.label()),
                            text(&block.reason),
                            text(facts.name(block.worker.0)),
                            Near(age_us as f64 / 1e6, 3),
                            text(block.hash),
                        ]
                    })
                    .collect(),
            ),
            "day_complete" => {
                let rows = (0..2).map(|server| {
                    let of_day: Vec<_> =
                        self.metas[server].iter().filter(|meta| meta.first_us / 1_000_000 / 86_400 == DAY_S / 86_400).collect();
                    let day: Vec<&Fact> = facts.rows[server].iter().filter(|fact| second(fact) / 86_400 == DAY_S / 86_400).collect();
                    let work = Self::work(&day);
                    vec![
                        text(7 + server),
                        text(of_day[0].seg >> 32),
                        text(of_day.len()),
                        text(0),
                        flag(true),
                        flag(true),
                        text(day.len()),
                        text(day.len()),
                        text(work),
                        text(work),
                        flag(true),
                    ]
                });
                (vec![("day", "2026-11-20".to_owned())], rows.collect())
            }
            "duplicate_probes" => {
                let rows = self.by_worker(|fact| is(fact, ShareStatus::Duplicate)).into_iter().map(|(worker, copies)| {
                    let submits = self.spanned().filter(|fact| fact.row.worker == worker).count();
                    let mut distinct: BTreeMap<_, u64> = BTreeMap::new();
                    for fact in &copies {
                        let row = &fact.row;
                        *distinct.entry((fact.session, fact.job, row.extranonce2, row.ntime, row.nonce, row.version)).or_default() += 1;
                    }
                    vec![
                        text(facts.name(worker)),
                        text(submits),
                        text(copies.len()),
                        Near(100.0 * copies.len() as f64 / submits as f64, 3),
                        text(distinct.len()),
                        text(distinct.values().max().expect("copies")),
                    ]
                });
                (span(), rows.collect())
            }
            "firmware" => {
                let all = Self::credited(&self.accepted().collect::<Vec<_>>()) as f64;
                let rows = Self::grouped(
                    self.spanned(),
                    |fact| self.agent(fact.session),
                    |agent, group| {
                        let distinct = |key: fn(&Fact) -> u64| group.iter().map(|fact| key(fact)).collect::<BTreeSet<_>>().len();
                        let refused = group.len() - Self::count(group, ShareStatus::Accepted);
                        vec![
                            text(agent),
                            text(distinct(|fact| fact.session)),
                            text(distinct(|fact| fact.row.worker)),
                            text(group.len()),
                            Near(100.0 * refused as f64 / group.len() as f64, 3),
                            Near(100.0 * Self::credited(group) as f64 / all, 3),
                        ]
                    },
                );
                (span(), rows)
            }
            "flapping_sessions" => {
                let mut rows = Vec::new();
                for (worker, group) in self.by_worker(|fact| fact.row.worker != 0) {
                    let mut sessions: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
                    for fact in group {
                        let entry = sessions.entry(fact.session).or_insert((second(fact), 0, 0));
                        entry.1 = second(fact);
                        entry.2 += 1;
                    }
                    if sessions.len() >= 6 {
                        let mut lives: Vec<_> = sessions.values().map(|(first, last, _)| last - first).collect();
                        let mut shares: Vec<_> = sessions.values().map(|(.., shares)| *shares).collect();
                        let (life, share) = (quantile(&mut lives, 0.5), quantile(&mut shares, 0.5));
                        rows.push(vec![
                            text(facts.name(worker)),
                            text(sessions.len()),
                            text(life),
                            text(share),
                            Near(sessions.len() as f64 * 3600.0 / SECONDS, 3),
                        ]);
                    }
                }
                assert_eq!(rows.len(), analyst::FLAP.len(), "the two that were made to");
                (span(), rows)
            }
            "hash_uniformity" => {
                let rows = self.by_worker(|fact| is(fact, ShareStatus::Accepted)).into_iter().filter(|(_, group)| group.len() >= 1000).map(
                    |(worker, group)| {
                        let mut tenths = [0u64; 10];
                        for fact in &group {
                            tenths[((10.0 * difficulty(fact.row.work) / f64::from(fact.row.share_difficulty)).floor() as usize).min(9)] +=
                                1;
                        }
                        let mean = group.len() as f64 / 10.0;
                        let chi_squared: f64 = tenths.iter().map(|&count| (count as f64 - mean).powi(2) / mean).sum();
                        let z = ((chi_squared / 9.0).cbrt() - (1.0 - 2.0 / 81.0)) / (2f64 / 81.0).sqrt();
                        let p = erfc(z / 2f64.sqrt()) / 2.0;
                        if worker == self.worker_number(analyst::FILTERS) {
                            assert!(p < 0.001, "{p} of the one that filters");
                        }
                        vec![text(facts.name(worker)), text(group.len()), Near(chi_squared, 2), Near(p, 5)]
                    },
                );
                (span(), rows.collect())
            }
            "hashrate_by_worker" => {
                let rows = self.by_worker(|fact| is(fact, ShareStatus::Accepted)).into_iter().map(|(worker, group)| {
                    let hashes = Self::work(&group) as f64;
                    let squares: f64 = group.iter().map(|fact| (fact.row.work as f64).powi(2)).sum();
                    let n = hashes * hashes / squares;
                    let rate = hashes / SECONDS / 1e12;
                    let low = rate * (1.0 - 1.0 / (9.0 * n) - 1.96 / (3.0 * n.sqrt())).powi(3);
                    let high = rate * (n + 1.0) / n * (1.0 - 1.0 / (9.0 * (n + 1.0)) + 1.96 / (3.0 * (n + 1.0).sqrt())).powi(3);
                    vec![text(facts.name(worker)), text(group.len()), Near(rate, 3), Near(low, 3), Near(high, 3)]
                });
                (span(), rows.collect())
            }
            "hashrate_of_pool" => (
                with("step_s", "1800"),
                Self::grouped(
                    self.accepted(),
                    |fact| second(fact) / 1800,
                    |step, group| {
                        let hashes = Self::work(group);
                        vec![when(step * 1800), text(group.len()), text(hashes), Near(hashes as f64 / 1800.0 / 1e12, 3)]
                    },
                ),
            ),
            "job_lifetimes" => {
                let mut by_job: BTreeMap<u64, Vec<&Fact>> = BTreeMap::new();
                facts.all().filter(|fact| second(fact) >= SINCE_T).for_each(|fact| by_job.entry(fact.job).or_default().push(fact));
                let made = facts.jobs.values().filter(|job| in_span(job.record.created_us / 1_000_000));
                let rows = made.map(|job| {
                    let group = by_job.get(&job.record.job.0).map_or(&[][..], Vec::as_slice);
                    let (accepted, stale) = (Self::count(group, ShareStatus::Accepted), Self::count(group, ShareStatus::Stale));
                    let life = if job.ended_us == 0 { 0.0 } else { (job.ended_us - job.record.created_us) as f64 / 1e6 };
                    vec![
                        text(job.record.job.0),
                        text(job.record.height),
                        flag(job.record.clean),
                        when(job.record.created_us / 1_000_000),
                        Near(life, 3),
                        text(accepted),
                        text(stale),
                        text(group.len() - accepted - stale),
                    ]
                });
                (span(), rows.collect())
            }
            "late_and_grace" => (
                span(),
                Self::grouped(
                    self.accepted(),
                    |fact| second(fact) / 3600,
                    |hour, group| {
                        let of = |flag: u8| group.iter().copied().filter(|fact| fact.row.flags & flag != 0).collect::<Vec<_>>();
                        let (late, grace) = (of(flags::LATE), of(flags::GRACE));
                        let percent = |part: &[&Fact]| 100.0 * Self::work(part) as f64 / Self::work(group) as f64;
                        vec![
                            when(hour * 3600),
                            text(group.len()),
                            text(late.len()),
                            text(grace.len()),
                            Near(percent(&late), 3),
                            Near(percent(&grace), 3),
                        ]
                    },
                ),
            ),
            "luck" => {
                let expected = Self::work(&self.accepted().collect::<Vec<_>>()) as f64 / network;
                let solutions = self.blocks_in_span().count() as i64;
                assert!(solutions > 10, "{solutions} solutions in the span");
                let row = vec![
                    text(solutions),
                    Near(expected, 3),
                    Near(100.0 * solutions as f64 / expected, 1),
                    Near(poisson_at_most(solutions, expected), 5),
                    Near(1.0 - poisson_at_most(solutions - 1, expected), 5),
                ];
                (span(), vec![row])
            }
            "nonce_coverage" => {
                let rows = self.by_worker(|fact| is(fact, ShareStatus::Accepted)).into_iter().filter(|(_, group)| group.len() >= 1000).map(
                    |(worker, group)| {
                        let mut parts = [0u64; 16];
                        group.iter().for_each(|fact| parts[(fact.row.nonce >> 28) as usize] += 1);
                        let hit = parts.iter().filter(|&&part| part > 0).count();
                        if worker == self.worker_number(analyst::DEAD_CHIPS) {
                            assert_eq!(hit, 12);
                        }
                        let percent = |part: Option<&u64>| 100.0 * *part.expect("sixteen") as f64 / group.len() as f64;
                        vec![
                            text(facts.name(worker)),
                            text(group.len()),
                            text(hit),
                            Near(percent(parts.iter().min()), 2),
                            Near(percent(parts.iter().max()), 2),
                        ]
                    },
                );
                (span(), rows.collect())
            }
            "ntime_skew" => (
                span(),
                Self::grouped(
                    self.spanned().filter(|fact| is(fact, ShareStatus::Accepted) || is(fact, ShareStatus::LowDifficulty)),
                    |fact| self.agent(fact.session),
                    |agent, group| {
                        let mut ahead: Vec<_> = group.iter().map(|fact| i64::from(fact.row.ntime) - second(fact) as i64).collect();
                        let [p01, p50, p99] = [0.01, 0.5, 0.99].map(|level| quantile(&mut ahead, level));
                        vec![text(agent), text(group.len()), text(p01), text(p50), text(p99)]
                    },
                ),
            ),
            "pplns_weights" => {
                let before: Vec<&Fact> = facts.accepted().filter(|fact| second(fact) < UNTIL_T).collect();
                let mut minutes: BTreeMap<u64, u128> = BTreeMap::new();
                before.iter().for_each(|fact| *minutes.entry(second(fact) / 60).or_default() += u128::from(fact.row.work));
                let (mut sum, mut first) = (0u128, None);
                for (&minute, work) in minutes.iter().rev() {
                    sum += work;
                    if sum as f64 / network >= 3.5 {
                        first = Some(minute);
                        break;
                    }
                }
                let first = first.expect("the window fits");
                let window: Vec<&Fact> = before.into_iter().filter(|fact| second(fact) / 60 >= first).collect();
                let total = Self::work(&window) as f64;
                let rows = Self::grouped(
                    window.iter().copied(),
                    |fact| fact.row.worker,
                    |&worker, group| {
                        let hashes = Self::work(group);
                        vec![text(facts.name(worker)), text(hashes), Near(100.0 * hashes as f64 / total, 6)]
                    },
                );
                (vec![("until", UNTIL.to_owned()), ("blocks", "3.5".to_owned())], rows)
            }
            "refusals_over_time" => (
                span(),
                Self::grouped(
                    self.spanned(),
                    |fact| second(fact) / 3600,
                    |hour, group| {
                        let refused = group.len() - Self::count(group, ShareStatus::Accepted);
                        let mut row = vec![when(hour * 3600), text(group.len()), Near(100.0 * refused as f64 / group.len() as f64, 3)];
                        row.extend(reasons.iter().map(|&reason| text(Self::count(group, reason))));
                        row
                    },
                ),
            ),
            "rollup_check" => (
                span(),
                Self::grouped(
                    self.spanned(),
                    |fact| second(fact) / 3600,
                    |hour, group| vec![when(hour * 3600), text(group.len()), text(Self::work(group)), flag(true)],
                ),
            ),
            "server_runs" => (
                span(),
                Self::grouped(
                    self.spanned(),
                    |fact| fact.session >> 32,
                    |&prefix, group| {
                        let run = facts.runs.iter().find(|run| u64::from(run.run.prefix()) == prefix).expect("a run");
                        let sessions: BTreeSet<_> = group.iter().map(|fact| fact.session).collect();
                        vec![
                            text(prefix),
                            text(run.run.instance),
                            text(&run.build),
                            text(&run.kernel),
                            text(&run.driver),
                            text(&run.tier),
                            when(run.started_us / 1_000_000),
                            text(sessions.len()),
                            text(group.len()),
                            when(second(group[0])),
                            when(second(group[group.len() - 1])),
                        ]
                    },
                ),
            ),
            "share_explained" => {
                let (fact, seg, seq) = self.example();
                let (row, session, job, run) = (&fact.row, &facts.sessions[&fact.session], &facts.jobs[&fact.job], &facts.runs[0]);
                let share = f64::from(row.share_difficulty);
                let cells = vec![
                    text(seg),
                    text(seq),
                    when(second(fact)),
                    text(row.arrival_us % 1_000_000),
                    text(row.latency_us),
                    text(run.run.instance),
                    text(&run.build),
                    text(&run.kernel),
                    text(&run.driver),
                    text(&run.tier),
                    text(facts.name(row.worker)),
                    text(fact.session),
                    text(&session.peer),
                    text(&session.agent),
                    text(session.net),
                    text(session.extranonce1),
                    text(fact.job),
                    text(job.record.height),
                    text(job.record.prev_hash),
                    flag(job.record.clean),
                    when(job.record.created_us / 1_000_000),
                    when(job.ended_us / 1_000_000),
                    text("accepted"),
                    flag(row.flags & flags::BLOCK != 0),
                    flag(row.flags & flags::LATE != 0),
                    flag(row.flags & flags::GRACE != 0),
                    text(row.work),
                    text(row.work),
                    Near(difficulty(row.work), 16),
                    Near(share, 16),
                    Near(share / difficulty(row.work), 4),
                    Near(100.0 * share / (network * 65535.0 / 2f64.powi(48)), 6),
                    text(row.nonce),
                    text(row.ntime),
                    text(i64::from(row.ntime) - second(fact) as i64),
                    text(format!("{:08X}", row.version)),
                    hexed(u64::from(row.version ^ job.record.version)),
                    hexed(row.extranonce2),
                    text(""),
                ];
                (vec![("seg", seg.to_string()), ("seq", seq.to_string())], vec![cells])
            }
            "share_rehashed" => {
                let (fact, seg, seq) = self.example();
                let (header, hash) = facts.rehash(fact);
                let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                let row = vec![
                    text(seg),
                    text(seq),
                    text(hex(&header[36..68])),
                    text(hex(&header)),
                    text(hash),
                    Near(analyst::difficulty_of(&hash), 16),
                    Near(f64::from(fact.row.share_difficulty), 12),
                    flag(true),
                ];
                (vec![("seg", seg.to_string()), ("seq", seq.to_string())], vec![row])
            }
            "silent_workers" => {
                let mut rows = Vec::new();
                for (worker, group) in self.by_worker(|fact| is(fact, ShareStatus::Accepted)) {
                    let (first, last) = (second(group[0]) / 60 * 60, second(group[group.len() - 1]) / 60 * 60);
                    if last + 60 * 60 <= UNTIL_T {
                        let rate = Self::work(&group) as f64 / (last - first + 60) as f64 / 1e12;
                        rows.push(vec![text(facts.name(worker)), when(last), text((UNTIL_T - last) / 60), Near(rate, 3)]);
                    }
                }
                assert_eq!(rows.len(), 1, "the one that went silent");
                (with("silent_minutes", "60"), rows)
            }
            "stale_after_block" => {
                let mut firsts: BTreeMap<(u64, u32), (u64, u64)> = BTreeMap::new();
                let mut by_job: BTreeMap<u64, u64> = BTreeMap::new();
                for fact in facts.accepted().filter(|fact| second(fact) >= SINCE_T) {
                    by_job.entry(fact.job).or_insert(fact.row.arrival_us);
                }
                for job in facts.jobs.values().filter(|job| job.record.clean && in_span(job.record.created_us / 1_000_000)) {
                    if let Some(&first_us) = by_job.get(&job.record.job.0) {
                        firsts.insert((job.record.job.0 >> 56, job.record.height), (job.record.created_us, first_us));
                    }
                }
                let mut late: BTreeMap<(u64, u32), Vec<u64>> = BTreeMap::new();
                for fact in facts.all().filter(|fact| is(fact, ShareStatus::Stale) && fact.job != 0 && second(fact) >= SINCE_T) {
                    let job = &facts.jobs[&fact.job];
                    if job.ended_us > 0 {
                        late.entry((fact.job >> 56, job.record.height + 1)).or_default().push(fact.row.arrival_us - job.ended_us);
                    }
                }
                let rows = firsts.iter().map(|(key, (created_us, first_us))| {
                    let mut after = late.get(key).cloned().unwrap_or_default();
                    let at = |after: &mut Vec<u64>, level| if after.is_empty() { 0.0 } else { quantile(after, level) as f64 / 1000.0 };
                    vec![
                        text(key.0),
                        text(key.1),
                        when(created_us / 1_000_000),
                        Near((first_us - created_us) as f64 / 1000.0, 1),
                        text(after.len()),
                        Near(at(&mut after, 0.5), 1),
                        Near(at(&mut after, 0.99), 1),
                    ]
                });
                (span(), rows.collect())
            }
            "top_workers" => {
                let pool = Self::work(&self.accepted().collect::<Vec<_>>()) as f64;
                let mut workers: Vec<_> = self
                    .by_worker(|fact| is(fact, ShareStatus::Accepted))
                    .into_iter()
                    .map(|(worker, group)| (Self::work(&group), worker, group.len()))
                    .collect();
                workers.sort_unstable_by(|a, b| b.cmp(a));
                let rows = workers[..7].iter().map(|&(hashes, worker, shares)| {
                    vec![
                        text(facts.name(worker)),
                        text(shares),
                        text(hashes),
                        Near(hashes as f64 / SECONDS / 1e12, 3),
                        Near(100.0 * hashes as f64 / pool, 3),
                    ]
                });
                (with("rows", "7"), rows.collect())
            }
            "vardiff_history" => {
                let name = Self::worker_name(8);
                let worker = self.worker_number(8);
                let mut stretches: Vec<(u64, u64, u64, u64, u64)> = Vec::new();
                let mut lasts: BTreeMap<u64, u64> = BTreeMap::new();
                for fact in self.accepted().filter(|fact| fact.row.worker == worker) {
                    let at_us = fact.row.arrival_us;
                    lasts.insert(fact.session, at_us);
                    match stretches.last_mut() {
                        Some((session, _, work, shares, until)) if *session == fact.session && *work == fact.row.work => {
                            *shares += 1;
                            *until = at_us + 1;
                        }
                        last => {
                            if let Some((session, .., until)) = last
                                && *session == fact.session
                            {
                                *until = at_us;
                            }
                            stretches.push((fact.session, at_us, fact.row.work, 1, at_us + 1));
                        }
                    }
                }
                assert!(stretches.len() >= 3, "the difficulty was changed twice in the span");
                let rows = stretches.iter().map(|&(session, from_us, work, shares, until_us)| {
                    vec![
                        text(session),
                        when(from_us / 1_000_000),
                        Near(difficulty(work), 6),
                        text(shares),
                        Near(60e6 * shares as f64 / (until_us - from_us) as f64, 2),
                    ]
                });
                (with("worker", &name), rows.collect())
            }
            "version_rolling" => (
                span(),
                Self::grouped(
                    self.accepted(),
                    |fact| self.agent(fact.session),
                    |agent, group| {
                        let bits = |fact: &Fact| fact.row.version ^ facts.jobs[&fact.job].record.version;
                        let rolled = group.iter().filter(|fact| bits(fact) != 0).count();
                        let union = group.iter().fold(0, |union, fact| union | bits(fact));
                        vec![text(agent), text(group.len()), Near(100.0 * rolled as f64 / group.len() as f64, 3), hexed(u64::from(union))]
                    },
                ),
            ),
            "withholding_test" => {
                let whole = vec![("since", "2026-11-19 23:00:00".to_owned()), ("until", "2026-11-21 01:00:00".to_owned())];
                let mut workers: BTreeMap<u64, u128> = BTreeMap::new();
                facts.accepted().for_each(|fact| *workers.entry(fact.row.worker).or_default() += u128::from(fact.row.work));
                let rows = workers.into_iter().map(|(worker, work)| {
                    let expected = work as f64 / network;
                    let solutions = facts.blocks.iter().filter(|block| block.worker.0 == worker).count();
                    let p = poisson_at_most(solutions as i64, expected);
                    let verdict = if p < 0.0001 {
                        "suspect"
                    } else if expected < 6.0 {
                        "too early"
                    } else {
                        "as expected"
                    };
                    assert_eq!(verdict == "suspect", worker == self.worker_number(analyst::WITHHOLDS), "{expected} {solutions}");
                    vec![text(facts.name(worker)), Near(expected, 3), text(solutions), Near(p, 6), text(verdict)]
                });
                (whole, rows.collect())
            }
            "worker_day" => {
                let worker = self.worker_number(13);
                let day = facts.all().filter(|fact| fact.row.worker == worker && second(fact) / 86_400 == DAY_S / 86_400);
                let rows = Self::grouped(
                    day,
                    |fact| second(fact) / 3600,
                    |hour, group| {
                        let mut row = vec![
                            when(hour * 3600),
                            Near(Self::credited(group) as f64 / 3600.0 / 1e12, 3),
                            text(Self::count(group, ShareStatus::Accepted)),
                        ];
                        row.extend(reasons.iter().map(|&reason| text(Self::count(group, reason))));
                        row
                    },
                );
                (vec![("worker", Self::worker_name(13)), ("day", "2026-11-20".to_owned())], rows)
            }
            "worker_shares" => {
                let worker = self.worker_number(14);
                let mut found: Vec<_> = facts.rows[0]
                    .iter()
                    .zip(&self.places[0])
                    .filter(|(fact, _)| fact.row.worker == worker && in_span(second(fact)))
                    .collect();
                found.reverse();
                let rows = found[..12].iter().map(|(fact, (seg, seq))| {
                    vec![
                        when(second(fact)),
                        text(fact.row.arrival_us % 1_000_000),
                        text(ShareStatus::ALL[fact.row.status as usize].label()),
                        Near(difficulty(fact.row.work), 6),
                        Near(f64::from(fact.row.share_difficulty), 3),
                        text(fact.row.latency_us),
                        text(fact.session),
                        text(fact.job),
                        text(seg),
                        text(seq),
                    ]
                });
                let values = [span(), vec![("worker", Self::worker_name(14)), ("rows", "12".to_owned())]].concat();
                (values, rows.collect())
            }
            other => panic!("nobody has worked out what {other} should answer"),
        };
        Expected { values, rows }
    }
}

const QUESTIONS: &str = include_str!("../../docs/sql/questions.md");

/// The statements of the page of questions, in its order.
fn questions() -> Vec<&'static str> {
    let mut statements = Vec::new();
    for (index, section) in QUESTIONS.split("\n## ").skip(1).enumerate() {
        let (title, text) = section.split_once('\n').expect("a title");
        assert!(title.starts_with(&format!("{}. ", index + 1)) && title.ends_with('?'), "{title}");
        let (_, statement) = text.split_once("```sql\n").expect("a statement");
        let (statement, rest) = statement.split_once("```").expect("its end");
        assert!(statement.starts_with("SELECT") && !statement.contains(';') && !rest.contains("```"), "{title}");
        assert!(RECIPES.iter().all(|recipe| recipe.statement() != statement.trim()), "{title} is a recipe");
        statements.push(statement.trim());
    }
    statements
}

impl<'a> Book<'a> {
    /// The answer to a question of the page.
    fn answered(&self, number: usize) -> Vec<Vec<Cell>> {
        let facts = self.facts;
        let is_of_day = |seconds: u64| seconds / 86_400 == DAY_S / 86_400;
        let day: Vec<&'a Fact> = facts.all().filter(|fact| is_of_day(second(fact))).collect();
        let accepted: Vec<&'a Fact> = day.iter().copied().filter(|fact| is(fact, ShareStatus::Accepted)).collect();
        let all_work = Self::work(&accepted) as f64;
        let account = |worker: u64| facts.name(worker).split('.').next().expect("a part").to_owned();
        let of = |status: ShareStatus| day.iter().copied().filter(move |fact| is(fact, status));
        match number {
            1 => {
                let mut addresses: BTreeMap<&str, u128> = BTreeMap::new();
                for fact in &accepted {
                    let (address, _) = facts.sessions[&fact.session].peer.rsplit_once(':').expect("a port");
                    *addresses.entry(address).or_default() += u128::from(fact.row.work);
                }
                let mut largest: Vec<_> = addresses.into_iter().collect();
                largest.sort_by_key(|(_, work)| std::cmp::Reverse(*work));
                let row = |(address, work): &(&str, u128)| vec![text(address), text(work), Near(100.0 * *work as f64 / all_work, 3)];
                largest[..5].iter().map(row).collect()
            }
            2 => Self::grouped(
                accepted.iter().copied(),
                |fact| account(fact.row.worker),
                |account, group| vec![text(account), text(Self::work(group)), Near(100.0 * Self::work(group) as f64 / all_work, 3)],
            ),
            3 => Self::grouped(
                accepted.iter().copied(),
                |fact| second(fact) / 3600,
                |hour, group| vec![when(hour * 3600), text(group.iter().map(|fact| fact.row.worker).collect::<BTreeSet<_>>().len())],
            ),
            4 => Self::grouped(
                day.iter().copied(),
                |fact| second(fact) / 3600,
                |hour, group| {
                    let sum: u64 = group.iter().map(|fact| u64::from(fact.row.latency_us)).sum();
                    vec![when(hour * 3600), Near(sum as f64 / group.len() as f64, 2)]
                },
            ),
            5 => Self::grouped(
                of(ShareStatus::Accepted).chain(of(ShareStatus::Stale)),
                |fact| account(fact.row.worker),
                |account, group| {
                    let lost = (Self::work(group) - Self::credited(group)) as f64;
                    vec![text(account), Near(100.0 * lost / Self::work(group) as f64, 4)]
                },
            ),
            6 => [7, 8]
                .map(|instance| {
                    let made = facts.jobs.values().map(|job| &job.record).filter(|record| u64::from(record.job.run().instance) == instance);
                    let heights: Vec<u32> =
                        made.filter(|record| is_of_day(record.created_us / 1_000_000)).map(|record| record.height).collect();
                    let distinct = heights.iter().collect::<BTreeSet<_>>().len();
                    vec![text(instance), text(heights.len()), text(distinct), Near(heights.len() as f64 / distinct as f64, 3)]
                })
                .into(),
            7 => {
                let seconds: Vec<u64> = accepted.iter().map(|fact| second(fact)).collect::<BTreeSet<_>>().into_iter().collect();
                let longest = seconds.windows(2).map(|pair| pair[1] - pair[0]).max().expect("two seconds");
                let since = seconds.windows(2).find(|pair| pair[1] - pair[0] == longest).expect("there is one")[0];
                vec![vec![text(longest), when(since)]]
            }
            8 => Self::grouped(
                accepted.iter().copied(),
                |fact| fact.row.work,
                |&work, group| {
                    vec![Near(difficulty(work), 6), text(group.len()), Near(100.0 * group.len() as f64 / accepted.len() as f64, 3)]
                },
            ),
            9 => {
                let mut fates: BTreeMap<(String, &str), u64> = BTreeMap::new();
                for block in facts.blocks.iter().filter(|block| is_of_day(block.found_us / 1_000_000)) {
                    *fates.entry((account(block.worker.0), block.status.label())).or_default() += 1;
                }
                fates.into_iter().map(|((account, fate), count)| vec![text(account), text(fate), text(count)]).collect()
            }
            10 => Self::grouped(
                of(ShareStatus::BadVersion),
                |fact| self.agent(fact.session),
                |agent, group| {
                    let bits = group.iter().fold(0, |bits, fact| bits | fact.row.version);
                    vec![text(agent), text(group.len()), hexed(u64::from(bits))]
                },
            ),
            other => panic!("nobody has worked out the answer to question {other}"),
        }
    }
}

/// A number in hexadecimal as the server's `hex` prints it: whole bytes, without leading ones of zero.
fn hexed(number: u64) -> Cell {
    let digits = format!("{number:X}");
    Text(if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") })
}

/// The first difference between result and expectation; both in the same order after sorting by their exact cells.
fn difference(result: &str, mut expected: Vec<Vec<Cell>>) -> Option<String> {
    let mut rows: Vec<Vec<&str>> = result.lines().map(|line| line.split('\t').collect()).collect();
    if rows.len() != expected.len() {
        return Some(format!("{} rows, expected {}; the first is {:?}", rows.len(), expected.len(), rows.first()));
    }
    let exact: Vec<usize> =
        expected.first()?.iter().enumerate().filter(|(_, cell)| matches!(cell, Text(_))).map(|(index, _)| index).collect();
    rows.sort_by_key(|row| exact.iter().map(|&index| row.get(index).copied().unwrap_or_default().to_owned()).collect::<Vec<_>>());
    let shown = |cell: &Cell| match cell {
        Text(text) => text.clone(),
        Near(number, _) => number.to_string(),
    };
    expected.sort_by_key(|row| exact.iter().map(|&index| shown(&row[index])).collect::<Vec<_>>());
    for (row, wanted) in rows.iter().zip(&expected) {
        let same = row.len() == wanted.len()
            && row.iter().zip(wanted).all(|(found, wanted)| match wanted {
                Text(text) => found == text,
                Near(number, decimals) => {
                    found.parse::<f64>().is_ok_and(|found| (found - number).abs() <= 0.5001 * 10f64.powi(-decimals) + 1e-7 * number.abs())
                }
            });
        if !same {
            return Some(format!("{row:?}, expected {:?}", wanted.iter().map(shown).collect::<Vec<_>>()));
        }
    }
    None
}

/// Ships both logs, runs every recipe, asks every question under the login of `reader` (name and password), and says all that differs.
async fn hold_the_book_against(url: String, database: &str, reader: Option<(&str, &str)>) {
    let (logs, facts) = analyst::generate(ROWS, SEED, 50_000, true);
    let settings_of = |server: u8| ShipperSettings { database: database.to_owned(), instance: 7 + server, ..settings(url.clone()) };
    for server in 0..2 {
        let segments = logs.store(server).segments().expect("segments").len() as u64;
        let run = Running::start(settings_of(server as u8), logs.store(server));
        run.until_shipped(segments).await;
        run.end().await;
        let report = reconcile(&settings_of(server as u8), logs.dir(server)).await.expect("reconciled");
        assert!(report.is_clean() && report.rows_log == facts.rows[server].len() as u64, "{report:?}");
    }
    let book = Book::new(&facts, &logs);
    let mut wrong = Vec::new();
    for recipe in RECIPES {
        let expected = book.expected(recipe);
        let values: Vec<_> = expected.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let sql = recipe.bind(&values, UNTIL_S * 1_000_000).expect("values");
        match query(&settings_of(0), &sql).await {
            Err(error) => wrong.push(format!("{}: {error}", recipe.name)),
            Ok(result) => {
                assert!(!expected.rows.is_empty(), "{}: an empty answer proves nothing", recipe.name);
                wrong.extend(difference(&result, expected.rows).map(|what| format!("{}: {what}", recipe.name)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} recipes:\n{}", wrong.len(), RECIPES.len(), wrong.join("\n"));
    let (user, password) = reader.unwrap_or_default();
    let login = ShipperSettings { user: user.to_owned(), password: password.to_owned(), ..settings_of(0) };
    let statements = questions();
    assert_eq!(statements.len(), 10);
    for (index, statement) in statements.into_iter().enumerate() {
        let expected = book.answered(index + 1);
        assert!(!expected.is_empty(), "question {}: an empty answer proves nothing", index + 1);
        match query(&login, statement).await {
            Err(error) => wrong.push(format!("question {}: {error}", index + 1)),
            Ok(result) => wrong.extend(difference(&result, expected).map(|what| format!("question {}: {what}", index + 1))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(facts.names.len(), WORKERS);
    assert!(facts.blocks.iter().any(|block| block.status == BlockStatus::Rejected));
}

#[tokio::test]
async fn every_recipe_gives_on_debians_server_what_was_worked_out_row_by_row() {
    let Some(mut server) = server::debian("every_recipe_gives_on_debians_server_what_was_worked_out_row_by_row") else { return };
    server.stop();
    std::fs::create_dir_all(server.folder().join("users.d")).expect("users.d");
    let reader = schema::reader(&Flavour::Legacy, "otedama", "analyst", "read only");
    std::fs::write(server.folder().join("users.d/analyst.xml"), reader).expect("the reader");
    server.restart();
    hold_the_book_against(server.url(), "otedama", Some(("analyst", "read only"))).await;
}

#[tokio::test]
async fn every_recipe_gives_on_a_modern_server_what_was_worked_out_row_by_row() {
    let Some((url, _server)) = server::modern("every_recipe_gives_on_a_modern_server_what_was_worked_out_row_by_row") else { return };
    let database = "otedama_test_book";
    let plain = ShipperSettings { database: "default".into(), ..settings(url.clone()) };
    query(&plain, &format!("DROP DATABASE IF EXISTS {database}")).await.expect("dropped");
    // libchdb has no users that log in.
    hold_the_book_against(url, database, None).await;
    query(&plain, &format!("DROP DATABASE {database}")).await.expect("dropped");
}
