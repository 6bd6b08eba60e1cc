//! How fast `Dot` is against every other engine, and against what the machine can do.
//!
//! ```sh
//! cargo bench --features bench --bench dot -- --peers PYTHON
//! ```
//!
//! This binary is the driver, and also the worker of each engine written in Rust; those written in Python are in
//! `benches/peers/worker.py`. Each engine has a process of its own, and one computes at a time. An engine is timed only after its
//! output and gradients were found right. The rounds go through all engines in turn, so that a change of the machine's speed during
//! the run meets all of them. `benches/README.md` says what is measured and what the table means.

#[path = "dot/answer.rs"]
mod answer;
#[path = "../tests/suite/arrive.rs"]
mod arrive;
#[path = "dot/gemm.rs"]
mod bare_gemm;
#[path = "dot/cells.rs"]
mod cells;
#[path = "../examples/common/mod.rs"]
mod common;
#[path = "dot/device.rs"]
mod device;
#[path = "dot/engines.rs"]
mod engines;
#[path = "dot/machine.rs"]
mod machine;
#[path = "dot/measure.rs"]
mod measure;
#[path = "dot/memory.rs"]
mod memory;
#[path = "dot/pictures.rs"]
mod pictures;
#[path = "dot/process.rs"]
mod process;
#[path = "dot/report.rs"]
mod report;
#[path = "dot/results.rs"]
mod results;
mod shared;
#[path = "dot/smoke.rs"]
mod smoke;
#[path = "dot/table.rs"]
mod table;
#[path = "dot/worker.rs"]
mod worker;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::{Parser, builder::PossibleValuesParser};
use indicatif::{ProgressBar, ProgressStyle};

use common::Place;
use device::Speed;
use machine::Machine;
use process::{BURN, GEMM, Launch, MEMORY, ON_GPU, PYTHON, RUST, SYSTEM, Worker, YARDSTICKS};
use report::{Destination, Report};
use results::Run;
use shared::bandwidth::Bandwidth;

/// Engines of the growth of costs: enough lines for one picture.
const GROWING: [&str; 6] = ["fused", "composed", "torch", "torch-compile", "jax", MEMORY];
/// Bytes far beyond any cache, to say how fast memory itself is.
const BEYOND_CACHES: usize = 1 << 29;

/// Time Dot against other engines, one process each, in turn.
#[derive(Parser)]
struct Args {
    /// Python with torch, jax, keras and tensorflow; without it the engines in Rust alone run
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Cells to measure, by name, separated by commas; all by default
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(cells::names()))]
    cells: Vec<String>,
    /// Engines to measure, separated by commas; all by default
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(RUST.iter().chain(&PYTHON)))]
    engines: Vec<String>,
    /// Where Burn's engines compute: wgpu or cuda, with the features of that name; cuda:1 for a second GPU. flex, the CPU, by default
    #[arg(long, conflicts_with_all = ["growth", "threads", "preload", "smoke", "draw"])]
    device: Option<Place>,
    /// How often each engine is timed; the median counts
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Threads of every engine, each pinned to that many cores; all cores by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Allocators, such as /usr/lib/libmimalloc.so.2: each engine runs once more in a process that preloads it, for another table
    #[arg(long, value_name = "LIB.so", value_delimiter = ',')]
    preload: Vec<PathBuf>,
    /// Measure how the cost per element grows, instead of the cells
    #[arg(long, conflicts_with = "cells")]
    growth: bool,
    /// Folder for results, text and picture; target/bench by default
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write to benches/results and into benches/README.md: what is committed
    #[arg(long, conflicts_with_all = ["out", "engines"])]
    record: bool,
    /// Draw text and pictures from the results that are there, in benches/results or --out, without measuring
    #[arg(long)]
    draw: bool,
    /// Two small cells as a test, by the command in benches/README.md: right answers, no kernel much slower than expected beside Burn's operations
    #[arg(long)]
    smoke: bool,
    /// Be the worker of one engine (the driver starts it so)
    #[arg(long, hide = true)]
    worker: Option<String>,
    /// Print the speed of memory, in JSON (the driver starts it so)
    #[arg(long, hide = true)]
    bandwidth: bool,
    /// Print the speed of the device, in JSON (the driver starts it so)
    #[arg(long, hide = true)]
    speed: bool,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A worker answers panics itself.
    match &args.worker {
        Some(engine) => work(engine, args.device).map_or_else(fail, |()| ExitCode::SUCCESS),
        None => common::report(|| run(&args)),
    }
}

fn fail(error: anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn run(args: &Args) -> Result<()> {
    if args.draw {
        return draw(args.out.clone().map_or_else(Destination::recorded, Destination::folder));
    }
    let cores = thread::available_parallelism()?.get();
    let threads = args.threads.map_or(cores, usize::from);
    ensure!(threads <= cores, "--threads {threads}, but this machine has {cores} cores");
    if args.bandwidth {
        println!("{}", serde_json::to_string(&Bandwidth::measure(BEYOND_CACHES, threads))?);
        return Ok(());
    }
    if args.speed {
        let device = common::open(args.device.context("--speed is for a --device")?)?;
        println!("{}", serde_json::to_string(&Speed::measure(&device)?)?);
        return Ok(());
    }
    let (launch, folder) = (Launch { python: args.peers.clone(), device: args.device, threads, cores }, Folder::new()?);
    if args.smoke { smoke::run(&launch, &folder.0) } else { drive(args, &launch, &folder.0) }
}

fn work(engine: &str, place: Option<Place>) -> Result<()> {
    if YARDSTICKS.contains(&engine) {
        // They live inside the pool: no call has to wake them from outside.
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        return pool.install(|| worker::serve(if engine == GEMM { bare_gemm::load } else { memory::load }));
    }
    let device = place.map_or_else(|| Ok(Device::flex()), common::open)?;
    worker::serve(|case, inputs| engines::load(engine, &device, case, inputs))
}

fn draw(destination: Destination) -> Result<()> {
    let there: Vec<Report> = Report::ALL.into_iter().filter(|report| destination.has(*report)).collect();
    ensure!(!there.is_empty(), "no results there to draw from");
    for report in there {
        println!("{}", destination.draw(report)?.display());
    }
    Ok(())
}

fn drive(args: &Args, launch: &Launch, folder: &Path) -> Result<()> {
    let (report, destination) = (report(args)?, destination(args));
    let cases = match args.device {
        _ if args.growth => cells::growing_cases(),
        Some(_) if args.cells.is_empty() => cells::device_cases(),
        _ => cells::cases(&args.cells),
    };
    let mut machine = Machine::new(launch.threads, launch.cores);
    if args.device.is_none() {
        machine.add_bandwidth(launch.bandwidth()?);
    }
    machine.device = args.device.map(|place| launch.speed(place)).transpose()?;
    let mut workers = start(args, launch, folder)?;
    workers.iter().filter_map(|worker| worker.versions.as_ref()).for_each(|versions| machine.add_versions(versions));
    let engines = workers.iter().filter(|worker| worker.allocator == SYSTEM).map(|worker| worker.engine.clone()).collect();
    let allocators =
        [SYSTEM.into()].into_iter().chain(args.preload.iter().map(|library| process::allocator(library))).collect();
    let mut run = Run { machine, allocators, engines, cases: Vec::new() };

    let progress = ProgressBar::new(cases.len() as u64);
    progress.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);
    for case in cases {
        progress.set_message(case.title());
        let entry = measure::measure(case, &mut workers, folder, args.rounds)?;
        for measured in entry.measured.iter().filter(|measured| measured.wrong.is_some()) {
            let (engine, reason) = (&measured.engine, measured.wrong.as_deref().unwrap_or_default());
            progress.suspend(|| eprintln!("{}: {engine} is {reason}", entry.case.title()));
        }
        run.cases.push(entry);
        progress.inc(1);
        // After each case, so that a run cut short is not lost.
        destination.write(report, &run)?;
    }
    drop(workers);
    run.machine.load_after = shared::load_average();
    if args.device.is_none() {
        run.machine.add_bandwidth(launch.bandwidth()?);
    }
    if let (Some(place), Some(device)) = (args.device, &mut run.machine.device) {
        *device = launch.speed(place)?.better(device.clone());
    }
    destination.write(report, &run)?;
    progress.finish_and_clear();
    println!("{}", destination.draw(report)?.display());
    Ok(())
}

fn report(args: &Args) -> Result<Report> {
    let report = match (args.device, args.threads) {
        _ if args.growth => Report::Growth,
        (Some(place), _) => Report::of_device(place)?,
        (None, Some(1)) => Report::OneThread,
        (None, _) => Report::Table,
    };
    if args.record && args.device.is_none() {
        ensure!(args.peers.is_some(), "--record needs --peers PYTHON: a table without them would flatter");
        let whole = !matches!(report, Report::Table) || args.threads.is_none() && args.cells.is_empty();
        ensure!(whole, "--record is for all cells on all cores, for --threads 1, and for --growth");
    }
    Ok(report)
}

fn destination(args: &Args) -> Destination {
    let own = || concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench").into();
    if args.record { Destination::recorded() } else { Destination::folder(args.out.clone().unwrap_or_else(own)) }
}

fn start(args: &Args, launch: &Launch, folder: &Path) -> Result<Vec<Worker>> {
    for library in &args.preload {
        // The loader only warns about a library that is not there, and the times would be those of the system's allocator.
        let there = library.is_absolute() && library.is_file();
        ensure!(there, "--preload {}: give the whole path of a library", library.display());
    }
    let wanted = |engine: &&&str| {
        let growing = !args.growth || GROWING.contains(*engine);
        // What waits for memory is always held against it.
        let asked = args.engines.is_empty() || args.engines.iter().any(|name| name == **engine) || **engine == MEMORY;
        let there = match args.device {
            Some(place) => BURN.contains(*engine) || on_cuda(place) && ON_GPU.contains(*engine),
            None => true,
        };
        growing && asked && there && (args.peers.is_some() || !PYTHON.contains(*engine))
    };
    let mut workers = Vec::new();
    for engine in RUST.iter().chain(&PYTHON).filter(wanted) {
        workers.push(launch.engine(engine, None, folder)?);
        for library in &args.preload {
            workers.push(launch.engine(engine, Some(library), folder)?);
        }
    }
    let is_asked = |worker: &Worker| worker.engine != MEMORY || args.engines.iter().any(|name| name == MEMORY);
    ensure!(workers.iter().any(is_asked), "no engine left: {} need --peers PYTHON", PYTHON.join(", "));
    Ok(workers)
}

fn on_cuda(place: Place) -> bool {
    matches!(Report::of_device(place), Ok(Report::Cuda))
}

/// A temporary folder, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder = env::temp_dir().join(format!("burn-dot-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
