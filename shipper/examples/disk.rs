//! What a share takes on a real server's disk in each row layout, one JSON line per figure: `cargo run --release -p otedama-shipper --example disk` (18.16), and with
//! `OTEDAMA_TEST_SERVER=engine OTEDAMA_ENGINE=... OTEDAMA_LIBCHDB=...` the modern engine; `cargo xtask figures ship` keeps them.
//!
//! Everything that the server keeps of `shares` once it has merged them into one part: columns, marks and index, under the codecs of the schema. Per share and not
//! per row, so that sums stand beside rows.
mod farm;
#[path = "../tests/log/mod.rs"]
mod log;
#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/server/mod.rs"]
mod server;

use log::Log;
use otedama_sharelog::Layout;
use otedama_shipper::ShipperSettings;
use running::{Running, settings};
use server::Server;

const SEGMENT_ROWS: u32 = 524_288;
const SEGMENTS: u32 = 2;
const SHARES: u64 = SEGMENT_ROWS as u64 * SEGMENTS as u64;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(server) = Server::start("disk") else { std::process::exit(3) };
    let (kind, version) = (if server.is_modern() { "engine" } else { "debian" }, server.query("SELECT version()").trim().to_owned());
    for layout in Layout::ALL {
        let mut log = Log::of(layout);
        for _ in 0..SEGMENTS {
            log.segment_hashed(SEGMENT_ROWS, farm::farm, farm::hash);
        }
        let metas = log.store().segments().expect("segments");
        let database = format!("disk_{}", layout.label());
        let settings = ShipperSettings { database: database.clone(), ..settings(server.url()) };
        let run = Running::start(settings, log.store());
        run.until_shipped(metas.len() as u64).await;
        run.end().await;
        server.query(&format!("OPTIMIZE TABLE {database}.shares FINAL"));
        let ask = |sql: &str| server.query(sql).trim().parse::<u64>().unwrap_or_else(|_| panic!("{sql}"));
        let shares = ask(&format!("SELECT sum(share_count) FROM {database}.shares"));
        let of_parts = format!("FROM system.parts WHERE active AND database = '{database}' AND table = 'shares'");
        let (parts, rows) = (ask(&format!("SELECT count() {of_parts}")), ask(&format!("SELECT sum(rows) {of_parts}")));
        let bytes = ask(&format!("SELECT sum(bytes_on_disk) {of_parts}"));
        assert_eq!((shares, parts), (SHARES, 1), "{layout:?}");
        println!(
            r#"{{"name":"{kind}_disk_bytes_per_share_{}","value":{:.3},"unit":"B/share","counted":"bytes_on_disk of the one part of shares after OPTIMIZE FINAL, per share","conditions":"{version}, {shares} shares of 100000 workers at 1000000 a second, 1 in 50 refused, {rows} rows"}}"#,
            layout.label(),
            bytes as f64 / shares as f64
        );
        server.query(&format!("DROP DATABASE {database}"));
    }
}
