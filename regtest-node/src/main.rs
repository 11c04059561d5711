//! `regtest-node`: the node as a process, for pools and tests that want to talk to it over HTTP.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use regtest_node::rpc::{Auth, Server};
use regtest_node::zmq::Publisher;
use regtest_node::{Node, NodeOptions, TransactionMix};

/// A regtest node for mining: Bitcoin Core's consensus engine behind getblocktemplate and submitblock.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to serve JSON-RPC on; port 0 takes a free one. The first line printed is `listening on ADDRESS`.
    #[arg(long, default_value = "127.0.0.1:18443")]
    listen: String,
    /// Blocks to mine at start. Transactions need matured coinbases: at least 100.
    #[arg(long, default_value_t = 0)]
    mine: u32,
    /// Valid transactions that wait for every block.
    #[arg(long, default_value_t = 0)]
    transactions: usize,
    /// Which transactions.
    #[arg(long, value_enum, default_value_t = Mix::Both)]
    mix: Mix,
    /// Seed of the transactions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// User name for HTTP basic authentication; without it and without a cookie file anyone may call.
    #[arg(long, requires = "password", conflicts_with = "cookie_file")]
    user: Option<String>,
    /// Password to the user name.
    #[arg(long, requires = "user")]
    password: Option<String>,
    /// Write a fresh `user:password` into this file, as bitcoind does, and remove it at the end.
    #[arg(long)]
    cookie_file: Option<PathBuf>,
    /// Publish `hashblock` here, as bitcoind's -zmqpubhashblock does. The second line printed is
    /// `publishing on tcp://ADDRESS`.
    #[arg(long)]
    zmq: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mix {
    Both,
    Witness,
    Legacy,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.transactions > 0 && arguments.mine < 100 {
        eprintln!("regtest-node: --transactions needs spendable coinbases, which mature after 100 blocks: give --mine 100 or more");
        return ExitCode::from(2);
    }
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("regtest-node: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprint!(": {inner}");
                cause = inner.source();
            }
            eprintln!();
            ExitCode::from(3)
        }
    }
}

fn serve(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Registered before anything that must be cleaned up: the block folder and the cookie.
    let asked_to_end = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&asked_to_end))?;
    }
    let node = Arc::new(Node::with_options(NodeOptions {
        mine: arguments.mine,
        transactions: arguments.transactions,
        mix: match arguments.mix {
            Mix::Both => TransactionMix::Both,
            Mix::Witness => TransactionMix::Witness,
            Mix::Legacy => TransactionMix::Legacy,
        },
        seed: arguments.seed,
    })?);
    let auth = match (arguments.user, arguments.password, arguments.cookie_file) {
        (Some(user), Some(password), _) => Auth::Basic { user, password },
        (_, _, Some(path)) => Auth::Cookie(path),
        _ => Auth::Open,
    };
    let server = Server::start(Arc::clone(&node), &arguments.listen, auth)?;
    let mut out = std::io::stdout();
    let publisher = match &arguments.zmq {
        Some(listen) => Some(Publisher::start(Arc::clone(&node), listen).map_err(|error| format!("publishing on {listen}: {error}"))?),
        None => None,
    };
    writeln!(out, "listening on {}", server.address())?;
    if let Some(publisher) = &publisher {
        writeln!(out, "publishing on tcp://{}", publisher.address())?;
    }
    out.flush()?;
    // Both flags are polled: a signal handler may do little else, and 50 ms more at the end hurt nobody.
    while !asked_to_end.load(std::sync::atomic::Ordering::Relaxed) && !server.is_stopping() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
