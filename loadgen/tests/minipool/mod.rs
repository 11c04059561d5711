//! A pool that is slow and obvious: one thread per connection, one lock, SHA-256 by the book. It judges what loadgen sends by its own reading of
//! the rules and keeps every row; and it can be told to lie.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const MASK: u32 = 0x1fff_e000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    None,
    /// The first share that must be refused is accepted.
    AcceptsABadOne,
    /// The hundredth good share is refused.
    RefusesAGoodOne,
    /// The hundredth good share is refused as stale though its job lives.
    EndsALiveJob,
    /// The hundredth answer comes after the one behind it.
    SwapsTwoAnswers,
    /// The hundredth answer never comes.
    DropsAnAnswer,
    /// The right code with another cause.
    NamesAnotherCause,
    /// The first repeat is credited again.
    CreditsARepeat,
}

#[derive(Clone)]
pub struct Orders {
    pub lie: Lie,
    /// Leading zero bits that a hash needs: work 2^bits.
    pub bits: u32,
    /// New jobs (refresh, clean, and the same again at another difficulty, in turn) at this distance; None for one job.
    pub new_job_every: Option<Duration>,
    /// Cuts the connection at every so manieth submit of the pool.
    pub cut_every: Option<u64>,
    /// Time from the end of a job until sessions are told.
    pub slow_broadcast: Duration,
}

impl Default for Orders {
    fn default() -> Self {
        Self { lie: Lie::None, bits: 0, new_job_every: None, cut_every: None, slow_broadcast: Duration::ZERO }
    }
}

/// extranonce1, worker, job, extranonce2, ntime, nonce, version, verdict: as in the ledger.
pub type Row = [String; 8];

struct Job {
    id: String,
    number: u32,
    ntime: u32,
    live: bool,
}

struct Client {
    stream: TcpStream,
    subscribed: bool,
    extranonce1: u32,
    workers: HashSet<String>,
    /// Easiest bits that a job was sent with on this connection.
    bits: HashMap<String, u32>,
    held: Option<Vec<u8>>,
    submits: u64,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    clients: HashMap<usize, Client>,
    seen: HashSet<(u32, Vec<u8>)>,
    rows: Vec<Row>,
    sessions: u32,
    answers: u64,
    good: u64,
    lied: bool,
    bits: u32,
    bits_before: u32,
}

pub struct MiniPool {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl MiniPool {
    pub fn start(orders: Orders) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let mut state = State { bits: orders.bits, bits_before: orders.bits, ..State::default() };
        state.add_job(true);
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        if let Some(every) = orders.new_job_every {
            let (state, stop, bits, slow) = (Arc::clone(&state), Arc::clone(&stop), orders.bits, orders.slow_broadcast);
            std::thread::spawn(move || {
                for turn in 0u32.. {
                    std::thread::sleep(every);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let shared = &state;
                    let mut state = shared.lock().expect("lock");
                    match turn % 3 {
                        0 => state.add_job(false),
                        1 => state.add_job(true),
                        _ => {
                            state.bits_before = state.bits;
                            state.bits = bits + u32::from(state.bits == bits);
                        }
                    }
                    let (clean, retarget) = (turn % 3 == 1, turn % 3 == 2);
                    if clean && !slow.is_zero() {
                        drop(state);
                        std::thread::sleep(slow);
                        state = shared.lock().expect("lock");
                    }
                    state.broadcast(clean, retarget);
                }
            });
        }
        let pool = Self { address, state: Arc::clone(&state), stop: Arc::clone(&stop) };
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (state, orders) = (Arc::clone(&state), orders.clone());
                let stream = stream.expect("accept");
                std::thread::spawn(move || serve(number, stream, &state, &orders));
            }
        });
        pool
    }

    pub fn rows(&self) -> Vec<Row> {
        self.state.lock().expect("lock").rows.clone()
    }

    pub fn count(&self, verdict: &str) -> u64 {
        self.rows().iter().filter(|row| row[7] == verdict).count() as u64
    }
}

impl Drop for MiniPool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, so that its thread sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn twice(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

fn coinbase(number: u32, extranonce1: u32, extranonce2: &[u8]) -> Vec<u8> {
    [&coinb1(number)[..], &extranonce1.to_be_bytes(), extranonce2, &[0xabu8; 141]].concat()
}

fn coinb1(number: u32) -> Vec<u8> {
    [&[1u8; 70][..], &number.to_be_bytes()].concat()
}

fn siblings(number: u32) -> Vec<[u8; 32]> {
    (0..number % 4 + 1).map(|level| twice(&[number as u8, level as u8])).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str, bytes: std::ops::RangeInclusive<usize>) -> Option<Vec<u8>> {
    let even = if text.len() % 2 == 1 { format!("0{text}") } else { text.to_owned() };
    let digits = even.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || !bytes.contains(&(even.len() / 2)) {
        return None;
    }
    (0..even.len() / 2).map(|index| u8::from_str_radix(&even[2 * index..2 * index + 2], 16).ok()).collect()
}

fn word(text: &str) -> Option<u32> {
    unhex(text, 1..=4).map(|bytes| bytes.iter().fold(0, |value, &byte| (value << 8) | u32::from(byte)))
}

impl State {
    fn add_job(&mut self, clean: bool) {
        if clean {
            self.jobs.iter_mut().for_each(|job| job.live = false);
        }
        let number = self.jobs.len() as u32 + 1;
        self.jobs.push(Job { id: format!("{:08x}", number.wrapping_mul(0x9e37_79b9)), number, ntime: 0x6b00_0000 + number, live: true });
    }

    fn job_lines(&self, clean: bool, with_difficulty: bool) -> String {
        let job = self.jobs.last().expect("a job");
        let mut lines = String::new();
        if with_difficulty {
            // In the middle between two works, so that rounding cannot matter.
            let difficulty = ((1u64 << self.bits) as f64 + 0.5) * 65535.0 / (1u64 << 48) as f64;
            lines = json!({"id": null, "method": "mining.set_difficulty", "params": [difficulty]}).to_string() + "\n";
        }
        let branch: Vec<String> = siblings(job.number).iter().map(|node| hex(node)).collect();
        let notify = json!([
            job.id,
            hex(&[7; 32]),
            hex(&coinb1(job.number)),
            hex(&[0xab; 141]),
            branch,
            "20000000",
            "1b00ffff",
            format!("{:08x}", job.ntime),
            clean
        ]);
        lines + &json!({"id": null, "method": "mining.notify", "params": notify}).to_string() + "\n"
    }

    fn note_bits(&self, client: &mut Client) {
        let job = self.jobs.last().expect("a job");
        let bits = client.bits.entry(job.id.clone()).or_insert(self.bits);
        *bits = (*bits).min(self.bits).min(self.bits_before);
    }

    fn broadcast(&mut self, clean: bool, with_difficulty: bool) {
        let lines = self.job_lines(clean, with_difficulty);
        let mut clients = std::mem::take(&mut self.clients);
        for client in clients.values_mut().filter(|client| !client.workers.is_empty()) {
            self.note_bits(client);
            let _ = client.stream.write_all(lines.as_bytes());
        }
        self.clients = clients;
    }

    /// The verdict by the rules, and the row.
    fn judge(&mut self, client: &Client, params: &Value) -> Row {
        let empty = Vec::new();
        let params = params.as_array().unwrap_or(&empty);
        let text = |index: usize| params.get(index).and_then(Value::as_str);
        let fields = (text(0), text(1), text(2).and_then(|text| unhex(text, 8..=8)), text(3).and_then(word), text(4).and_then(word));
        let rolled = match params.get(5) {
            None => Some(None),
            Some(value) => value.as_str().and_then(word).map(Some),
        };
        let dash = || "-".to_owned();
        let row = |version: u32, verdict: &str| -> Row {
            let shown = |value: &Option<u32>| value.map_or_else(dash, |value| format!("{value:08x}"));
            [
                format!("{:08x}", client.extranonce1),
                fields.0.map_or_else(dash, str::to_owned),
                fields.1.map_or_else(dash, str::to_owned),
                fields.2.as_ref().map_or_else(dash, |bytes| hex(bytes)),
                shown(&fields.3),
                shown(&fields.4),
                if rolled.is_some() { format!("{version:08x}") } else { dash() },
                verdict.to_owned(),
            ]
        };
        let (Some(worker), Some(job), Some(extranonce2), Some(ntime), Some(nonce), Some(rolled)) =
            (fields.0, fields.1, fields.2.clone(), fields.3, fields.4, rolled)
        else {
            return row(0x2000_0000 | rolled.flatten().unwrap_or(0), "malformed");
        };
        let bits = rolled.unwrap_or(0);
        let version = if rolled.is_some() { (0x2000_0000 & !MASK) | bits } else { 0x2000_0000 };
        if !client.workers.contains(worker) {
            return row(version, "unauthorized");
        }
        let Some(job) = self.jobs.iter().find(|known| known.id == job && known.live) else { return row(version, "stale") };
        if !(job.ntime..=job.ntime + 7200).contains(&ntime) {
            return row(version, "bad_time");
        }
        if bits & !MASK != 0 {
            return row(version, "bad_version");
        }
        let root = siblings(job.number)
            .iter()
            .fold(twice(&coinbase(job.number, client.extranonce1, &extranonce2)), |root, sibling| twice(&[root, *sibling].concat()));
        let header =
            [&version.to_le_bytes()[..], &[7; 32], &root, &ntime.to_le_bytes(), &0x1b00_ffff_u32.to_le_bytes(), &nonce.to_le_bytes()]
                .concat();
        let key = (job.number, [&client.extranonce1.to_be_bytes()[..], &header].concat());
        if self.seen.contains(&key) {
            return row(version, "duplicate");
        }
        let hash = twice(&header);
        let leading = hash
            .iter()
            .rev()
            .fold((0, true), |(bits, open), byte| if open { (bits + byte.leading_zeros(), *byte == 0) } else { (bits, false) })
            .0;
        if leading < client.bits.get(&job.id).copied().unwrap_or(self.bits) {
            return row(version, "low_difficulty");
        }
        self.seen.insert(key);
        row(version, "accepted")
    }
}

fn answer_line(id: &Value, verdict: &str) -> Vec<u8> {
    let (code, text) = match verdict {
        "accepted" => return (json!({"id": id, "result": true, "error": null}).to_string() + "\n").into_bytes(),
        "stale" => (21, "job not found".to_owned()),
        "duplicate" => (22, "duplicate share".to_owned()),
        "low_difficulty" => (23, "low difficulty share".to_owned()),
        "unauthorized" => (24, "unauthorized worker".to_owned()),
        "not_subscribed" => (25, "not subscribed".to_owned()),
        cause => (20, format!("{cause}: as the rules say")),
    };
    (json!({"id": id, "result": null, "error": [code, text, null]}).to_string() + "\n").into_bytes()
}

fn serve(number: usize, stream: TcpStream, state: &Mutex<State>, orders: &Orders) {
    stream.set_nodelay(true).expect("nodelay");
    let reader = BufReader::new(stream.try_clone().expect("clone"));
    {
        let mut state = state.lock().expect("lock");
        state.sessions += 1;
        let extranonce1 = 0xe000_0000 + state.sessions;
        let client =
            Client { stream, subscribed: false, extranonce1, workers: HashSet::new(), bits: HashMap::new(), held: None, submits: 0 };
        state.clients.insert(number, client);
    }
    for line in reader.lines() {
        let Ok(line) = line else { break };
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let mut state = state.lock().expect("lock");
        let Some(mut client) = state.clients.remove(&number) else { break };
        let alive = on_message(&mut state, &mut client, &message, orders);
        if !alive {
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
            break;
        }
        state.clients.insert(number, client);
    }
    state.lock().expect("lock").clients.remove(&number);
}

fn on_message(state: &mut State, client: &mut Client, message: &Value, orders: &Orders) -> bool {
    let id = &message["id"];
    let send = |client: &mut Client, line: &[u8]| client.stream.write_all(line).is_ok();
    match message["method"].as_str().unwrap_or_default() {
        "mining.configure" => {
            let result = json!({"version-rolling": true, "version-rolling.mask": format!("{MASK:08x}")});
            send(client, (json!({"id": id, "result": result, "error": null}).to_string() + "\n").as_bytes())
        }
        "mining.subscribe" => {
            client.subscribed = true;
            let result = json!([[["mining.notify", "1"]], format!("{:08x}", client.extranonce1), 8]);
            send(client, (json!({"id": id, "result": result, "error": null}).to_string() + "\n").as_bytes())
        }
        "mining.authorize" => {
            let first = client.workers.is_empty();
            client.workers.insert(message["params"][0].as_str().expect("worker").to_owned());
            let mut lines = answer_line(id, "accepted");
            if first {
                state.note_bits(client);
                lines.extend_from_slice(state.job_lines(true, true).as_bytes());
            }
            send(client, &lines)
        }
        "mining.submit" if !client.subscribed => send(client, &answer_line(id, "not_subscribed")),
        "mining.submit" => {
            let row = state.judge(client, &message["params"]);
            let mut verdict = row[7].clone();
            state.rows.push(row);
            state.answers += 1;
            client.submits += 1;
            state.good += u64::from(verdict == "accepted");
            if orders.cut_every.is_some_and(|every| state.answers.is_multiple_of(every)) {
                return false;
            }
            let due = match orders.lie {
                Lie::AcceptsABadOne => verdict != "accepted" && verdict != "duplicate",
                Lie::RefusesAGoodOne | Lie::EndsALiveJob => verdict == "accepted" && state.good == 100,
                Lie::NamesAnotherCause => verdict == "bad_time",
                Lie::CreditsARepeat => verdict == "duplicate",
                // In the middle of a window of 8: behind its last answer nothing would come.
                Lie::SwapsTwoAnswers | Lie::DropsAnAnswer => state.answers >= 100 && client.submits % 8 == 3,
                Lie::None => false,
            };
            let mut line = None;
            if due && !state.lied {
                state.lied = true;
                match orders.lie {
                    Lie::AcceptsABadOne | Lie::CreditsARepeat => verdict = "accepted".into(),
                    Lie::RefusesAGoodOne => verdict = "low_difficulty".into(),
                    Lie::EndsALiveJob => verdict = "stale".into(),
                    Lie::NamesAnotherCause => verdict = "malformed".into(),
                    Lie::SwapsTwoAnswers => {
                        client.held = Some(answer_line(id, &verdict));
                        return true;
                    }
                    Lie::DropsAnAnswer => return true,
                    Lie::None => {}
                }
            } else {
                line = client.held.take();
            }
            let mut lines = answer_line(id, &verdict);
            lines.extend(line.unwrap_or_default());
            send(client, &lines)
        }
        other => panic!("loadgen sent {other}"),
    }
}
