//! How fast `Dot` is, beside other engines and beside what the machine can do.
//!
//! ```sh
//! cargo bench --features bench --bench dot -- --peers PYTHON --out benches/results
//! ```
//!
//! This binary is the driver, and also the worker of each engine written in Rust; those written in Python are in
//! `benches/peers/worker.py`. Each engine has a process of its own, and one computes at a time. An engine is timed only after its
//! output and gradients were found right. The rounds go through all engines in turn, so that the machine's drift hits them alike.

#[path = "dot/gemm.rs"]
mod bare_gemm;
#[path = "dot/cells.rs"]
mod cells;
#[path = "dot/engines.rs"]
mod engines;
#[path = "dot/limits.rs"]
mod limits;
#[path = "dot/report.rs"]
mod report;
#[path = "dot/worker.rs"]
mod worker;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, builder::PossibleValuesParser};
use indicatif::{ProgressBar, ProgressStyle};

use cells::{Answer, Case};
use report::{Measured, Run};
use worker::{Ask, What, Worker};

const ENGINES: [&str; 11] =
    ["fused", "composed", "burn", "candle", "ndarray", "torch", "torch-compile", "jax", "keras-tf", "limit", "gemm"];
const PYTHON: [&str; 4] = ["torch", "torch-compile", "jax", "keras-tf"];
const GROWING: [&str; 5] = ["fused", "composed", "torch", "torch-compile", "jax"];

/// How long a worker computes before the next one's turn.
const SECONDS: f64 = 0.015;
/// Between two turns, for the threads of the last engine to fall asleep.
const PAUSE: Duration = Duration::from_millis(4);

/// Time Dot beside other engines, one process each, in turn.
#[derive(Parser)]
struct Args {
    /// Python with torch, jax, keras and tensorflow; without it the engines in Rust alone run
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Cells to measure, by name, separated by commas; all by default
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(cells::names()))]
    cells: Vec<String>,
    /// Engines to measure, separated by commas; all by default
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(ENGINES))]
    engines: Vec<String>,
    /// How often each engine is timed; the median counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Threads of every engine, each pinned to that many cores; all cores by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// An allocator, such as libmimalloc.so.2: each engine runs once more in a process that preloads it
    #[arg(long, value_name = "LIB.so")]
    preload: Option<PathBuf>,
    /// Measure how the cost per element grows, instead of the cells
    #[arg(long, conflicts_with = "cells")]
    growth: bool,
    /// Folder for tables and pictures
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Be the worker of one engine (the driver starts it so)
    #[arg(long, hide = true)]
    worker: Option<String>,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.worker {
        Some(engine) => work(engine),
        None => drive(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(engine: &str) -> Result<()> {
    let yardstick = match engine {
        "limit" => limits::load,
        "gemm" => bare_gemm::load,
        _ => return worker::serve(|case, inputs| engines::load(engine, case, inputs)),
    };
    // The yardsticks live inside the pool: no call has to wake it from outside.
    let pool = rayon::ThreadPoolBuilder::new().build()?;
    pool.install(|| worker::serve(yardstick))
}

fn drive(args: &Args) -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    let threads = args.threads.map_or(cores, usize::from);
    ensure!(threads <= cores, "--threads {threads}, but this machine has {cores} cores");
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let (folder, load) = (Folder::new()?, report::load_average());
    let mut workers = start(args, &folder.0, threads, cores)?;
    let versions = workers.iter().filter_map(|worker| worker.versions.clone()).collect();
    let mut run = Run::new(versions, threads, args.rounds, args.preload.as_deref().map(allocator), &load);

    let names: Vec<String> = cells::names().map(String::from).collect();
    let chosen = if args.cells.is_empty() { &names } else { &args.cells };
    let cases = if args.growth { cells::growing_cases() } else { cells::cases(chosen) };
    let progress = ProgressBar::new(cases.len() as u64);
    progress.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);
    for case in cases {
        progress.set_message(case.title());
        let measured = measure(&case, &mut workers, &folder.0, args.rounds)?;
        for (engine, reason) in measured.iter().filter_map(|(name, m)| Some((name, m.wrong.as_ref()?))) {
            progress.suspend(|| eprintln!("{}: {engine} is {reason}", case.title()));
        }
        run.add(case, measured);
        progress.inc(1);
        // After each case, so that a run cut short is not lost.
        if args.growth { report::write_growth(&args.out, &run)? } else { report::write(&args.out, &run)? }
    }
    progress.finish_and_clear();
    println!("{}", args.out.join(if args.growth { "growth.svg" } else { "table.md" }).display());
    Ok(())
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

/// `libmimalloc.so.2` is mimalloc.
fn allocator(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    name.trim_start_matches("lib").split('.').next().unwrap_or_default().to_string()
}

fn start(args: &Args, folder: &Path, threads: usize, cores: usize) -> Result<Vec<Worker>> {
    if let Some(library) = &args.preload {
        // The loader only warns about a library that is not there, and the numbers would be those of the system's allocator.
        ensure!(
            library.is_absolute() && library.is_file(),
            "--preload {}: give the whole path of a library",
            library.display()
        );
    }
    let wanted = |engine: &&&str| {
        let growing = !args.growth || GROWING.contains(*engine);
        let asked = args.engines.is_empty() || args.engines.iter().any(|name| name == **engine);
        growing && asked && (args.peers.is_some() || !PYTHON.contains(*engine))
    };
    let mut workers = Vec::new();
    for engine in ENGINES.iter().filter(wanted) {
        for preload in [None, args.preload.as_deref()].iter().take(1 + usize::from(args.preload.is_some())) {
            let mut command = command(args, engine, threads, cores)?;
            let name = preload.map_or(engine.to_string(), |library| format!("{engine}+{}", allocator(library)));
            if let Some(library) = preload {
                command.env("LD_PRELOAD", library);
            }
            workers.push(Worker::start(&name, &mut command, folder)?);
        }
    }
    ensure!(!workers.is_empty(), "no engine left: torch, torch-compile, jax and keras-tf need --peers PYTHON");
    Ok(workers)
}

fn command(args: &Args, engine: &str, threads: usize, cores: usize) -> Result<Command> {
    let own = env::current_exe()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/worker.py");
    let (program, rest) = match &args.peers {
        Some(python) if PYTHON.contains(&engine) => (python.as_path(), vec![script, engine]),
        _ => (own.as_path(), vec!["--worker", engine]),
    };
    let mut command = if threads < cores {
        let mut pinned = Command::new("taskset");
        pinned.arg("-c").arg(format!("0-{}", threads - 1)).arg(program);
        pinned
    } else {
        Command::new(program)
    };
    command.args(rest);
    for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    Ok(command)
}

/// Loads a case into every worker, checks what each computed, and times those that are right.
fn measure(case: &Case, workers: &mut [Worker], folder: &Path, rounds: u32) -> Result<Vec<(String, Measured)>> {
    let inputs = cells::inputs(case);
    let paths = ["lhs", "rhs", "out", "grad_lhs", "grad_rhs"].map(|name| folder.join(name));
    let [lhs, rhs, results @ ..] = &paths;
    fs::write(lhs, &inputs[0])?;
    fs::write(rhs, &inputs[1])?;
    let answer = cells::answer(case, &inputs);
    // The bare matrix product does not normalise; it is measured beside the normalised cells as what they cannot do without.
    let plain = Case { normalize: false, ..case.clone() };
    let plain_answer = cells::answer(&plain, &inputs);

    let mut measured = Vec::new();
    for worker in workers.iter_mut() {
        let bare = worker.name.starts_with("gemm");
        let (case, answer) = if bare { (&plain, &plain_answer) } else { (case, &answer) };
        measured.push((worker.name.clone(), load(case, answer, worker, [lhs, rhs], results)?));
    }
    for round in 0..rounds as usize {
        for what in [What::Forward, What::Backward] {
            for turn in 0..workers.len() {
                // Each round begins with another engine: none is always behind the same one.
                let turn = (turn + round) % workers.len();
                let engine = &mut measured[turn].1;
                if engine.can(what) {
                    match workers[turn].ask(&Ask::Time { what, seconds: SECONDS }) {
                        Ok(reply) => engine.times(what).push(reply.us),
                        Err(dead) => *engine = Measured { skip: Some(format!("{dead:#}")), ..Measured::default() },
                    }
                    thread::sleep(PAUSE);
                }
            }
        }
    }
    for worker in workers {
        worker.ask(&Ask::Unload).ok();
    }
    Ok(measured)
}

fn load(case: &Case, answer: &Answer, worker: &mut Worker, inputs: [&PathBuf; 2], results: &[PathBuf; 3]) -> Result<Measured> {
    let ask = Ask::Load { case: Box::new(case.clone()), inputs: inputs.map(Clone::clone), results: results.clone() };
    let reply = match worker.ask(&ask) {
        Ok(reply) => reply,
        Err(dead) => return Ok(Measured { skip: Some(format!("{dead:#}")), ..Measured::default() }),
    };
    let mut measured = Measured { skip: reply.skip, note: reply.note, results: reply.results, ..Measured::default() };
    let given = results[..reply.results].iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    measured.wrong = cells::check(case, answer, &given).err();
    Ok(measured)
}
