//! What the tests that kill servers share: miners that go on through every kill, one ledger over all boots, and kills at named points until each was met as often as it is to be.
use super::{Config, Server, Site, eventually, ledger_counts, port_out_of_the_way};
use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::random;
use loadgen::totals::Totals;
use otedama_primitives::ShareStatus;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Connections of the miners.
pub const CONNECTIONS: usize = 32;
/// So many boots more than it was met a point may be missed by: this machine may have other work.
const MISSES_MAX: u32 = 10;

/// A site whose servers all get the same port, with jobs and blocks that change all the time.
pub fn site(clickhouse: String) -> Site {
    let listen = SocketAddr::from(([127, 0, 0, 1], port_out_of_the_way()));
    Site::new(Config { listen, clickhouse, refresh_s: 1, block_s: 3, ..Config::default() })
}

/// Where the random choices of a run begin: `OTEDAMA_KILL_SEED`, or another one each time.
pub fn seed() -> u64 {
    let seed = std::env::var("OTEDAMA_KILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("kill seed {seed}");
    seed
}

/// Miners that outlive the servers of a site.
pub struct Miners {
    farm: Farm,
    stop: Arc<AtomicBool>,
}

impl Miners {
    /// Starts a server and its miners, one share in ten bad and one in ten repeated, and waits until a share is accepted. `change` has the last word on what they do.
    pub fn start(site: &Site, change: impl FnOnce(&mut FarmConfig)) -> (Self, Server) {
        let mut config = FarmConfig::new(site.config.listen);
        config.connections = CONNECTIONS;
        config.ledger = LedgerSink::File(site.ledger());
        config.behaviour.bad_every = 10;
        config.behaviour.dup_every = 10;
        change(&mut config);
        let first = site.serve();
        let stop = Arc::new(AtomicBool::new(false));
        let miners = Self { farm: Farm::start(config, Arc::clone(&stop)).expect("farm"), stop };
        miners.until_accepted(0, "the first server serves");
        (miners, first)
    }

    /// Waits until more than `further` shares are accepted from now on.
    pub fn until_accepted(&self, further: u64, what: &str) {
        let accepted = || self.farm.live().accepted.load(Ordering::Relaxed);
        let before = accepted();
        assert!(eventually(|| accepted() > before + further), "{what}: no share is accepted any more");
    }

    /// Lets the last server of the site serve, ends both, and holds the miners' count, their ledger and the log against each other: lost 0, doubled 0. Gives the count, and the rows
    /// of the log by status.
    pub fn end(self, site: &Site, last: Server) -> (Totals, [u64; 9]) {
        self.until_accepted(1000, "the last server");
        self.stop.store(true, Ordering::Relaxed);
        let totals = self.farm.join().expect("farm").totals;
        last.stop();
        site.assert_no_panic();
        assert_eq!(totals.wrong, 0, "{:#?}", totals.wrong_kept);
        let (ledger, unanswered) = ledger_counts(&site.ledger());
        assert_eq!((ledger, unanswered), (totals.by_status, totals.unanswered), "the ledger has what the farm counted");
        let logged = site.verified_clean();
        for status in ShareStatus::ALL {
            // What was logged and not answered is in the ledger as unanswered, whatever the verdict on it was.
            let (told, written) = (ledger[status as usize], logged[status as usize]);
            assert!(told <= written && written <= told + unanswered, "{}: {told} answered, {written} logged", status.label());
        }
        assert!(logged.iter().sum::<u64>() <= ledger.iter().sum::<u64>() + unanswered, "every row was sent by a miner");
        (totals, logged)
    }
}

/// How boots that met a point ended, and those that did not.
#[derive(Clone, Copy, Default, Debug)]
pub struct Kills {
    pub at_the_point: u32,
    pub from_outside: u32,
}

/// A boot that is to kill itself: at the n-th pass of its point, with these variables beside, within this time.
pub struct Armed {
    pub pass: u64,
    pub variables: Vec<(&'static str, String)>,
    pub patience: Duration,
}

/// `each` kills at every point of `points`, in a random order. A boot that does not come to its point is killed from outside, and the point has another try. `between` has its turn
/// after every boot.
pub fn at_points(
    site: &Site,
    points: &[&'static str],
    each: u32,
    chance: &mut u64,
    tally: &mut BTreeMap<&'static str, Kills>,
    mut arm: impl FnMut(&'static str, &mut u64) -> Armed,
    mut between: impl FnMut(&mut u64),
) {
    let mut left: Vec<&'static str> = points.iter().flat_map(|&point| std::iter::repeat_n(point, each as usize)).collect();
    while !left.is_empty() {
        let drawn = (random::next(chance) % left.len() as u64) as usize;
        let point = left[drawn];
        let Armed { pass, variables, patience } = arm(point, chance);
        let at = format!("{point}@{pass}");
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).chain([("OTEDAMA_KILL_AT", at.as_str())]).collect();
        let kills = tally.entry(point).or_default();
        if site.spawn_with(&variables).killed_itself_within(patience) {
            kills.at_the_point += 1;
            left.swap_remove(drawn);
        } else {
            kills.from_outside += 1;
            assert!(kills.from_outside <= kills.at_the_point + MISSES_MAX, "{at} is out of this load's reach: {kills:?}");
        }
        between(chance);
    }
}
