//! 100,000 connections in one server process, and 1,000,000: what each costs in memory, and whether the few that send shares notice the many that do not.
use super::{Load, PATIENCE, Sheet, bar, latency, whole};
use crate::Failure;
use crate::figures::{Bench, LOAD_CORE, SERVER_CORE, Server, number};
use crate::measure::{self, median};
use std::time::{Duration, Instant};

/// A crowd on one server.
pub(super) struct Crowd {
    /// Connections that send shares, and how many they send together.
    active: u32,
    active_shares_per_s: u32,
    idle: u32,
    /// Processes that the silent ones come from: each may open 20,000 files where limits are small.
    idle_processes: u32,
    ramp_s: u32,
    /// Connections at which memory is looked at on the way up, the last of them all that are silent.
    levels: [u32; 3],
    /// Memory that must be free, bytes: sockets of both ends take about 8 KB a connection.
    needs_bytes: u64,
}

pub(super) const HUNDRED: Crowd = Crowd {
    active: 1_000,
    active_shares_per_s: 10_000,
    idle: 99_000,
    idle_processes: 8,
    ramp_s: 15,
    levels: [20_000, 50_000, 99_000],
    needs_bytes: 2 << 30,
};
/// As many as a config may allow. The active ones share their source address with 10,000 of the silent ones, and the kernel finds the first 14,000 ports of one soon.
pub(super) const WHOLE_MILLION: Crowd = Crowd {
    active: 4_000,
    active_shares_per_s: 10_000,
    idle: 996_000,
    idle_processes: 60,
    ramp_s: 100,
    levels: [200_000, 500_000, 996_000],
    needs_bytes: 13 << 30,
};
/// What `[stratum] max_connections` may be at most.
const CONNECTIONS_MAX: u32 = 1_000_000;
/// Connections that a server may have beside those that are meant: some of the last run may still be closing.
const SPARE: u32 = 1_500;
/// What is extrapolated to.
const MILLION: f64 = 1e6;
/// Jobs are sent to everybody every 30 s: a measured window is long enough to meet that.
const WINDOW_TIMES: u32 = 6;

/// Memory at one number of connections.
#[derive(Clone, Copy)]
struct Look {
    connections: f64,
    resident: f64,
    slab: f64,
}

impl Bench<'_> {
    pub(super) fn crowd(&self, crowd: &Crowd, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let &Crowd { active, active_shares_per_s, idle: silent, idle_processes, ramp_s, levels, needs_bytes } = crowd;
        let available = measure::available_bytes()?;
        if available < needs_bytes {
            return Err(Failure::Environment(format!(
                "part {} needs {needs_bytes} bytes of free memory, and {available} are available",
                sheet.part.name()
            )));
        }
        let name = sheet.part.name();
        let quiet = self.server(&format!("{name}-quiet"), active + SPARE, "auto")?;
        let crowded = self.server(name, (silent + active + SPARE).min(CONNECTIONS_MAX), "auto")?;
        // The first template is out and housekeeping has run.
        std::thread::sleep(Duration::from_secs(3));
        let empty = look(&crowded)?;
        let words = format!(
            "--target {} --connections {silent} --processes {idle_processes} --mode idle --seconds 3600 --warmup 0 --ramp {ramp_s} --seed 2",
            crowded.stratum
        );
        let mut idle = Load::start_idly(self, &format!("{name}-idle"), &words)?;
        let since = Instant::now();
        let looks = self.climb(crowd, &crowded, &mut idle)?;
        let connected_s = since.elapsed().as_secs_f64();

        let window_s = WINDOW_TIMES * self.request.seconds;
        let (mut p99, mut p50) = ([vec![], vec![]], [vec![], vec![]]);
        let pairs = self.request.runs.div_ceil(2);
        for pair in 0..pairs {
            for turn in 0..2 {
                let side = (pair + turn) % 2;
                let server = [&quiet, &crowded][side];
                // The other one stands still: its housekeeping is not to be felt on the core that both have.
                crowded.process.signal(if side == 0 { "STOP" } else { "CONT" });
                std::thread::sleep(Duration::from_secs(3));
                let words = format!(
                    "--target {} --connections {active} --rate {active_shares_per_s} --seconds {window_s} --warmup 1 --seed {} --worker-prefix active",
                    server.stratum,
                    pair + 1
                );
                let result = Load::start(self, &format!("{name}-active"), &words)?.result(PATIENCE + Duration::from_secs(window_s.into()));
                crowded.process.signal("CONT");
                let result = whole(result.map_err(|failure| self.beside(failure, server))?)?;
                println!("pair {pair}: {} {result}", ["quiet", "crowded"][side]);
                p99[side].push(latency(&result, "p99")?);
                p50[side].push(latency(&result, "p50")?);
            }
        }
        let stats = measure::get_json(crowded.stats, "/api/stats")?;
        let open = number(&stats["connections"], "open")?;
        if open < f64::from(silent) {
            return Err(Failure::Environment(format!(
                "of {silent} idle connections {open} are left: {stats}\n{}",
                idle.process.said().trim_end()
            )));
        }
        let full = look(&crowded)?;
        let descriptors = measure::open_descriptors(crowded.process.pid())? as f64;
        let (driver, kernel) = (stats["driver"].as_str().unwrap_or("unknown"), stats["kernel"].as_str().unwrap_or("unknown"));
        sheet.conditions = format!(
            "one server process, driver {driver}, kernel {kernel}; {silent} silent connections from {idle_processes} processes at the lowest priority and {active} at {active_shares_per_s} shares/s together, open loop, {window_s} s after 1 s of warm-up; jobs go to everybody every 30 s; loopback, server on core {SERVER_CORE}, loadgen on core {LOAD_CORE}"
        );
        // The process is ended before its server: nobody asks what its miners say to that.
        // A million sockets take a while to close.
        for process in [idle.process, quiet.process, crowded.process] {
            process.signal("TERM");
            process.wait(PATIENCE)?;
        }

        let listed = |value: fn(&Look) -> f64| {
            let rows: Vec<String> = looks.iter().map(|look| format!("{:.0} at {}", value(look), look.connections)).collect();
            rows.join(", ")
        };
        sheet.add(
            "connection_bytes",
            &[(full.resident - empty.resident) / full.connections],
            "bytes",
            &format!(
                "(RssAnon after the runs - RssAnon of the empty server with the same tables) / connections; on the way up {}",
                listed(|look| look.resident)
            ),
        );
        let kernel = (looks[levels.len() - 1].slab - empty.slab) / looks[levels.len() - 1].connections;
        sheet.add(
            "kernel_connection_bytes",
            &[kernel],
            "bytes",
            &format!("growth of SUnreclaim in /proc/meminfo per connection: both ends are on this machine, so sockets and epoll entries of loadgen are in it, buffers with unread bytes are not; on the way up {}", listed(|look| look.slab)),
        );
        for (name, unit, value) in
            [("resident", "RssAnon", (|look| look.resident) as fn(&Look) -> f64), ("kernel", "SUnreclaim, both ends", |look| look.slab)]
        {
            let points: Vec<(f64, f64)> = looks.iter().map(|look| (look.connections, value(look))).collect();
            let (slope, base) = line(&points);
            sheet.add(
                &format!("{name}_slope_bytes"),
                &[slope],
                "bytes",
                &format!("{unit}: slope of the line through what was seen at {levels:?} connections"),
            );
            if f64::from(silent + active) < MILLION {
                let counted = format!("{unit} at 1,000,000 connections: EXTRAPOLATED by that line, not measured");
                sheet.add(&format!("{name}_million_bytes_extrapolated"), &[base + slope * MILLION], "bytes", &counted);
            }
        }
        for (name, unit, value) in [("resident", "RssAnon", full.resident), ("kernel", "SUnreclaim, both ends", full.slab)] {
            sheet.add(&format!("{name}_bytes"), &[value], "bytes", &format!("{unit} after the runs, {:.0} connections", full.connections));
        }
        sheet.add(
            "descriptors",
            &[descriptors],
            "descriptors",
            "entries of /proc/PID/fd of the server while the silent ones are connected",
        );
        sheet.add(
            "connected_s",
            &[connected_s],
            "s",
            &format!("from the start of loadgen, which spreads them over {ramp_s} s, until all silent ones were open"),
        );
        let [quiet_p99, crowded_p99] = &p99;
        sheet.add("latency_us_p50", &p50[1], "us", "of the active ones, from the time a share was due to its answer read");
        sheet.add("latency_us_p99", crowded_p99, "us", "of the active ones, from the time a share was due to its answer read");
        sheet.add("quiet_latency_us_p50", &p50[0], "us", "of the same on a server of their own");
        sheet.add("quiet_latency_us_p99", quiet_p99, "us", "of the same on a server of their own; the crowded one is stopped meanwhile");
        let ratios: Vec<f64> = crowded_p99.iter().zip(quiet_p99).map(|(crowded, quiet)| crowded / quiet).collect();
        sheet.add("p99_ratio", &ratios, "ratio", "p99 among all to p99 alone, pair by pair");
        bar(&format!("p99 among {silent} silent ones to p99 alone"), median(&ratios), None, Some(1.10));
        Ok(())
    }

    /// A failure with what the server says of itself.
    fn beside(&self, failure: Failure, server: &Server) -> Failure {
        let said = ["/api/stats", "/metrics"].map(|path| measure::get(server.stats, path).unwrap_or_else(|_| "no answer".to_owned()));
        match failure {
            Failure::Environment(what) => Failure::Environment(format!("{what}\n{}", said.join("\n"))),
            usage => usage,
        }
    }

    /// Looks at memory while the silent connections come, at each level and at the end.
    fn climb(&self, crowd: &Crowd, server: &Server, idle: &mut Load) -> Result<Vec<Look>, Failure> {
        let since = Instant::now();
        let patience = PATIENCE + Duration::from_secs(crowd.ramp_s.into());
        let mut looks: Vec<Look> = Vec::new();
        while let Some(&level) = crowd.levels.get(looks.len()) {
            let now = look(server)?;
            if now.connections >= f64::from(level) {
                println!(
                    "{} connections after {:.1} s: {:.0} bytes resident, {:.0} of slab",
                    now.connections,
                    since.elapsed().as_secs_f64(),
                    now.resident,
                    now.slab
                );
                looks.push(now);
                continue;
            }
            if since.elapsed() > patience || idle.process.ended() {
                let said = idle.process.said();
                return Err(Failure::Environment(format!(
                    "only {} of {} silent connections stand\n{}",
                    now.connections,
                    crowd.idle,
                    said.trim_end()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(looks)
    }
}

fn look(server: &Server) -> Result<Look, Failure> {
    let connections = number(&measure::get_json(server.stats, "/api/stats")?["connections"], "open")?;
    let resident = measure::resident_bytes(server.process.pid())? as f64;
    Ok(Look { connections, resident, slab: measure::unreclaimable_slab_bytes()? as f64 })
}

/// Slope and value at 0 of the line of least squares.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    let slope = covariance / variance;
    (slope, y_mean - slope * x_mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_goes_through_points_that_lie_on_one_and_between_those_that_do_not() {
        assert_eq!(line(&[(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]), (2.0, 3.0));
        let (slope, base) = line(&[(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)]);
        assert!((slope - 0.5).abs() < 1e-9 && (base - 0.5).abs() < 1e-9, "{slope} {base}");
    }
}
