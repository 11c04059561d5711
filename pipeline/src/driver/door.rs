//! The door that the drivers share: the listening sockets, the load of the nets behind them, and who may come in.
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Connections accepted in one go, so that a connect storm does not starve shares.
pub(super) const ACCEPTS_PER_PASS: usize = 64;
/// A net over the mean load, or one that could not accept, looks at the door again after this.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(5);
/// Sources remembered by the connect limiter.
const CONNECT_SOURCES_MAX: usize = 65_536;
/// Full of sources, the limiter forgets the quiet ones at most once in this time: a walk over the table for each connection would be the attack.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// A listening socket and the load of the nets that share it.
#[derive(Debug)]
pub struct Listener {
    pub(super) sockets: Vec<TcpListener>,
    loads: Arc<Vec<AtomicUsize>>,
}

impl Listener {
    /// Takes bound sockets to be shared by `nets` nets.
    pub fn new(sockets: Vec<TcpListener>, nets: usize) -> io::Result<Self> {
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        Ok(Self { sockets, loads: Arc::new((0..nets).map(|_| AtomicUsize::new(0)).collect()) })
    }
}

/// Limits at the door.
#[derive(Clone, Debug)]
pub struct DoorSettings {
    /// Connections over all nets.
    pub connections_max: usize,
    /// New connections per second and source, which is an IPv4 address or an IPv6 /64 network; loopback is exempt, as a local proxy or a test has one address for all.
    pub connects_per_ip_per_s: u32,
    /// If not empty, only these addresses get in.
    pub allow: Vec<(IpAddr, u8)>,
    /// These addresses never get in.
    pub deny: Vec<(IpAddr, u8)>,
}

impl Default for DoorSettings {
    fn default() -> Self {
        Self { connections_max: 10_000, connects_per_ip_per_s: 50, allow: Vec::new(), deny: Vec::new() }
    }
}

/// One net's side of the door.
pub(super) struct Door {
    pub(super) settings: DoorSettings,
    loads: Arc<Vec<AtomicUsize>>,
    net: usize,
    open: usize,
    sources: HashMap<IpAddr, (Instant, f64)>,
    swept: Option<Instant>,
    /// Connections turned away.
    pub(super) refused: u64,
}

impl Door {
    pub(super) fn new(listener: &Listener, net: usize, settings: DoorSettings) -> Self {
        Self { settings, loads: listener.loads.clone(), net, open: 0, sources: HashMap::new(), swept: None, refused: 0 }
    }

    /// Connections of this net.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Books a connection that this net took.
    pub(super) fn opened(&mut self) {
        self.open += 1;
        self.set_load();
    }

    /// Books a connection of this net that ended.
    pub(super) fn closed(&mut self) {
        self.open -= 1;
        self.set_load();
    }

    fn set_load(&self) {
        // Relaxed: a hint for balancing, nothing is read through it.
        self.loads[self.net].store(self.open, Ordering::Relaxed);
    }

    /// Connections of all nets, and whether this one is at or under the mean.
    pub(super) fn load(&self) -> (usize, bool) {
        let total: usize = self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum();
        (total, self.open * self.loads.len() <= total)
    }

    /// Whether a connection from `address` gets in; one that does not is counted.
    pub(super) fn admits(&mut self, address: IpAddr) -> bool {
        let admitted = self.load().0 < self.settings.connections_max && self.source_may_connect(address);
        self.refused += u64::from(!admitted);
        admitted
    }

    fn source_may_connect(&mut self, address: IpAddr) -> bool {
        if contains(&self.settings.deny, address) || !(self.settings.allow.is_empty() || contains(&self.settings.allow, address)) {
            return false;
        }
        let source = source(address);
        if source.is_loopback() {
            return true;
        }
        let now = Instant::now();
        let rate = f64::from(self.settings.connects_per_ip_per_s);
        if self.sources.len() >= CONNECT_SOURCES_MAX && !self.sources.contains_key(&source) {
            if self.swept.is_some_and(|swept| now - swept < SWEEP_EVERY) {
                return false;
            }
            self.swept = Some(now);
            self.sources.retain(|_, (seen, _)| now - *seen < Duration::from_secs(1));
            if self.sources.len() >= CONNECT_SOURCES_MAX {
                return false;
            }
        }
        let (seen, tokens) = self.sources.entry(source).or_insert((now, rate));
        *tokens = (*tokens + (now - *seen).as_secs_f64() * rate).min(rate);
        *seen = now;
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }
}

/// What the connect limiter counts by: one host is given a whole /64 of IPv6 (RFC 6177), so that its addresses are one source.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        other => other,
    }
}

fn contains(networks: &[(IpAddr, u8)], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|&(network, bits)| match (network.to_canonical(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_block_holds_its_ends_and_not_their_neighbours() {
        for (block, bits, inside, outside) in [
            ("10.0.0.0", 8, &["10.0.0.0", "10.255.255.255", "::ffff:10.1.1.1"][..], &["9.255.255.255", "11.0.0.0", "::1"][..]),
            ("10.0.0.7", 32, &["10.0.0.7"], &["10.0.0.6", "10.0.0.8"]),
            ("0.0.0.0", 0, &["0.0.0.0", "255.255.255.255"], &["::1"]),
            ("2001:db8::", 32, &["2001:db8::", "2001:db8:ffff::1"], &["2001:db7:ffff::", "2001:db9::"]),
            ("::", 0, &["::", "2001::1"], &["1.2.3.4"]),
        ] {
            let block = [(block.parse().expect("address"), bits)];
            let holds = |text: &&str| contains(&block, text.parse().expect("address"));
            assert!(inside.iter().all(holds), "{block:?}");
            assert!(!outside.iter().any(holds), "{block:?}");
        }
    }

    #[test]
    fn one_address_gets_in_at_its_rate_and_no_other_pays_for_it() {
        let listener = Listener::new(Vec::new(), 1).expect("no socket");
        let mut door = Door::new(&listener, 0, DoorSettings { connects_per_ip_per_s: 3, ..DoorSettings::default() });
        let (busy, quiet): (IpAddr, IpAddr) = ("192.0.2.1".parse().expect("address"), "192.0.2.2".parse().expect("address"));
        let admitted = (0..100).filter(|_| door.admits(busy)).count();
        assert!((3..10).contains(&admitted), "{admitted} of 100 in much less than a second");
        assert!(door.admits(quiet));
        assert_eq!(door.refused, 100 - admitted as u64);
        assert!((0..100).all(|_| door.admits("127.0.0.1".parse().expect("address"))));
    }
    #[test]
    fn the_addresses_of_an_ipv6_network_are_one_source_and_the_next_network_another() {
        let listener = Listener::new(Vec::new(), 1).expect("no socket");
        let mut door = Door::new(&listener, 0, DoorSettings { connects_per_ip_per_s: 3, ..DoorSettings::default() });
        let network = u128::from_str_radix("20010db8000000010000000000000000", 16).expect("a number");
        let admitted = (0..100u128).filter(|host| door.admits(Ipv6Addr::from_bits(network | host << 40 | host).into())).count();
        assert!((3..10).contains(&admitted), "{admitted} of 100 in much less than a second");
        assert!(door.admits(Ipv6Addr::from_bits(network + (1 << 64)).into()));
        assert!((0..100).all(|_| door.admits(IpAddr::V6(Ipv6Addr::LOCALHOST))));
    }

    #[test]
    fn a_full_table_of_sources_refuses_strangers_and_not_those_it_knows() {
        let listener = Listener::new(Vec::new(), 1).expect("no socket");
        let mut door = Door::new(&listener, 0, DoorSettings { connections_max: usize::MAX, ..DoorSettings::default() });
        let now = Instant::now() + Duration::from_secs(60);
        let address = |host: u32| IpAddr::from((0x0A00_0000 | host).to_be_bytes());
        door.sources = (0..CONNECT_SOURCES_MAX as u32).map(|host| (address(host), (now, 50.0))).collect();
        assert!(door.admits(address(7)));
        assert!(!door.admits(address(CONNECT_SOURCES_MAX as u32)));
        let earlier = Instant::now().checked_sub(Duration::from_secs(2)).expect("a machine up for two seconds");
        door.sources.values_mut().for_each(|(seen, _)| *seen = earlier);
        door.swept = None;
        assert!(door.admits(address(CONNECT_SOURCES_MAX as u32)), "the quiet ones are forgotten");
    }
}
