//! The configuration: every key with its default, unit and meaning stands once, in [`KEYS`].
//!
//! From that table come the parser, the refusals, `config init`, `config show --origin` and `config docs`; no second list can
//! drift from it. The file is TOML; every key can also be given as `OTEDAMA_SECTION__KEY`, which wins over the file.
//!
//! A mistake is answered with its line, the line's text, a caret and, where something close exists, "did you mean". All mistakes of a
//! file are told at once.
//!
//! [`Config::load`] judges each key alone; [`Config::validate`] judges them together, and says which keys are the contract of a later
//! release and not built yet.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;
use toml::de::{DeTable, DeValue};

/// Every environment variable of ours starts with this.
pub const ENV_PREFIX: &str = "OTEDAMA_";

/// A config file is a page; something larger is another file given by mistake.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Bitcoin's limit on the script of a coinbase input (consensus: bad-cb-length).
pub const COINBASE_SCRIPT_BYTES_MAX: usize = 100;

/// Smallest and largest difficulty that is served; their work fits a u64.
const DIFFICULTY: (f64, f64) = (otedama_primitives::DIFFICULTY_MIN, otedama_primitives::DIFFICULTY_MAX);

/// Bytes of the coinbase input's script at heights to 8,388,607: height push (4), job number push (9), one push of both extranonces, tag. The same sum as
/// chain's own, which refuses what is too long once more.
pub fn coinbase_script_bytes(tag_bytes: usize, extranonce2_bytes: u8) -> usize {
    4 + 9 + 1 + 4 + usize::from(extranonce2_bytes) + tag_bytes
}

/// A type whose values are a few words.
trait Word: Sized + Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl Word for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $name::$variant),)+];
        }

        impl $name {
            /// The word as it stands in the config.
            #[allow(dead_code, reason = "one macro makes all of them; some words are only read")]
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
        }
    };
}

words! {
    /// `chain.network`.
    Network {
        /// Bitcoin's main network.
        #[default]
        Main = "main",
        /// The third test network.
        Testnet3 = "testnet3",
        /// The fourth test network.
        Testnet4 = "testnet4",
        /// The signed test network.
        Signet = "signet",
        /// A private network for tests.
        Regtest = "regtest",
    }
}

words! {
    /// `log.ack`: when the answer to a share is released.
    Ack {
        /// Before the append.
        Memory = "memory",
        /// After the append: survives the process.
        #[default]
        Process = "process",
        /// After a group fdatasync: survives power loss.
        Disk = "disk",
    }
}

words! {
    /// `log.row`: what a row keeps.
    RowLayout {
        /// Without ntime, version and extranonce2.
        Lean = "lean",
        /// All that judging the share again needs.
        #[default]
        Replayable = "replayable",
        /// With the hash.
        Full = "full",
        /// Sums per worker and second; refusals and candidates raw.
        Rollup = "rollup",
    }
}

words! {
    /// `log.when_full`: what happens when `max_bytes` is reached.
    WhenFull {
        /// Shed new connections, then answer shares with code 20 "log full".
        #[default]
        Refuse = "refuse",
        /// Keep sums only.
        Rollup = "rollup",
    }
}

words! {
    /// `layout.driver`: how sockets are read.
    Driver {
        /// The best that the host allows.
        #[default]
        Auto = "auto",
        /// Readiness polling.
        Mio = "mio",
        /// io_uring.
        Uring = "uring",
    }
}

words! {
    /// `layout.isa`: the instruction set of the hash kernels.
    Isa {
        /// The best that the CPU runs.
        #[default]
        Auto = "auto",
        /// Plain Rust, on every CPU.
        Portable = "portable",
        /// SHA extensions.
        Shani = "shani",
        /// AVX2.
        Avx2 = "avx2",
        /// AVX-512.
        Avx512 = "avx512",
    }
}

/// Cores of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cores {
    /// Laid out by the number of cores.
    #[default]
    Auto,
    /// These cores, in the order given, each once.
    List(Vec<usize>),
}

/// A block of addresses, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// First address of the block.
    pub address: IpAddr,
    /// Leading bits that are fixed: 0..=32 for IPv4, 0..=128 for IPv6.
    pub prefix_bits: u8,
}

impl Cidr {
    fn parse(text: &str) -> Result<Cidr, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("found \"{text}\""))?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => width,
            Some(bits) => bits
                .parse::<u8>()
                .ok()
                .filter(|bits| *bits <= width)
                .ok_or_else(|| format!("found \"{text}\", whose prefix is not 0 to {width}"))?,
        };
        let host_bits = u32::from(width - prefix_bits);
        let first = match address {
            IpAddr::V4(ip) => IpAddr::V4(u32::MAX.checked_shl(host_bits).map_or(0, |mask| ip.to_bits() & mask).into()),
            IpAddr::V6(ip) => IpAddr::V6(u128::MAX.checked_shl(host_bits).map_or(0, |mask| ip.to_bits() & mask).into()),
        };
        if first == address {
            Ok(Cidr { address, prefix_bits })
        } else {
            Err(format!("found \"{text}\"; did you mean \"{first}/{prefix_bits}\"?"))
        }
    }
}

/// A text that never reaches a log: `Debug` prints stars.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "\"***\"" })
    }
}

/// `[pool]`: who this server is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pool {
    /// Name of the pool; part of every worker's number, so it must not change.
    pub name: String,
    /// Number of this server in the pool, 0..=255.
    pub instance: u8,
}

/// `[stratum]`: the miners' side.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stratum {
    /// Addresses to listen on; at least one.
    pub listen: Vec<SocketAddr>,
    /// Difficulty of a session's first job.
    pub difficulty: f64,
    /// Connections held at once.
    pub max_connections: u32,
    /// Workers that one connection may authorize.
    pub max_workers_per_connection: u32,
    /// Version bits that miners may roll (BIP320), as a number.
    pub version_mask: u32,
    /// Bytes of extranonce2, 4..=8.
    pub extranonce2_bytes: u8,
    /// TLS addresses; empty in this release.
    pub tls_listen: Vec<SocketAddr>,
    /// PEM certificate chain; `None` in this release.
    pub tls_cert: Option<PathBuf>,
    /// PEM key; `None` in this release.
    pub tls_key: Option<PathBuf>,
    /// Balancers whose PROXY header is believed; empty in this release.
    pub proxy_from: Vec<Cidr>,
}

/// `[vardiff]`: difficulty by share rate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vardiff {
    /// Whether difficulty follows the share rate.
    pub enabled: bool,
    /// Shares per minute and session that it aims at.
    pub target_shares_per_minute: f64,
    /// Lowest difficulty.
    pub min: f64,
    /// Highest difficulty.
    pub max: f64,
}

/// `[chain]`: the node and the coinbase.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
    /// Coin, in lower case.
    pub coin: String,
    /// Network of the coin.
    pub network: Network,
    /// Nodes in the order of preference, or the one word `practice`.
    pub rpc: Vec<String>,
    /// RPC user; empty without one.
    pub user: String,
    /// RPC password.
    pub password: Secret,
    /// The node's cookie file.
    pub cookie_file: Option<PathBuf>,
    /// ZMQ endpoints; empty in this release.
    pub zmq: Vec<String>,
    /// Milliseconds between two looks at the node where longpoll does not work.
    pub poll_ms: u64,
    /// Seconds after which a job is renewed.
    pub refresh_s: u64,
    /// Where blocks pay to; may be empty on the practice chain alone.
    pub payout_address: String,
    /// Text in the coinbase of every block.
    pub coinbase_tag: String,
    /// Seconds between two blocks of the practice chain that no miner found.
    pub practice_block_s: u64,
}

impl Chain {
    /// Whether the built-in practice chain takes the node's place.
    pub fn is_practice(&self) -> bool {
        self.rpc.iter().any(|url| url == PRACTICE)
    }
}

const PRACTICE: &str = "practice";

/// `[log]`: the share log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShareLog {
    /// Its folder.
    pub dir: PathBuf,
    /// When an answer is released.
    pub ack: Ack,
    /// What a row keeps.
    pub row: RowLayout,
    /// Rows of a full segment.
    pub segment_rows: u32,
    /// Milliseconds after a segment's first row when it is sealed, with a ClickHouse configured.
    pub seal_after_ms: u64,
    /// Bytes that the folder may take.
    pub max_bytes: u64,
    /// Seconds that a segment is kept at least, room permitting.
    pub keep_s: u64,
    /// Seconds that a segment is kept after it was shipped.
    pub keep_shipped_s: u64,
    /// Seconds after its last row when a segment that nobody waits for is compressed.
    pub compress_after_s: u64,
    /// What happens when `max_bytes` is reached.
    pub when_full: WhenFull,
}

/// `[clickhouse]`: where segments are shipped to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClickHouse {
    /// HTTP address; `None` ships nothing.
    pub url: Option<String>,
    /// Database.
    pub database: String,
    /// User; empty for the server's default.
    pub user: String,
    /// Password.
    pub password: Secret,
    /// PEM of the authority that signed the server's certificate; `None` in this release.
    pub ca_file: Option<PathBuf>,
    /// Whether missing tables are made at start.
    pub create_tables: bool,
    /// Segments posted at once, 1..=8.
    pub inserts_in_flight: u8,
}

/// `[limits]`: what one miner may cost.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MinerLimits {
    /// Longest line in bytes.
    pub line_bytes: u32,
    /// Seconds within which a connection must authorize.
    pub authorize_within_s: u64,
    /// Refused shares a second and session; `u32::MAX` (0 in the file) is no limit.
    pub refused_per_s: u32,
    /// Milliseconds within which bytes are to be read; beyond that is overload. `u64::MAX` (0 in the file) is never.
    pub read_within_ms: u64,
    /// New connections a second and source (an IPv4 address or an IPv6 /64); `u32::MAX` (0 in the file) is no limit.
    pub connects_per_ip_per_s: u32,
    /// Where not empty, only these may connect.
    pub allow: Vec<Cidr>,
    /// These may not connect; wins over `allow`.
    pub deny: Vec<Cidr>,
}

/// `[stats]`: the page and the API.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Address to listen on.
    pub listen: SocketAddr,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats { listen: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }
}

/// `[layout]`: which core does what.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    /// Cores of the net stages, one stage a core.
    pub net: Cores,
    /// Cores of the validate stages, one stage a core.
    pub validate: Cores,
    /// Core of the log stage.
    pub log: Cores,
    /// Cores of chain, sealer and shipper.
    pub control: Cores,
    /// Cores of the stats page.
    pub stats: Cores,
    /// How sockets are read.
    pub driver: Driver,
    /// Instruction set of the hash kernels.
    pub isa: Isa,
}

/// The whole configuration, every key in its range.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[pool]`.
    pub pool: Pool,
    /// `[stratum]`.
    pub stratum: Stratum,
    /// `[vardiff]`.
    pub vardiff: Vardiff,
    /// `[chain]`.
    pub chain: Chain,
    /// `[log]`.
    pub log: ShareLog,
    /// `[clickhouse]`.
    pub clickhouse: ClickHouse,
    /// `[limits]`.
    pub limits: MinerLimits,
    /// `[stats]`.
    pub stats: Stats,
    /// `[layout]`.
    pub layout: Layout,
    /// Where each value came from, by `section.key`; its text as TOML.
    settings: BTreeMap<String, Setting>,
}

#[derive(Debug, Clone, PartialEq)]
struct Setting {
    /// As TOML; stars for a secret.
    value: String,
    origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A line of the file.
    File {
        /// Name of the file as it was given.
        file: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(
        /// Its name.
        String,
    ),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line } => write!(f, "{file}:{line}"),
            Origin::Env(name) => f.write_str(name),
        }
    }
}

/// A section of the file, in the order of `config init`.
struct Section {
    name: &'static str,
    about: &'static str,
}

const SECTIONS: [Section; 9] = [
    Section { name: "pool", about: "Who this server is." },
    Section { name: "stratum", about: "The miners' side." },
    Section { name: "vardiff", about: "Difficulty by share rate." },
    Section {
        name: "chain",
        about: "The node, and what the coinbase says. rpc = [\"practice\"] takes a built-in chain instead of a node.",
    },
    Section { name: "log", about: "The share log: every share, accepted or refused, once." },
    Section { name: "clickhouse", about: "Where sealed segments are shipped to." },
    Section { name: "limits", about: "What one miner may cost." },
    Section { name: "stats", about: "The stats page, its API and the metrics." },
    Section { name: "layout", about: "Which core does what: \"auto\", or cores as \"1,2-6\"." },
];

/// One key: its default, its meaning, and how a value becomes a field.
struct Key {
    section: &'static str,
    name: &'static str,
    /// As TOML.
    default: &'static str,
    /// Completes "must be": type, range and unit.
    expects: &'static str,
    about: &'static str,
    /// A secret is never printed.
    secret: bool,
    /// Fails with what was found instead.
    set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
}

impl Key {
    fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    fn env(&self) -> String {
        format!("{ENV_PREFIX}{}__{}", self.section.to_uppercase(), self.name.to_uppercase())
    }

    fn refusal(&self, found: &str) -> String {
        let found = if self.secret { "found something else (not shown)" } else { found };
        format!("`{}` must be {}; {found}", self.path(), self.expects)
    }
}

const fn key(
    section: &'static str,
    name: &'static str,
    default: &'static str,
    expects: &'static str,
    about: &'static str,
    set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
) -> Key {
    Key { section, name, default, expects, about, secret: false, set }
}

const fn secret(key: Key) -> Key {
    Key { secret: true, ..key }
}

const ADDRESSES: &str = "a list of IP:port addresses, such as [\"0.0.0.0:3333\"]";
const BLOCKS: &str = "a list of addresses or blocks, such as [\"10.0.0.0/8\"]";
const CORES: &str = "\"auto\" or a list of cores as text, such as \"1,2-6\"";
const DIFFICULTIES: &str = "a number from 2.4e-10 to 4e9";
const PATH: &str = "a path as text, or empty";
const TEXT: &str = "a text";

/// Every key there is, section by section in the order of `config init`.
static KEYS: &[Key] = &[
    key(
        "pool",
        "name",
        "\"otedama\"",
        "1 to 64 letters, digits, `.`, `_` or `-` as text",
        "Name of the pool. Part of every worker's number: keep it for ever, and the same on every server of the pool.",
        |c, v| {
            c.pool.name = v.text()?;
            let plain = |ch: char| ch.is_ascii_alphanumeric() || "._-".contains(ch);
            v.check((1..=64).contains(&c.pool.name.len()) && c.pool.name.chars().all(plain))
        },
    ),
    key(
        "pool",
        "instance",
        "0",
        "a whole number from 0 to 255",
        "Number of this server, unique among the running servers of one pool.",
        |c, v| {
            c.pool.instance = v.whole(0, 255)? as u8;
            Ok(())
        },
    ),
    key(
        "stratum",
        "listen",
        "[\"0.0.0.0:3333\"]",
        "a list of at least one IP:port address, such as [\"0.0.0.0:3333\"]",
        "Where miners connect to (Stratum V1 over TCP).",
        |c, v| {
            c.stratum.listen = v.addresses()?;
            v.check(!c.stratum.listen.is_empty())
        },
    ),
    key("stratum", "difficulty", "1024.0", DIFFICULTIES, "Difficulty of a session's first job.", |c, v| {
        c.stratum.difficulty = v.number(DIFFICULTY.0, DIFFICULTY.1)?;
        Ok(())
    }),
    key(
        "stratum",
        "max_connections",
        "10000",
        "a whole number from 1 to 1000000",
        "Connections held at once; more are refused. The process' file limit must allow them (`otedama tune check`).",
        |c, v| {
            c.stratum.max_connections = v.whole(1, 1_000_000)? as u32;
            Ok(())
        },
    ),
    key(
        "stratum",
        "max_workers_per_connection",
        "4096",
        "a whole number from 1 to 65536",
        "Workers that one connection may authorize, for proxies.",
        |c, v| {
            c.stratum.max_workers_per_connection = v.whole(1, 65_536)? as u32;
            Ok(())
        },
    ),
    key(
        "stratum",
        "version_mask",
        "\"1fffe000\"",
        "a mask of up to 8 hex digits as text without the top three bits, such as \"1fffe000\"",
        "Version bits that miners may roll (BIP320); \"0\" for none.",
        |c, v| {
            let text = v.text()?;
            let digits = text.strip_prefix("0x").unwrap_or(&text);
            let plain = (1..=8).contains(&digits.len()) && digits.chars().all(|ch| ch.is_ascii_hexdigit());
            v.check(plain)?;
            c.stratum.version_mask = u32::from_str_radix(digits, 16).map_err(|_| v.found())?;
            // The top three bits are 001 in every version since BIP9.
            v.check(c.stratum.version_mask >> 29 == 0)
        },
    ),
    key(
        "stratum",
        "extranonce2_bytes",
        "8",
        "a whole number from 4 to 8",
        "Bytes that a miner rolls in the coinbase; 8 leaves room for proxies to split.",
        |c, v| {
            c.stratum.extranonce2_bytes = v.whole(4, 8)? as u8;
            Ok(())
        },
    ),
    key("stratum", "tls_listen", "[]", ADDRESSES, "Where miners connect to over TLS.", |c, v| {
        c.stratum.tls_listen = v.addresses()?;
        Ok(())
    }),
    key("stratum", "tls_cert", "\"\"", PATH, "PEM file with the certificate chain.", |c, v| {
        c.stratum.tls_cert = v.path()?;
        Ok(())
    }),
    key("stratum", "tls_key", "\"\"", PATH, "PEM file with the key.", |c, v| {
        c.stratum.tls_key = v.path()?;
        Ok(())
    }),
    key("stratum", "proxy_from", "[]", BLOCKS, "Load balancers whose PROXY protocol header is believed.", |c, v| {
        c.stratum.proxy_from = v.blocks()?;
        Ok(())
    }),
    key(
        "vardiff",
        "enabled",
        "true",
        "true or false",
        "Whether difficulty follows each session's share rate; false keeps stratum.difficulty.",
        |c, v| {
            c.vardiff.enabled = v.flag()?;
            Ok(())
        },
    ),
    key("vardiff", "target_shares_per_minute", "8.0", "a number from 0.1 to 6000", "Shares per minute and session to aim at.", |c, v| {
        c.vardiff.target_shares_per_minute = v.number(0.1, 6000.0)?;
        Ok(())
    }),
    key("vardiff", "min", "1.0", DIFFICULTIES, "Lowest difficulty; stratum.difficulty where that is lower.", |c, v| {
        c.vardiff.min = v.number(DIFFICULTY.0, DIFFICULTY.1)?;
        Ok(())
    }),
    key("vardiff", "max", "4e9", DIFFICULTIES, "Highest difficulty.", |c, v| {
        c.vardiff.max = v.number(DIFFICULTY.0, DIFFICULTY.1)?;
        Ok(())
    }),
    key("chain", "coin", "\"bitcoin\"", "a coin's name as text", "Coin to mine.", |c, v| {
        c.chain.coin = v.text()?;
        v.check(!c.chain.coin.is_empty())
    }),
    key(
        "chain",
        "network",
        "\"main\"",
        "\"main\", \"testnet3\", \"testnet4\", \"signet\" or \"regtest\"",
        "Network of the coin; the payout address must belong to it.",
        |c, v| {
            c.chain.network = v.word()?;
            Ok(())
        },
    ),
    key(
        "chain",
        "rpc",
        "[\"http://127.0.0.1:8332\"]",
        "a list of http://host:port addresses, or [\"practice\"]",
        "Nodes in the order of preference. [\"practice\"] is a built-in chain with real proof of work and no value.",
        |c, v| {
            c.chain.rpc = v.texts()?;
            v.check(!c.chain.rpc.is_empty())?;
            if c.chain.is_practice() {
                return if c.chain.rpc.len() == 1 { Ok(()) } else { Err("found \"practice\" beside a node; it stands alone".to_owned()) };
            }
            c.chain.rpc.iter().try_for_each(|url| http_url(url))
        },
    ),
    key("chain", "user", "\"\"", TEXT, "RPC user, where the node has no cookie file to read.", |c, v| {
        c.chain.user = v.text()?;
        Ok(())
    }),
    secret(key("chain", "password", "\"\"", TEXT, "RPC password; better given by environment than in a file.", |c, v| {
        c.chain.password = Secret(v.text()?);
        Ok(())
    })),
    key("chain", "cookie_file", "\"\"", PATH, "The node's cookie file, read anew when the node restarts.", |c, v| {
        c.chain.cookie_file = v.path()?;
        Ok(())
    }),
    key("chain", "zmq", "[]", "a list of tcp://host:port addresses", "The node's block announcements (zmqpubhashblock).", |c, v| {
        c.chain.zmq = v.texts()?;
        Ok(())
    }),
    key(
        "chain",
        "poll_ms",
        "500",
        "a whole number of milliseconds from 10 to 60000",
        "Time between two looks at the tip where longpoll does not work.",
        |c, v| {
            c.chain.poll_ms = v.whole(10, 60_000)?;
            Ok(())
        },
    ),
    key(
        "chain",
        "refresh_s",
        "30",
        "a whole number of seconds from 1 to 600",
        "Age at which a job is renewed, to take in new transactions.",
        |c, v| {
            c.chain.refresh_s = v.whole(1, 600)?;
            Ok(())
        },
    ),
    key(
        "chain",
        "payout_address",
        "\"\"",
        "an address of the network as text",
        "Where blocks pay to. Required, but for the practice chain.",
        |c, v| {
            c.chain.payout_address = v.text()?;
            v.check(c.chain.payout_address.len() <= 100 && c.chain.payout_address.chars().all(|ch| ch.is_ascii_alphanumeric()))
        },
    ),
    key(
        "chain",
        "coinbase_tag",
        "\"/otedama/\"",
        "a text of at most 100 printable ASCII characters",
        "What the coinbase of every block says; the whole script must stay within 100 bytes.",
        |c, v| {
            c.chain.coinbase_tag = v.text()?;
            v.check(
                c.chain.coinbase_tag.len() <= COINBASE_SCRIPT_BYTES_MAX && c.chain.coinbase_tag.bytes().all(|b| (0x20..0x7f).contains(&b)),
            )
        },
    ),
    key(
        "chain",
        "practice_block_s",
        "600",
        "a whole number of seconds from 1 to 86400",
        "Practice chain: time after which a block appears from elsewhere.",
        |c, v| {
            c.chain.practice_block_s = v.whole(1, 86_400)?;
            Ok(())
        },
    ),
    key("log", "dir", "\"data/log\"", "a path as text", "Folder of the share log.", |c, v| {
        c.log.dir = v.path()?.ok_or_else(|| v.found())?;
        Ok(())
    }),
    key(
        "log",
        "ack",
        "\"process\"",
        "\"memory\", \"process\" or \"disk\"",
        "When a share is answered: before it is in the journal, once it is there (survives the process), or once it is on disk (survives power loss).",
        |c, v| {
            c.log.ack = v.word()?;
            Ok(())
        },
    ),
    key(
        "log",
        "row",
        "\"replayable\"",
        "\"lean\", \"replayable\", \"full\" or \"rollup\"",
        "What a row keeps. Replayable rows can be judged again, lean ones lack what made the header, full ones have the hash; rollup sums accepted shares by worker and second.",
        |c, v| {
            c.log.row = v.word()?;
            Ok(())
        },
    ),
    key("log", "segment_rows", "524288", "a whole number from 1 to 524288", "Rows of a full segment.", |c, v| {
        c.log.segment_rows = v.whole(1, 524_288)? as u32;
        Ok(())
    }),
    key(
        "log",
        "seal_after_ms",
        "1000",
        "a whole number of milliseconds from 10 to 3600000",
        "With ClickHouse: time from a segment's first row until it is sealed and shipped. Without: 10 minutes.",
        |c, v| {
            c.log.seal_after_ms = v.whole(10, 3_600_000)?;
            Ok(())
        },
    ),
    key(
        "log",
        "max_bytes",
        "\"64 GiB\"",
        "a size of at least 64 MiB, such as \"64 GiB\"",
        "Room that the log may take. `otedama check` prints the hours it lasts.",
        |c, v| {
            c.log.max_bytes = v.size()?;
            v.check(c.log.max_bytes >= 64 << 20)
        },
    ),
    key(
        "log",
        "keep",
        "\"7d\"",
        "a time such as \"7d\", \"12h\", \"30m\" or \"10s\"",
        "How long segments are kept for readers, room permitting.",
        |c, v| {
            c.log.keep_s = v.seconds()?;
            Ok(())
        },
    ),
    key(
        "log",
        "keep_shipped",
        "\"1h\"",
        "a time such as \"7d\", \"12h\", \"30m\" or \"10s\"",
        "How long a segment is kept after ClickHouse has it.",
        |c, v| {
            c.log.keep_shipped_s = v.seconds()?;
            Ok(())
        },
    ),
    key(
        "log",
        "compress_after",
        "\"1h\"",
        "a time such as \"7d\", \"12h\", \"30m\" or \"10s\"",
        "Age at which a segment (with ClickHouse: one that it has) is compressed to .native.zst, which every command and ClickHouse's file() read. Longer than keep: never.",
        |c, v| {
            c.log.compress_after_s = v.seconds()?;
            Ok(())
        },
    ),
    key(
        "log",
        "when_full",
        "\"refuse\"",
        "\"refuse\" or \"rollup\"",
        "At max_bytes: refuse new connections, then shares; or keep sums only in the last eighth of it, before that. Blocks are submitted either way.",
        |c, v| {
            c.log.when_full = v.word()?;
            Ok(())
        },
    ),
    key(
        "clickhouse",
        "url",
        "\"\"",
        "an http://host:port address as text, or empty",
        "HTTP interface of the server; empty ships nothing.",
        |c, v| {
            let url = v.text()?;
            c.clickhouse.url = if url.is_empty() {
                None
            } else {
                http_url(&url)?;
                Some(url)
            };
            Ok(())
        },
    ),
    key("clickhouse", "database", "\"otedama\"", "a name of letters, digits and `_` as text", "Database that holds the tables.", |c, v| {
        c.clickhouse.database = v.text()?;
        let name = &c.clickhouse.database;
        let plain = name.chars().all(|ch| ch.is_ascii_alphanumeric() || ch == '_');
        v.check((1..=64).contains(&name.len()) && plain && !name.starts_with(|ch: char| ch.is_ascii_digit()))
    }),
    key("clickhouse", "user", "\"\"", TEXT, "User; empty for the server's default.", |c, v| {
        c.clickhouse.user = v.text()?;
        Ok(())
    }),
    secret(key("clickhouse", "password", "\"\"", TEXT, "Password; better given by environment than in a file.", |c, v| {
        c.clickhouse.password = Secret(v.text()?);
        Ok(())
    })),
    key("clickhouse", "ca_file", "\"\"", PATH, "PEM file of the authority that signed the server's certificate.", |c, v| {
        c.clickhouse.ca_file = v.path()?;
        Ok(())
    }),
    key(
        "clickhouse",
        "create_tables",
        "true",
        "true or false",
        "Whether missing tables are made at start (else: `otedama schema`).",
        |c, v| {
            c.clickhouse.create_tables = v.flag()?;
            Ok(())
        },
    ),
    key(
        "clickhouse",
        "inserts_in_flight",
        "1",
        "a whole number from 1 to 8",
        "Segments posted at once, where the server knows deduplication tokens.",
        |c, v| {
            c.clickhouse.inserts_in_flight = v.whole(1, 8)? as u8;
            Ok(())
        },
    ),
    key(
        "limits",
        "line_bytes",
        "8192",
        "a whole number of bytes from 512 to 1048576",
        "Longest line that a miner may send; a longer one closes the connection.",
        |c, v| {
            c.limits.line_bytes = v.whole(512, 1 << 20)? as u32;
            Ok(())
        },
    ),
    key(
        "limits",
        "authorize_within_s",
        "10",
        "a whole number of seconds from 1 to 3600",
        "Time in which a connection must have authorized a worker.",
        |c, v| {
            c.limits.authorize_within_s = v.whole(1, 3600)?;
            Ok(())
        },
    ),
    key(
        "limits",
        "refused_per_s",
        "100",
        "a whole number a second from 0 (no limit) to 1000000",
        "Refused shares a second beyond which a session is closed.",
        |c, v| {
            c.limits.refused_per_s = v.rate()?;
            Ok(())
        },
    ),
    key(
        "limits",
        "read_within_ms",
        "250",
        "a whole number of milliseconds from 0 (no measures) to 60000",
        "Time that bytes may wait unread; beyond it the server is overloaded: it accepts nobody, doubles the difficulty of the busiest sessions, and closes the worst.",
        |c, v| {
            c.limits.read_within_ms = match v.whole(0, 60_000)? {
                0 => u64::MAX,
                limit => limit,
            };
            Ok(())
        },
    ),
    key(
        "limits",
        "connects_per_ip_per_s",
        "50",
        "a whole number a second from 0 (no limit) to 1000000",
        "New connections a second that one source, an IPv4 address or an IPv6 /64, may open.",
        |c, v| {
            c.limits.connects_per_ip_per_s = v.rate()?;
            Ok(())
        },
    ),
    key("limits", "allow", "[]", BLOCKS, "Where not empty, only these may connect.", |c, v| {
        c.limits.allow = v.blocks()?;
        Ok(())
    }),
    key("limits", "deny", "[]", BLOCKS, "These may not connect, even where allow names them.", |c, v| {
        c.limits.deny = v.blocks()?;
        Ok(())
    }),
    key(
        "stats",
        "listen",
        "\"127.0.0.1:8080\"",
        "an IP:port address as text, such as \"127.0.0.1:8080\"",
        "Where the stats page listens. It has no password: keep it on loopback or behind a proxy.",
        |c, v| {
            c.stats.listen = address(&v.text()?)?;
            Ok(())
        },
    ),
    key("layout", "net", "\"auto\"", CORES, "Cores of the net stages, one stage a core.", |c, v| {
        c.layout.net = v.cores()?;
        Ok(())
    }),
    key("layout", "validate", "\"auto\"", CORES, "Cores of the validate stages, one stage a core.", |c, v| {
        c.layout.validate = v.cores()?;
        Ok(())
    }),
    key("layout", "log", "\"auto\"", "\"auto\" or one core as text, such as \"3\"", "Core of the log stage.", |c, v| {
        c.layout.log = v.cores()?;
        v.check(!matches!(&c.layout.log, Cores::List(cores) if cores.len() != 1))
    }),
    key("layout", "control", "\"auto\"", CORES, "Cores of chain, sealer and shipper.", |c, v| {
        c.layout.control = v.cores()?;
        Ok(())
    }),
    key("layout", "stats", "\"auto\"", CORES, "Cores of the stats page.", |c, v| {
        c.layout.stats = v.cores()?;
        Ok(())
    }),
    key(
        "layout",
        "driver",
        "\"auto\"",
        "\"auto\", \"mio\" or \"uring\"",
        "How sockets are read; auto takes the best that the host allows.",
        |c, v| {
            c.layout.driver = v.word()?;
            Ok(())
        },
    ),
    key(
        "layout",
        "isa",
        "\"auto\"",
        "\"auto\", \"portable\", \"shani\", \"avx2\" or \"avx512\"",
        "Instruction set of the hash kernels; auto takes the best that the CPU runs.",
        |c, v| {
            c.layout.isa = v.word()?;
            Ok(())
        },
    ),
];

fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// A value as it was given. An environment variable is a bare text: lists in it are separated by commas.
enum Given<'a> {
    Toml(&'a DeValue<'a>),
    Env(&'a str),
}

impl Given<'_> {
    /// What was found, for a refusal.
    fn found(&self) -> String {
        match self {
            Given::Env(text) => format!("found \"{text}\""),
            Given::Toml(value) => match value {
                DeValue::String(text) => format!("found the text \"{text}\""),
                DeValue::Integer(number) => format!("found {number}"),
                DeValue::Float(number) => format!("found {number}"),
                DeValue::Boolean(flag) => format!("found {flag}"),
                DeValue::Datetime(_) => "found a date".to_owned(),
                DeValue::Array(list) if list.is_empty() => "found an empty list".to_owned(),
                DeValue::Array(_) => "found a list".to_owned(),
                DeValue::Table(_) => "found a table".to_owned(),
            },
        }
    }

    fn check(&self, holds: bool) -> Result<(), String> {
        if holds { Ok(()) } else { Err(self.found()) }
    }

    fn text(&self) -> Result<String, String> {
        match self {
            Given::Env(text) => Ok((*text).to_owned()),
            Given::Toml(DeValue::String(text)) => Ok(text.to_string()),
            Given::Toml(DeValue::Integer(_) | DeValue::Float(_)) => Err(format!("{}; write it in quotes", self.found())),
            Given::Toml(_) => Err(self.found()),
        }
    }

    fn flag(&self) -> Result<bool, String> {
        match self {
            Given::Env("true") | Given::Toml(DeValue::Boolean(true)) => Ok(true),
            Given::Env("false") | Given::Toml(DeValue::Boolean(false)) => Ok(false),
            Given::Toml(DeValue::String(text)) if matches!(&**text, "true" | "false") => {
                Err(format!("{}; write it without quotes", self.found()))
            }
            _ => Err(self.found()),
        }
    }

    fn whole(&self, min: u64, max: u64) -> Result<u64, String> {
        let number = match self {
            Given::Env(text) => text.parse().ok(),
            Given::Toml(DeValue::Integer(number)) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            Given::Toml(DeValue::String(text)) if text.parse::<f64>().is_ok() => {
                return Err(format!("{}; write it without quotes", self.found()));
            }
            Given::Toml(_) => None,
        };
        number.filter(|number| (min..=max).contains(number)).ok_or_else(|| self.found())
    }

    /// A number a second; 0 stands for no limit.
    fn rate(&self) -> Result<u32, String> {
        Ok(match self.whole(0, 1_000_000)? {
            0 => u32::MAX,
            rate => rate as u32,
        })
    }

    fn number(&self, min: f64, max: f64) -> Result<f64, String> {
        let number: Option<f64> = match self {
            Given::Env(text) => text.parse().ok(),
            Given::Toml(DeValue::Float(number)) => number.as_str().parse().ok(),
            Given::Toml(DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number as f64),
            Given::Toml(DeValue::String(text)) if text.parse::<f64>().is_ok() => {
                return Err(format!("{}; write it without quotes", self.found()));
            }
            Given::Toml(_) => None,
        };
        // NaN is in no range.
        number.filter(|number| (min..=max).contains(number)).ok_or_else(|| self.found())
    }

    fn texts(&self) -> Result<Vec<String>, String> {
        match self {
            Given::Env(text) => Ok(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()),
            Given::Toml(DeValue::Array(list)) => list
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    other => Err(format!("{} in the list", Given::Toml(other).found())),
                })
                .collect(),
            Given::Toml(DeValue::String(text)) => Err(format!("{}; write it as a list: [\"{text}\"]", self.found())),
            Given::Toml(_) => Err(self.found()),
        }
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        self.texts()?.iter().map(|text| address(text)).collect()
    }

    fn blocks(&self) -> Result<Vec<Cidr>, String> {
        self.texts()?.iter().map(|text| Cidr::parse(text)).collect()
    }

    fn path(&self) -> Result<Option<PathBuf>, String> {
        let text = self.text()?;
        self.check(!text.contains('\0'))?;
        Ok(if text.is_empty() { None } else { Some(PathBuf::from(text)) })
    }

    fn word<T: Word>(&self) -> Result<T, String> {
        let text = self.text()?;
        if let Some((_, value)) = T::WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        Err(match nearest(&text, T::WORDS.iter().map(|(word, _)| *word)) {
            Some(word) => format!("{}; did you mean \"{word}\"?", self.found()),
            None => self.found(),
        })
    }

    fn cores(&self) -> Result<Cores, String> {
        let text = self.text()?;
        if text == "auto" {
            return Ok(Cores::Auto);
        }
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let bound = |text: &str| text.trim().parse::<usize>().ok().filter(|core| *core < 1024);
            let (Some(first), Some(last)) = (bound(first), bound(last)) else {
                return Err(self.found());
            };
            if first > last {
                return Err(format!("{}, whose range {first}-{last} runs backwards", self.found()));
            }
            cores.extend(first..=last);
        }
        let mut seen = cores.clone();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{}, which names core {} twice", self.found(), twice[0]));
        }
        Ok(Cores::List(cores))
    }

    /// Bytes: a whole number, or a text with a unit (powers of 1024 as KiB, of 1000 as kB).
    fn size(&self) -> Result<u64, String> {
        let text = match self {
            Given::Toml(DeValue::Integer(_)) => return self.whole(0, u64::MAX),
            _ => self.text()?,
        };
        let (number, unit) = split_unit(&text);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            other => {
                let units = ["KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"];
                return Err(match units.iter().find(|unit| unit.to_ascii_lowercase().starts_with(other)) {
                    Some(unit) => format!("{}; did you mean \"{number} {unit}\"?", self.found()),
                    None => self.found(),
                });
            }
        };
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(|| self.found())
    }

    /// A time as a text with a unit: `s`, `m`, `h` or `d`.
    fn seconds(&self) -> Result<u64, String> {
        if let Given::Toml(DeValue::Integer(number)) = self {
            return Err(format!("{} without a unit; did you mean \"{number}s\"?", self.found()));
        }
        let text = self.text()?;
        let (number, unit) = split_unit(&text);
        let factor: u64 = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(self.found()),
        };
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(|| self.found())
    }
}

/// `64 GiB` as its number and its unit.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let digits = text.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let host = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
        match host {
            Some("") => format!("found \"{text}\"; did you mean \"0.0.0.0{text}\"?"),
            Some("localhost") => format!("found \"{text}\"; did you mean \"{}\"?", text.replace("localhost", "127.0.0.1")),
            Some(host) if host.parse::<IpAddr>().is_err() => format!("found \"{text}\"; a name is not looked up here, give its IP address"),
            None if text.parse::<IpAddr>().is_ok() => format!("found \"{text}\", which has no port"),
            _ => format!("found \"{text}\""),
        }
    })
}

/// Accepts `http://host[:port][/path]` without user and password.
fn http_url(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(if text.starts_with("https://") {
            "found an https address; TLS to this server is not in this release, reach it over a private network or a tunnel".to_owned()
        } else if text.contains("://") {
            format!("found \"{text}\"")
        } else {
            format!("found \"{text}\"; did you mean \"http://{text}\"?")
        });
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    if authority.contains('@') {
        // Not echoed: it holds a password.
        return Err("found user or password in the address; they have keys of their own".to_owned());
    }
    let host = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.ends_with(']') => {
            if port.parse::<u16>().is_err() {
                return Err(format!("found \"{text}\", whose port is no number up to 65535"));
            }
            host
        }
        _ => authority,
    };
    if host.is_empty() || text.contains(char::is_whitespace) { Err(format!("found \"{text}\"")) } else { Ok(()) }
}

/// The candidate within a third of the word's length of `word`, by edits (insert, delete, replace, swap); the nearest, the first of equals.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .map(|candidate| (edits(&word, candidate), candidate))
        .filter(|(edits, candidate)| {
            let length = word.chars().count().max(candidate.len());
            *edits <= (length / 3).max(1)
                || (word.len() >= 3 && candidate.len() >= 3 && (candidate.starts_with(&word) || word.starts_with(candidate)))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut best = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = last;
        last = row;
    }
    last[b.len()]
}

/// Where a mistake stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    File {
        /// Name as it was given.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// The line's text; what follows the `=` of a password is masked.
        text: String,
        /// Characters to underline, at least 1.
        width: usize,
    },
    /// In an environment variable of this name.
    Env(
        /// The variable.
        String,
    ),
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What, and what was expected or meant.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Env(name) => write!(f, "environment {name}: {}", self.message),
            Place::File { file, line, column, text, width } => {
                writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
                let number = line.to_string();
                let margin = number.len();
                writeln!(f, "  {number} | {text}")?;
                // Tabs stay tabs, so that the caret stands under its text in any terminal.
                let before: String = text.chars().take(column - 1).map(|ch| if ch == '\t' { '\t' } else { ' ' }).collect();
                write!(f, "  {:margin$} | {before}{}", "", "^".repeat(*width))
            }
        }
    }
}

/// Why there is no configuration. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the config {path} failed; name another file with --config, or write one with `otedama config init`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// All mistakes found, in the order of the file, then those of the environment.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
}

/// How grave a finding of [`Config::validate`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Works, but hardly as meant.
    Warning,
    /// `serve` must not start: exit code 2.
    Refused,
}

/// One finding of [`Config::validate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave.
    pub level: Level,
    /// `section.key`.
    pub key: String,
    /// Where the value came from: `default`, `file:line` or a variable's name.
    pub origin: String,
    /// What, and how to mend it.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Refused => "refused",
        };
        write!(f, "{level}: {} ({}): {}", self.key, self.origin, self.message)
    }
}

/// Keys whose feature comes with a later release: accepted where this says that they are at rest.
type AtRest = fn(&Config) -> bool;
const NOT_BUILT: &[(&str, &str, AtRest)] = &[
    ("stratum.tls_listen", "tls_listen", |c| c.stratum.tls_listen.is_empty()),
    ("stratum.tls_cert", "tls_cert", |c| c.stratum.tls_cert.is_none()),
    ("stratum.tls_key", "tls_key", |c| c.stratum.tls_key.is_none()),
    ("stratum.proxy_from", "proxy_from", |c| c.stratum.proxy_from.is_empty()),
    ("chain.coin", "a coin other than \"bitcoin\"", |c| c.chain.coin == "bitcoin"),
    ("chain.zmq", "zmq", |c| c.chain.zmq.is_empty()),
    ("clickhouse.ca_file", "ca_file", |c| c.clickhouse.ca_file.is_none()),
];

impl Config {
    /// The defaults.
    ///
    /// Not `Default::default`, whose fields are all empty.
    pub fn defaults() -> Config {
        let mut config = Config::default();
        for key in KEYS {
            // Each default parses and is in its own range: held by a test over all keys.
            let source = format!("x = {}", key.default);
            let table = DeTable::parse(&source);
            let value = table.as_ref().ok().and_then(|table| table.get_ref().get("x"));
            let set = value.map(|value| (key.set)(&mut config, &Given::Toml(value.get_ref())));
            assert_eq!(set, Some(Ok(())), "the default of {} is refused", key.path());
            config.settings.insert(key.path(), Setting { value: key.default.to_owned(), origin: Origin::Default });
        }
        config
    }

    /// The defaults, then the file where one is named, then the environment.
    ///
    /// `env` may be the whole environment: other names are passed over, as are the variables that Kubernetes sets for a service named
    /// otedama. Any other name with our prefix must be a key's.
    ///
    /// # Errors
    /// [`ConfigError`]; all mistakes at once.
    pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        match path {
            None => Config::from_text("", "", env),
            Some(path) => {
                let failed = |source| ConfigError::Read { path: path.to_owned(), source };
                let bytes = fs::read(path).map_err(failed)?;
                if bytes.len() > FILE_BYTES_MAX {
                    return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB")));
                }
                let text =
                    String::from_utf8(bytes).map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text")))?;
                Config::from_text(&text, &path.display().to_string(), env)
            }
        }
    }

    /// As [`Config::load`], from a text that stands in `file`.
    ///
    /// # Errors
    /// [`ConfigError::Mistakes`].
    pub fn from_text(text: &str, file: &str, env: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        let mut config = Config::defaults();
        let mut mistakes: Vec<(usize, Mistake)> = Vec::new();
        match DeTable::parse(text) {
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                let message = syntax_message(text, span.start, error.message());
                mistakes.push((span.start, at(text, file, span, message)));
            }
            Ok(table) => {
                for (name, value) in table.get_ref().iter() {
                    let section: &str = name.get_ref();
                    if !SECTIONS.iter().any(|s| s.name == section) {
                        let message = unknown_section(section, value.get_ref());
                        mistakes.push((name.span().start, at(text, file, name.span(), message)));
                        continue;
                    }
                    let DeValue::Table(keys) = value.get_ref() else {
                        let message = format!("`{section}` is a section, not a key: write its keys under [{section}]");
                        mistakes.push((name.span().start, at(text, file, name.span(), message)));
                        continue;
                    };
                    for (name, value) in keys.iter() {
                        let Some(key) = find(section, name.get_ref()) else {
                            let message = unknown_key(section, name.get_ref());
                            mistakes.push((name.span().start, at(text, file, name.span(), message)));
                            continue;
                        };
                        let given = Given::Toml(value.get_ref());
                        match (key.set)(&mut config, &given) {
                            Err(found) => mistakes.push((value.span().start, at(text, file, value.span(), key.refusal(&found)))),
                            Ok(()) => {
                                // A list may span lines and hold comments: it is written anew.
                                let value_text = match given.texts() {
                                    Ok(items) => list_as_toml(items.iter().map(String::as_str)),
                                    Err(_) => text.get(value.span()).unwrap_or_default().to_owned(),
                                };
                                let setting = Setting {
                                    value: shown(key, &value_text),
                                    origin: Origin::File { file: file.to_owned(), line: line_of(text, name.span().start) },
                                };
                                config.settings.insert(key.path(), setting);
                            }
                        }
                    }
                }
            }
        }
        mistakes.sort_by_key(|(start, _)| *start);
        let mut mistakes: Vec<Mistake> = mistakes.into_iter().map(|(_, mistake)| mistake).collect();

        let mut variables: Vec<(String, String)> = env
            .filter(|(name, value)| name.starts_with(ENV_PREFIX) && !NO_KEYS.contains(&name.as_str()) && !is_of_kubernetes(name, value))
            .collect();
        variables.sort();
        for (name, value) in variables {
            let refused = match KEYS.iter().find(|key| key.env() == name) {
                None => unknown_variable(&name),
                Some(key) => match (key.set)(&mut config, &Given::Env(&value)) {
                    Err(found) => key.refusal(&found),
                    Ok(()) => {
                        let setting = Setting { value: shown(key, &env_as_toml(key, &value)), origin: Origin::Env(name) };
                        config.settings.insert(key.path(), setting);
                        continue;
                    }
                },
            };
            mistakes.push(Mistake { place: Place::Env(name), message: refused });
        }
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::Mistakes(mistakes)) }
    }

    /// Where the value of `section.key` came from.
    pub fn origin(&self, path: &str) -> Origin {
        self.settings.get(path).map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Judges the keys together, gravest first. Where one is [`Level::Refused`], `serve` must not start.
    pub fn validate(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut push = |level: Level, key: &str, message: String| {
            findings.push(Finding { level, key: key.to_owned(), origin: self.origin(key).to_string(), message });
        };
        for (path, what, at_rest) in NOT_BUILT {
            if !at_rest(self) {
                let default = KEYS.iter().find(|key| key.path() == *path).map_or("", |key| key.default);
                push(Level::Refused, path, format!("{what} is not in this release; leave the key out (default {default})"));
            }
        }

        let chain = &self.chain;
        let address = &chain.payout_address;
        if address.is_empty() {
            if !chain.is_practice() {
                push(
                    Level::Refused,
                    "chain.payout_address",
                    "no address to pay blocks to; set payout_address, or try the pool without a node: rpc = [\"practice\"]".to_owned(),
                );
            }
        } else if !address_fits(chain.network, address) {
            push(
                Level::Refused,
                "chain.payout_address",
                format!("\"{address}\" is no address of the network \"{}\"", chain.network.name()),
            );
        }
        let script_bytes = coinbase_script_bytes(chain.coinbase_tag.len(), self.stratum.extranonce2_bytes);
        if script_bytes > COINBASE_SCRIPT_BYTES_MAX {
            push(
                Level::Refused,
                "chain.coinbase_tag",
                format!(
                    "the tag of {} bytes makes a coinbase script of {script_bytes} bytes, and nodes refuse blocks with more than {COINBASE_SCRIPT_BYTES_MAX}; shorten it by {}",
                    chain.coinbase_tag.len(),
                    script_bytes - COINBASE_SCRIPT_BYTES_MAX
                ),
            );
        }
        if chain.cookie_file.is_some() && !chain.user.is_empty() {
            push(Level::Refused, "chain.cookie_file", "cookie_file and user are both set; the node takes one of them".to_owned());
        }
        if chain.user.is_empty() && !chain.password.expose().is_empty() {
            push(Level::Refused, "chain.password", "a password without a user; set chain.user".to_owned());
        }
        if self.clickhouse.user.is_empty() && !self.clickhouse.password.expose().is_empty() {
            push(Level::Warning, "clickhouse.password", "a password without a user goes to the server's user `default`".to_owned());
        }

        let mut listeners: Vec<(&str, SocketAddr)> = self.stratum.listen.iter().map(|a| ("stratum.listen", *a)).collect();
        listeners.push(("stats.listen", self.stats.listen));
        for (index, (key, address)) in listeners.iter().enumerate() {
            // Port 0 lets the system choose, so it meets nobody.
            let clash = |other: &SocketAddr| {
                other.port() != 0
                    && other.port() == address.port()
                    && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
                    && other.is_ipv4() == address.is_ipv4()
            };
            if let Some((other_key, other)) = listeners[..index].iter().find(|(_, other)| clash(other)) {
                push(Level::Refused, key, format!("{address} is taken by {other_key} ({other})"));
            }
        }
        if !self.stats.listen.ip().is_loopback() {
            push(Level::Warning, "stats.listen", format!("{} is reachable from outside, and the page has no password", self.stats.listen));
        }

        if self.vardiff.enabled && self.stratum.difficulty > self.vardiff.max {
            push(
                Level::Warning,
                "stratum.difficulty",
                format!(
                    "{} is above vardiff.max {}: every session starts there and is brought down",
                    self.stratum.difficulty, self.vardiff.max
                ),
            );
        }
        if self.vardiff.min > self.vardiff.max {
            push(Level::Refused, "vardiff.min", format!("min {} is above max {}", self.vardiff.min, self.vardiff.max));
        }
        if self.stratum.version_mask & !0x1fff_e000 != 0 {
            push(
                Level::Warning,
                "stratum.version_mask",
                format!("{:08x} has bits outside of BIP320's 1fffe000; other software may read them as votes", self.stratum.version_mask),
            );
        }
        if self.log.keep_shipped_s > self.log.keep_s {
            push(Level::Warning, "log.keep_shipped", "longer than log.keep, which ends it".to_owned());
        }
        if chain.is_practice() {
            push(Level::Note, "chain.rpc", "PRACTICE chain: real proof of work, blocks without value".to_owned());
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        findings
    }

    /// Whether [`Config::validate`] refuses.
    pub fn is_refused(findings: &[Finding]) -> bool {
        findings.iter().any(|finding| finding.level == Level::Refused)
    }

    /// The values in force as TOML, secrets masked; with `origin`, each with where it came from.
    pub fn show(&self, origin: bool) -> String {
        let mut out = String::new();
        for section in &SECTIONS {
            let lines: Vec<(String, &Setting)> = KEYS
                .iter()
                .filter(|key| key.section == section.name)
                .filter_map(|key| self.settings.get(&key.path()).map(|setting| (format!("{} = {}", key.name, setting.value), setting)))
                .collect();
            let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
            let _ = writeln!(out, "[{}]", section.name);
            for (line, setting) in lines {
                if origin {
                    let _ = writeln!(out, "{line:<width$}  # {}", setting.origin);
                } else {
                    let _ = writeln!(out, "{line}");
                }
            }
            out.push('\n');
        }
        out.pop();
        out
    }

    /// A config file with every key at its default, its meaning above it: what `config init` writes.
    pub fn commented_default() -> String {
        let mut out = String::from(
            "# Otedama's configuration. Every key stands here at its default; delete what you do not change.\n# Each can also be given by the environment: [stratum] difficulty is OTEDAMA_STRATUM__DIFFICULTY.\n# `otedama check` judges this file; `otedama config show --origin` prints what is in force.\n",
        );
        for section in &SECTIONS {
            let _ = write!(out, "\n# {}\n[{}]\n", section.about, section.name);
            for key in KEYS.iter().filter(|key| key.section == section.name) {
                let later = if is_later(key) { " (A later release: keep the default.)" } else { "" };
                let _ = write!(out, "# {}{later}\n# Must be {}.\n{} = {}\n", key.about, key.expects, key.name, key.default);
            }
        }
        out
    }

    /// The keys as Markdown tables: what `config docs` prints.
    pub fn docs_markdown() -> String {
        let mut out = String::from(
            "# Configuration\n\nWritten by `otedama config docs`; do not edit. Every key can also be given by the environment as `OTEDAMA_SECTION__KEY`.\n",
        );
        let cell = |text: &str| text.replace('|', "\\|");
        for section in &SECTIONS {
            let _ =
                write!(out, "\n## [{}]\n\n{}\n\n| Key | Default | Must be | Meaning |\n|---|---|---|---|\n", section.name, section.about);
            for key in KEYS.iter().filter(|key| key.section == section.name) {
                let later = if is_later(key) { " *A later release: keep the default.*" } else { "" };
                let _ = writeln!(out, "| `{}` | `{}` | {} | {}{later} |", key.name, cell(key.default), cell(key.expects), cell(key.about));
            }
        }
        out
    }
}

/// The process' environment as [`Config::load`] takes it. Not `std::env::vars`, which panics on a variable that is not text.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// Whether no value but the default is taken yet.
fn is_later(key: &Key) -> bool {
    let path = key.path();
    NOT_BUILT.iter().any(|(later, ..)| *later == path)
}

/// By its first letters alone; chain checks the rest, which needs the checksums.
fn address_fits(network: Network, address: &str) -> bool {
    let lower = address.to_ascii_lowercase();
    let (bech32, base58): (&str, &[char]) = match network {
        Network::Main => ("bc1", &['1', '3']),
        Network::Testnet3 | Network::Testnet4 | Network::Signet => ("tb1", &['m', 'n', '2']),
        Network::Regtest => ("bcrt1", &['m', 'n', '2']),
    };
    lower.starts_with(bech32) || address.starts_with(base58)
}

/// Variables that are no keys: switches of the project's own test lanes, which are set around `cargo test` and seen by the servers that tests start, and the places of the
/// SQL engine, which `otedama sql` and the engine read themselves.
const NO_KEYS: [&str; 16] = [
    otedama_pipeline::fail_point::Pause::VARIABLE,
    "OTEDAMA_KILL_AT",
    "OTEDAMA_KILL_JOURNAL_FILE_BYTES",
    "OTEDAMA_KILL_POINTS",
    "OTEDAMA_OUTAGE_SECONDS",
    "OTEDAMA_OUTAGE_RATE",
    "OTEDAMA_FIGURES",
    "OTEDAMA_LONG",
    "OTEDAMA_REQUIRE_CLICKHOUSE",
    "OTEDAMA_REGTEST_NODE",
    "OTEDAMA_CLICKHOUSE_SERVER",
    "OTEDAMA_KILL_SEED",
    "OTEDAMA_MODERN_CLICKHOUSE_URL",
    "OTEDAMA_TEST_SERVER",
    "OTEDAMA_ENGINE",
    "OTEDAMA_LIBCHDB",
];

/// Kubernetes gives every pod variables about the services of its namespace, and one of them may well be named otedama-something:
/// `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]`, `X_PORT=tcp://...` and `X_PORT_3333_TCP[_ADDR|_PORT|_PROTO]`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let after = |mark: &str| name.find(mark).map(|at| &name[at + mark.len()..]);
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || after("_SERVICE_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            || (name.ends_with("_PORT") && value.contains("://"))
            || after("_PORT_").is_some_and(|rest| rest.starts_with(|ch: char| ch.is_ascii_digit())))
}

fn unknown_section(section: &str, value: &DeValue<'_>) -> String {
    if value.as_table().is_none() {
        if let Some(key) = KEYS.iter().find(|key| key.name == section) {
            return format!("`{section}` stands in no section; it belongs under [{}]", key.section);
        }
        return format!("unknown key `{section}` outside of any section");
    }
    let names = || SECTIONS.iter().map(|s| s.name);
    match nearest(section, names()) {
        Some(name) => format!("unknown section [{section}]; did you mean [{name}]?"),
        None => format!("unknown section [{section}]; there are {}", names().collect::<Vec<_>>().join(", ")),
    }
}

fn unknown_key(section: &str, name: &str) -> String {
    let start = format!("unknown key `{name}` in [{section}]");
    let here = || KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return format!("{start}; it belongs under [{}]", key.section);
    }
    match nearest(name, here()) {
        Some(near) => format!("{start}; did you mean `{near}`?"),
        None => format!("{start}; there are {}", here().collect::<Vec<_>>().join(", ")),
    }
}

fn unknown_variable(name: &str) -> String {
    let names: Vec<String> = KEYS.iter().map(Key::env).collect();
    // The usual slip is one underscore for two.
    let flat = |name: &str| name.to_uppercase().replace("__", "_");
    let near = |known: &&String| edits(&flat(known), &flat(name));
    let meant = names.iter().min_by_key(near).filter(|known| near(known) <= 3);
    match meant {
        Some(meant) => format!("no such key; did you mean {meant}?"),
        None => format!("no such key; names are {ENV_PREFIX}SECTION__KEY, as {ENV_PREFIX}STRATUM__DIFFICULTY"),
    }
}

/// The parser's words on one line, or plainer ones for the slips that are common.
fn syntax_message(text: &str, at: usize, parser: &str) -> String {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let rest = text.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim();
    if line.trim_end().ends_with('=') && (rest.is_empty() || rest.starts_with('#')) {
        return "a value is missing after `=`".to_owned();
    }
    parser.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes().iter().take(byte).filter(|b| **b == b'\n').count() + 1
}

/// A mistake at a span of bytes of the file.
fn at(text: &str, file: &str, span: std::ops::Range<usize>, message: String) -> Mistake {
    // The end of the file, where a value is missing, counts as the end of its last line.
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_text = text[line_start..].lines().next().unwrap_or_default();
    let column = text[line_start..start].chars().count() + 1;
    let spanned = text.get(start..span.end).unwrap_or_default();
    let width = spanned.lines().next().unwrap_or_default().chars().count().max(1);
    let masked = match line_text.split_once('=') {
        Some((name, _)) if name.to_lowercase().contains("pass") => Some(format!("{name}= ***")),
        _ => None,
    };
    let width = match &masked {
        // The caret must not tell how long the secret is.
        Some(masked) if column > masked.chars().count() - 3 => 3,
        _ => width,
    };
    Mistake {
        place: Place::File {
            file: file.to_owned(),
            line: line_of(text, start),
            column,
            text: masked.unwrap_or_else(|| line_text.to_owned()),
            width,
        },
        message,
    }
}

/// A value's text for `show`.
fn shown(key: &Key, value: &str) -> String {
    if key.secret && !matches!(value, "\"\"" | "''") { "\"***\"".to_owned() } else { value.to_owned() }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list_as_toml<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}

/// A variable's text as the key's default is written: a list, a text in quotes, or bare.
fn env_as_toml(key: &Key, value: &str) -> String {
    if key.default.starts_with('[') {
        list_as_toml(value.split(',').map(str::trim).filter(|item| !item.is_empty()))
    } else if key.default.starts_with('"') {
        quoted(value)
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
    }

    fn load(text: &str) -> Result<Config, ConfigError> {
        Config::from_text(text, "pool.toml", env(&[]))
    }

    fn mistakes(text: &str, variables: &[(&str, &str)]) -> Vec<Mistake> {
        match Config::from_text(text, "pool.toml", env(variables)) {
            Err(ConfigError::Mistakes(mistakes)) => mistakes,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    fn refused(config: &Config) -> Vec<String> {
        let refused = config.validate().into_iter().filter(|finding| finding.level == Level::Refused);
        refused.map(|finding| finding.key).collect()
    }

    #[test]
    fn no_switch_of_the_projects_own_tests_keeps_a_server_that_they_start_from_starting() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut seen = 0;
        for folder in ["tests", "tests/support", "shipper/tests/server", "killpoint/src"] {
            for entry in std::fs::read_dir(root.join(folder)).expect("a folder of the repository").flatten() {
                let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
                for name in
                    text.split('"').filter(|word| word.starts_with(ENV_PREFIX) && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
                {
                    assert!(
                        name.contains("__") || NO_KEYS.contains(&name),
                        "{name} in {} is read by a test, and serve would refuse it",
                        entry.path().display()
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen > 10, "{seen} names");
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let c = Config::defaults();
        assert_eq!((c.pool.name.as_str(), c.pool.instance), ("otedama", 0));
        assert_eq!(c.stratum.listen, ["0.0.0.0:3333".parse().expect("an address")]);
        assert_eq!((c.stratum.difficulty, c.stratum.max_connections, c.stratum.max_workers_per_connection), (1024.0, 10_000, 4096));
        assert_eq!((c.stratum.version_mask, c.stratum.extranonce2_bytes), (0x1fff_e000, 8));
        assert_eq!((c.vardiff.enabled, c.vardiff.target_shares_per_minute, c.vardiff.min, c.vardiff.max), (true, 8.0, 1.0, 4e9));
        assert_eq!(
            (c.chain.coin.as_str(), c.chain.network, c.chain.rpc.as_slice()),
            ("bitcoin", Network::Main, ["http://127.0.0.1:8332".to_owned()].as_slice())
        );
        assert_eq!((c.chain.poll_ms, c.chain.refresh_s, c.chain.practice_block_s), (500, 30, 600));
        assert_eq!((c.chain.cookie_file.as_ref(), c.chain.coinbase_tag.as_str()), (None, "/otedama/"));
        assert_eq!(
            (c.log.dir.as_path(), c.log.ack, c.log.row, c.log.when_full),
            (Path::new("data/log"), Ack::Process, RowLayout::Replayable, WhenFull::Refuse)
        );
        assert_eq!((c.log.segment_rows, c.log.seal_after_ms, c.log.max_bytes), (524_288, 1000, 64 << 30));
        assert_eq!((c.log.keep_s, c.log.keep_shipped_s, c.log.compress_after_s), (7 * 86_400, 3600, 3600));
        assert_eq!(
            (c.clickhouse.url.as_ref(), c.clickhouse.database.as_str(), c.clickhouse.create_tables, c.clickhouse.inserts_in_flight),
            (None, "otedama", true, 1)
        );
        assert_eq!(
            (
                c.limits.line_bytes,
                c.limits.authorize_within_s,
                c.limits.refused_per_s,
                c.limits.read_within_ms,
                c.limits.connects_per_ip_per_s,
            ),
            (8192, 10, 100, 250, 50)
        );
        assert_eq!(c.stats.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((c.layout.net, c.layout.stats, c.layout.driver, c.layout.isa), (Cores::Auto, Cores::Auto, Driver::Auto, Isa::Auto));
    }

    #[test]
    fn the_written_file_parses_back_to_the_defaults_and_names_every_key() {
        let text = Config::commented_default();
        let from_file = load(&text).expect("it parses");
        let blank = |config: Config| Config { settings: BTreeMap::new(), ..config };
        let shown = load(&from_file.show(true)).expect("show parses");
        assert!(from_file.settings.values().all(|setting| matches!(setting.origin, Origin::File { .. })));
        assert_eq!(from_file.settings.len(), KEYS.len());
        assert_eq!(blank(from_file), blank(Config::defaults()));
        assert_eq!(blank(shown), blank(Config::defaults()));
        let docs = Config::docs_markdown();
        for key in KEYS {
            assert!(docs.contains(&format!("| `{}` | `{}` |", key.name, key.default)), "{}", key.path());
            assert!(SECTIONS.iter().any(|section| section.name == key.section), "{}", key.path());
        }
    }

    #[test]
    fn no_key_stands_twice() {
        let mut paths: Vec<String> = KEYS.iter().map(Key::path).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), KEYS.len());
    }

    /// (file, line, column, words that the answer must hold)
    const SEEDED: &[(&str, usize, usize, &[&str])] = &[
        ("[stratum]\ndificulty = 5.0", 2, 1, &["unknown key `dificulty` in [stratum]", "did you mean `difficulty`?"]),
        ("[stratum]\n\n  max-connections = 5", 3, 3, &["unknown key `max-connections`", "did you mean `max_connections`?"]),
        ("[stratum]\nmax_conections = 5", 2, 1, &["did you mean `max_connections`?"]),
        ("[stratum]\nlsiten = []", 2, 1, &["did you mean `listen`?"]),
        ("[stratum]\nwibble = 1", 2, 1, &["unknown key `wibble`", "there are listen, difficulty"]),
        ("[stratum]\npayout_address = \"x\"", 2, 1, &["it belongs under [chain]"]),
        ("[statum]\nlisten = []", 1, 2, &["unknown section [statum]", "did you mean [stratum]?"]),
        ("[wibble]\n", 1, 2, &["unknown section [wibble]", "there are pool, stratum"]),
        ("difficulty = 1.0", 1, 1, &["stands in no section", "[stratum]"]),
        ("pool = 3", 1, 1, &["is a section"]),
        ("[pool]\ninstance = 256", 2, 12, &["`pool.instance` must be a whole number from 0 to 255; found 256"]),
        ("[pool]\ninstance = -1", 2, 12, &["found -1"]),
        ("[pool]\ninstance = \"7\"", 2, 12, &["found the text \"7\"", "without quotes"]),
        ("[pool]\nname = 7", 2, 8, &["found 7", "in quotes"]),
        ("[pool]\nname = \"a b\"", 2, 8, &["letters, digits"]),
        ("[stratum]\ndifficulty = 1e-11", 2, 14, &["from 2.4e-10 to 4e9; found 1e-11"]),
        ("[stratum]\ndifficulty = 5e9", 2, 14, &["found 5e9"]),
        ("[stratum]\ndifficulty = nan", 2, 14, &["found nan"]),
        ("[stratum]\nextranonce2_bytes = 3", 2, 21, &["from 4 to 8; found 3"]),
        ("[stratum]\nversion_mask = \"1fffe00g\"", 2, 16, &["hex digits"]),
        ("[stratum]\nversion_mask = \"ffffffff\"", 2, 16, &["without the top three bits"]),
        ("[stratum]\nlisten = \"0.0.0.0:3333\"", 2, 10, &["write it as a list: [\"0.0.0.0:3333\"]"]),
        ("[stratum]\nlisten = [\"localhost:3333\"]", 2, 10, &["did you mean \"127.0.0.1:3333\"?"]),
        ("[stratum]\nlisten = [\":3333\"]", 2, 10, &["did you mean \"0.0.0.0:3333\"?"]),
        ("[stratum]\nlisten = [\"10.0.0.1\"]", 2, 10, &["has no port"]),
        ("[stratum]\nlisten = [\"pool.example.com:3333\"]", 2, 10, &["a name is not looked up here"]),
        ("[stratum]\nlisten = [3333]", 2, 10, &["found 3333 in the list"]),
        ("[stratum]\nlisten = []", 2, 10, &["found an empty list"]),
        ("[vardiff]\nenabled = \"true\"", 2, 11, &["without quotes"]),
        ("[vardiff]\nenabled = 1", 2, 11, &["true or false; found 1"]),
        ("[chain]\nnetwork = \"mainnet\"", 2, 11, &["did you mean \"main\"?"]),
        ("[chain]\nnetwork = \"testnet\"", 2, 11, &["did you mean \"testnet3\"?"]),
        ("[chain]\ncoinbase_tag = \"/ä/\"", 2, 16, &["printable ASCII"]),
        ("[chain]\nnetwork = \"regtst\"", 2, 11, &["did you mean \"regtest\"?"]),
        ("[chain]\nrpc = [\"127.0.0.1:8332\"]", 2, 7, &["did you mean \"http://127.0.0.1:8332\"?"]),
        ("[chain]\nrpc = [\"practice\", \"http://127.0.0.1:8332\"]", 2, 7, &["it stands alone"]),
        ("[chain]\nrpc = [\"https://node:8332\"]", 2, 7, &["TLS to this server is not in this release"]),
        ("[chain]\nrpc = [\"http://node:99999\"]", 2, 7, &["whose port is no number"]),
        ("[log]\nmax_bytes = \"64 Gi\"", 2, 13, &["did you mean \"64 GiB\"?"]),
        ("[log]\nmax_bytes = \"1 MiB\"", 2, 13, &["at least 64 MiB"]),
        ("[log]\nmax_bytes = \"99999999999 TiB\"", 2, 13, &["a size"]),
        ("[log]\nkeep = 7", 2, 8, &["without a unit; did you mean \"7s\"?"]),
        ("[log]\nkeep = \"7 weeks\"", 2, 8, &["a time such as \"7d\""]),
        ("[log]\nack = \"proces\"", 2, 7, &["did you mean \"process\"?"]),
        ("[log]\nsegment_rows = 524289", 2, 16, &["from 1 to 524288"]),
        ("[limits]\nallow = [\"10.0.0.1/8\"]", 2, 9, &["did you mean \"10.0.0.0/8\"?"]),
        ("[limits]\ndeny = [\"10.0.0.0/33\"]", 2, 8, &["prefix is not 0 to 32"]),
        ("[clickhouse]\ndatabase = \"o; drop\"", 2, 12, &["a name of letters"]),
        ("[layout]\nnet = \"1,6-2\"", 2, 7, &["range 6-2 runs backwards"]),
        ("[layout]\nnet = \"1,1-2\"", 2, 7, &["names core 1 twice"]),
        ("[layout]\nnet = \"one\"", 2, 7, &["such as \"1,2-6\""]),
        ("[layout]\nlog = \"1,2\"", 2, 7, &["one core"]),
        ("[layout]\nisa = \"avx\"", 2, 7, &["did you mean \"avx2\"?"]),
        ("[pool]\nname = \"a\"\nname = \"b\"", 3, 1, &["duplicate key"]),
        ("[pool]\nname = \"a", 2, 10, &["invalid basic string"]),
        ("[pool]\ninstance =", 2, 11, &["a value is missing"]),
        ("[pool]\ninstance = # 3", 2, 12, &["a value is missing"]),
        ("[pool]\nname = otedama", 2, 8, &["must be quoted"]),
        ("[pool\n", 1, 6, &["unclosed table"]),
    ];

    #[test]
    fn every_seeded_mistake_is_told_with_its_line_a_caret_and_a_hint() {
        for (text, line, column, words) in SEEDED {
            let found = mistakes(text, &[]);
            assert_eq!(found.len(), 1, "{text:?}: {found:?}");
            let Place::File { file, line: at_line, column: at_column, .. } = &found[0].place else {
                panic!("{text:?} is a file");
            };
            assert_eq!((file.as_str(), at_line, at_column), ("pool.toml", line, column), "{text:?}: {}", found[0]);
            for word in *words {
                assert!(found[0].message.contains(word), "{text:?}: {}", found[0].message);
            }
            let printed = found[0].to_string();
            let lines: Vec<&str> = printed.lines().collect();
            assert_eq!(lines.len(), 3, "{printed}");
            assert!(lines[0].starts_with(&format!("pool.toml:{line}:{column}: ")), "{printed}");
            assert!(lines[1].ends_with(text.lines().nth(line - 1).expect("the line")), "{printed}");
            let bar = lines[1].find('|').expect("a margin");
            assert_eq!(lines[2].find('^'), Some(bar + 2 + column - 1), "{printed}");
        }
    }

    #[test]
    fn the_answer_reads_as_in_the_contract() {
        assert_eq!(
            mistakes("[stratum]\n\tdificulty = 1 # ä", &[])[0].to_string(),
            "pool.toml:2:2: unknown key `dificulty` in [stratum]; did you mean `difficulty`?\n  2 | \tdificulty = 1 # ä\n    | \t^^^^^^^^^"
        );
    }

    #[test]
    fn all_mistakes_are_told_in_the_order_of_the_file_then_of_the_environment() {
        let text = "[stratum]\nzzz = 1\ndifficulty = true\n[pool]\ninstance = 999\n";
        let found = mistakes(text, &[("OTEDAMA_POOL__INSTANCE", "x"), ("OTEDAMA_LOG__DIRR", "x")]);
        let places: Vec<String> = found
            .iter()
            .map(|mistake| match &mistake.place {
                Place::File { line, .. } => line.to_string(),
                Place::Env(name) => name.clone(),
            })
            .collect();
        assert_eq!(places, ["2", "3", "5", "OTEDAMA_LOG__DIRR", "OTEDAMA_POOL__INSTANCE"]);
        assert!(found[3].message.contains("did you mean OTEDAMA_LOG__DIR?"));
        assert_eq!(
            found[4].to_string(),
            "environment OTEDAMA_POOL__INSTANCE: `pool.instance` must be a whole number from 0 to 255; found \"x\""
        );
    }

    #[test]
    fn every_key_can_be_given_by_the_environment_which_wins() {
        for key in KEYS {
            let bare = match key.default {
                "[]" => String::new(),
                list if list.starts_with('[') => list.trim_matches(['[', ']']).replace('"', ""),
                other => other.trim_matches('"').to_owned(),
            };
            let config = Config::from_text("", "", env(&[(&key.env(), &bare)])).expect(key.name);
            assert_eq!(config.origin(&key.path()), Origin::Env(key.env()));
            assert_eq!(Config { settings: BTreeMap::new(), ..config }, Config { settings: BTreeMap::new(), ..Config::defaults() });
        }
        let config = Config::from_text(
            "[stratum]\ndifficulty = 2.0\n[log]\nmax_bytes = 100000000",
            "pool.toml",
            env(&[
                ("OTEDAMA_STRATUM__DIFFICULTY", "0.001"),
                ("OTEDAMA_STRATUM__LISTEN", "127.0.0.1:1, [::1]:2"),
                ("OTHER", "x"),
                ("OTEDAMA_LOG__KEEP", "90m"),
            ]),
        )
        .expect("it loads");
        assert_eq!(config.stratum.difficulty, 0.001);
        assert_eq!(config.stratum.listen.len(), 2);
        assert_eq!((config.log.max_bytes, config.log.keep_s), (100_000_000, 5400));
        let shown = config.show(true);
        for (setting, origin) in [
            ("difficulty = 0.001", "OTEDAMA_STRATUM__DIFFICULTY"),
            ("listen = [\"127.0.0.1:1\", \"[::1]:2\"]", "OTEDAMA_STRATUM__LISTEN"),
            ("max_bytes = 100000000", "pool.toml:4"),
            ("segment_rows = 524288", "default"),
        ] {
            assert!(shown.lines().any(|line| line.starts_with(setting) && line.ends_with(&format!("# {origin}"))), "{setting}: {shown}");
        }
    }

    #[test]
    fn one_underscore_for_two_is_pointed_at_and_kubernetes_is_passed_over() {
        let found = mistakes("", &[("OTEDAMA_STRATUM_MAX_CONNECTIONS", "5")]);
        assert!(found[0].message.contains("did you mean OTEDAMA_STRATUM__MAX_CONNECTIONS?"), "{}", found[0]);
        for name in ["OTEDAMA_PORT", "OTEDAMA_WIBBLE", "OTEDAMA_", "OTEDAMA_STRATUM__"] {
            assert_eq!(mistakes("", &[(name, "3333")]).len(), 1, "{name}");
        }
        let of_a_service = [
            ("OTEDAMA_SERVICE_HOST", "10.1.2.3"),
            ("OTEDAMA_SERVICE_PORT", "3333"),
            ("OTEDAMA_SERVICE_PORT_STRATUM", "3333"),
            ("OTEDAMA_PORT", "tcp://10.1.2.3:3333"),
            ("OTEDAMA_STATS_PORT_8080_TCP_ADDR", "10.1.2.3"),
        ];
        Config::from_text("", "", env(&of_a_service)).expect("passed over");
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let text = "[chain]\nuser = \"u\"\npassword = \"hunter2\"\n";
        let config = load(text).expect("it loads");
        assert_eq!(config.chain.password.expose(), "hunter2");
        let from_env = Config::from_text("", "", env(&[("OTEDAMA_CLICKHOUSE__PASSWORD", "hunter2")])).expect("it loads");
        for shown in
            [config.show(true), format!("{config:?}"), format!("{:?}", config.validate()), from_env.show(false), format!("{from_env:?}")]
        {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        for wrong in [
            "[chain]\npasswrd = \"hunter2\"",
            "[chain]\npassword = \"hunter2",
            "[chain]\npassword = [\"hunter2\"]",
            "[chain]\nrpc = [\"http://u:hunter2@node:1\"]",
        ] {
            let found = &mistakes(wrong, &[])[0];
            assert!(!found.message.contains("hunter2"), "{found}");
            if wrong.contains("pass") {
                assert!(!found.to_string().contains("hunter2"), "{found}");
            }
        }
    }

    #[test]
    fn the_ends_of_every_range_are_taken_and_their_neighbours_refused() {
        for (section, name, min, max) in [
            ("pool", "instance", 0_u64, 255_u64),
            ("stratum", "max_connections", 1, 1_000_000),
            ("stratum", "max_workers_per_connection", 1, 65_536),
            ("stratum", "extranonce2_bytes", 4, 8),
            ("chain", "poll_ms", 10, 60_000),
            ("chain", "refresh_s", 1, 600),
            ("log", "segment_rows", 1, 524_288),
            ("log", "seal_after_ms", 10, 3_600_000),
            ("clickhouse", "inserts_in_flight", 1, 8),
            ("limits", "line_bytes", 512, 1 << 20),
            ("limits", "refused_per_s", 0, 1_000_000),
            ("limits", "read_within_ms", 0, 60_000),
        ] {
            let with = |number: i128| load(&format!("[{section}]\n{name} = {number}"));
            assert!(with(min.into()).is_ok() && with(max.into()).is_ok(), "{name}");
            assert!(with(i128::from(min) - 1).is_err() && with(i128::from(max) + 1).is_err(), "{name}");
            let expects = find(section, name).expect("a key").expects;
            assert!(expects.contains(&max.to_string()), "{name}: {expects}");
        }
        for (number, taken) in [
            ("2.4e-10", true),
            ("2.3e-10", false),
            ("4e9", true),
            ("4000000000", true),
            ("4000000001", false),
            ("-1.0", false),
            ("inf", false),
        ] {
            assert_eq!(load(&format!("[stratum]\ndifficulty = {number}")).is_ok(), taken, "{number}");
        }
    }

    #[test]
    fn what_is_not_in_this_release_is_refused_by_name_and_the_default_is_not() {
        for (text, key) in [
            ("[stratum]\ntls_listen = [\"0.0.0.0:3334\"]", "stratum.tls_listen"),
            ("[stratum]\ntls_cert = \"a.pem\"", "stratum.tls_cert"),
            ("[stratum]\ntls_key = \"a.pem\"", "stratum.tls_key"),
            ("[stratum]\nproxy_from = [\"10.0.0.0/8\"]", "stratum.proxy_from"),
            ("[chain]\ncoin = \"litecoin\"", "chain.coin"),
            ("[chain]\nzmq = [\"tcp://127.0.0.1:28332\"]", "chain.zmq"),
            ("[clickhouse]\nca_file = \"a.pem\"", "clickhouse.ca_file"),
        ] {
            let payout = [("OTEDAMA_CHAIN__PAYOUT_ADDRESS", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq")];
            let config = Config::from_text(text, "pool.toml", env(&payout)).expect(text);
            assert_eq!(refused(&config), [key], "{text}");
            let finding = &config.validate()[0];
            assert!(finding.message.contains("is not in this release"), "{finding}");
            assert_eq!(finding.origin, "pool.toml:2");
        }
        let practice = load("[chain]\nrpc = [\"practice\"]").expect("it loads");
        let findings = practice.validate();
        assert!(!Config::is_refused(&findings));
        assert!(findings.iter().all(|finding| !finding.key.starts_with("vardiff")), "vardiff is on, and nothing is to be said about it");
        let high = load("[chain]\nrpc = [\"practice\"]\n[vardiff]\nmax = 512.0").expect("it loads").validate();
        let start = high.iter().find(|f| f.key == "stratum.difficulty").expect("a warning");
        assert_eq!(start.level, Level::Warning);
        for accepted in [
            "[log]\nack = \"memory\"",
            "[log]\nack = \"disk\"",
            "[layout]\ndriver = \"uring\"",
            "[layout]\ndriver = \"mio\"\nisa = \"avx512\"\nnet = \"0-1\"",
        ] {
            let config = load(&format!("{accepted}\n[chain]\nrpc = [\"practice\"]")).expect(accepted);
            assert_eq!(refused(&config), Vec::<String>::new());
        }
    }

    #[test]
    fn keys_are_judged_together() {
        let practice = "[chain]\nrpc = [\"practice\"]\n";
        let long_tag = |bytes: usize| format!("{practice}coinbase_tag = \"{}\"", "x".repeat(bytes));
        assert_eq!(coinbase_script_bytes(74, 8), 100);
        assert_eq!(refused(&load(&long_tag(74)).expect("it loads")), Vec::<String>::new());
        let over = load(&long_tag(75)).expect("it loads");
        assert_eq!(refused(&over), ["chain.coinbase_tag"]);
        assert!(over.validate()[0].message.contains("shorten it by 1"));
        for (text, keys) in [
            ("", &["chain.payout_address"][..]),
            ("[chain]\npayout_address = \"tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx\"", &["chain.payout_address"]),
            ("[chain]\nnetwork = \"signet\"\npayout_address = \"tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx\"", &[]),
            ("[chain]\nnetwork = \"regtest\"\npayout_address = \"tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx\"", &["chain.payout_address"]),
            ("[chain]\nrpc = [\"practice\"]\nuser = \"a\"\ncookie_file = \"b\"", &["chain.cookie_file"]),
            ("[chain]\nrpc = [\"practice\"]\npassword = \"b\"", &["chain.password"]),
            ("[chain]\nrpc = [\"practice\"]\n[stats]\nlisten = \"127.0.0.1:3333\"", &["stats.listen"]),
            ("[chain]\nrpc = [\"practice\"]\n[stratum]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]", &[]),
            ("[chain]\nrpc = [\"practice\"]\n[stratum]\nlisten = [\"127.0.0.1:5\", \"127.0.0.1:5\"]", &["stratum.listen"]),
            ("[chain]\nrpc = [\"practice\"]\n[vardiff]\nmin = 2.0\nmax = 1.0", &["vardiff.min"]),
        ] {
            assert_eq!(refused(&load(text).expect(text)), keys, "{text}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_told_by_path() {
        let error = Config::load(Some(Path::new("/nonexistent/pool.toml")), env(&[])).expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/pool.toml"), "{error}");
        assert!(Config::load(None, env(&[])).is_ok());
    }

    #[test]
    fn mistakes_anywhere_in_any_text_never_panic() {
        let whole = Config::commented_default();
        for cut in (0..whole.len()).filter(|cut| whole.is_char_boundary(*cut)).step_by(61) {
            let _ = load(&whole[..cut]);
            let _ = load(&format!("{}\u{e9}\u{1f4a9}{}", &whole[..cut], &whole[cut..])).map_err(|error| error.to_string());
        }
    }
}
