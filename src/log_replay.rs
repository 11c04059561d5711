//! `otedama log replay`: every recomputable verdict of a log judged again.
use crate::{Failure, LogArg, RangeArg, dir_of, print};
use otedama_kernels::Isa;
use otedama_replay::{Order, Report, replay};
use std::time::{Duration, Instant};

const HELP: &str = "\
Judged again from the rows and the dimension records alone, with the kernels of this machine: accepted, duplicate, low_difficulty, bad_time, bad_version, and stale by
the recorded end of its job; status, block flag and share_difficulty must be the same, bit for bit. What cannot be judged is counted by its reason.
The work of a row is taken as it stands, and held against its hash and the network's.

examples:
  otedama log replay --config otedama.toml --since 1h
  otedama log replay --dir data/log --since 2026-11-20 --until 2026-11-21 --threads 8 --json

Exit codes: 0 identical, 1 a difference (the first is named) or damage, 2 usage, 3 environment.";

#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct ReplayArgs {
    #[command(flatten)]
    log: LogArg,
    #[command(flatten)]
    range: RangeArg,
    /// Threads that judge; one more reads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Instruction set of the kernel: auto, portable, avx2, shani or avx512.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    isa: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ReplayArgs) -> Result<u8, Failure> {
    let isa = Isa::choose(&args.isa).ok_or_else(|| {
        let known: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        Failure::usage(format!("--isa {:?}: this machine has auto, {}", args.isa, known.join(", ")))
    })?;
    let (since_us, until_us) = args.range.moments()?;
    let order = Order { dir: dir_of(&args.log)?, since_us, until_us, threads: usize::from(args.threads), isa };
    let (started, cpu_before) = (Instant::now(), cpu());
    let report = replay(&order)?;
    let (wall_s, cpu_s) = (started.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    if args.json {
        print(&json(&report, isa, args.threads, wall_s, cpu_s)?)?;
    } else {
        let rate = report.judged as f64 / cpu_s.max(1e-9);
        print(&format!(
            "{}kernel {}, {wall_s:.2} s, {cpu_s:.2} s of CPU, {rate:.0} shares judged per second of CPU\n",
            report.to_text(),
            isa.label()
        ))?;
    }
    Ok(u8::from(!report.is_identical()))
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn json(report: &Report, isa: Isa, threads: u16, wall_s: f64, cpu_s: f64) -> Result<String, Failure> {
    let mut object = serde_json::to_value(report).map_err(|error| Failure::environment(error.to_string()))?;
    if let Some(object) = object.as_object_mut() {
        object.insert("identical".into(), report.is_identical().into());
        object.insert("kernel".into(), isa.label().into());
        object.insert("threads".into(), threads.into());
        object.insert("wall_s".into(), wall_s.into());
        object.insert("cpu_s".into(), cpu_s.into());
        object.insert("judged_per_cpu_s".into(), (report.judged as f64 / cpu_s.max(1e-9)).into());
    }
    Ok(object.to_string())
}
