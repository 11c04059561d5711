//! Farms as they are met in the field: options that go together.
use crate::dialect::Style;
use clap::ValueEnum;
use std::time::Duration;

/// A kind of farm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Profile {
    /// Many machines with a connection and a worker each, a share every two seconds (open loop).
    AsicFarm,
    /// Few connections with many workers each and many shares in flight.
    Proxy,
    /// Nine single machines to each proxy.
    Mixed,
    /// Every connection breaks every two seconds, all at once, and comes back.
    ReconnectStorm,
}

/// What a profile stands for where the command line says nothing else.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Preset {
    /// Connections.
    pub connections: u32,
    /// Shares in flight per connection, of a proxy where there are both.
    pub depth: u32,
    /// Shares per second of one connection; 0 for a closed loop.
    pub rate_per_connection: f64,
    /// Workers per connection, of a proxy where there are both.
    pub workers: u32,
    /// Every n-th connection is a proxy; 0: all are alike.
    pub proxy_every: usize,
    /// How submits are written.
    pub style: Style,
    /// How often all connections break.
    pub storm_every: Option<Duration>,
}

impl Preset {
    /// The preset without a profile.
    pub const NONE: Self =
        Self { connections: 64, depth: 8, rate_per_connection: 0.0, workers: 1, proxy_every: 0, style: Style::EspMiner, storm_every: None };
}

impl Profile {
    /// The options of this profile.
    pub fn preset(self) -> Preset {
        match self {
            Self::AsicFarm => Preset { connections: 1000, depth: 1, rate_per_connection: 0.5, style: Style::Asic, ..Preset::NONE },
            Self::Proxy => Preset { depth: 64, workers: 50, ..Preset::NONE },
            Self::Mixed => Preset { connections: 500, depth: 16, workers: 50, proxy_every: 10, style: Style::Mixed, ..Preset::NONE },
            Self::ReconnectStorm => {
                Preset { connections: 1000, depth: 1, style: Style::Mixed, storm_every: Some(Duration::from_secs(2)), ..Preset::NONE }
            }
        }
    }
}
