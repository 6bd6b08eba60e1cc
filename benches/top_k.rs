//! How fast the exact top-k of `burn-retrieval` is, against every other engine.
//!
//! ```sh
//! cargo bench --features bench --bench top_k -- --peers PYTHON            # prints the table
//! cargo bench --features bench --bench top_k -- --peers PYTHON --record   # also into benches/results and benches/README.md
//! ```
//!
//! Each engine has a process of its own, this binary or `benches/peers/top_k.py`, and one computes at a time. An engine is timed only
//! after its hits were compared with scores in f64. The rounds go through all engines in turn; the median counts.

#[path = "../examples/common/mod.rs"]
mod common;
mod shared;

use std::{
    env, fs,
    hint::black_box,
    io::{Write, stdin, stdout},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use burn::prelude::*;
use burn_dot::DotConfig;
use burn_retrieval::{Catalogue, Similarity};
use clap::Parser;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shared::{NOT_INHERITED, Process, load_average, said, write_region};

/// One search: so many queries and items of so many elements, f32.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Cell {
    queries: usize,
    items: usize,
    columns: usize,
    k: usize,
}

const CELLS: [Cell; 4] = [
    Cell { queries: 256, items: 100_000, columns: 128, k: 10 },
    Cell { queries: 256, items: 100_000, columns: 128, k: 100 },
    Cell { queries: 1, items: 1_000_000, columns: 128, k: 10 },
    Cell { queries: 4096, items: 20_000, columns: 64, k: 10 },
];

impl Cell {
    fn title(self) -> String {
        let Cell { queries, items, columns, k } = self;
        format!("{queries} × {items}, {columns} columns, k {k}")
    }
}

const OURS: &str = "catalogue";
const RUST: [&str; 4] = [OURS, "burn", MATMUL, READ];
const PYTHON: [&str; 6] = ["faiss", "usearch", "numpy", "torch", "jax", OPENBLAS];
/// The product of all queries with all items alone, by `Dot` and by numpy's BLAS: yardsticks, which leave out the search.
const MATMUL: &str = "dot";
const OPENBLAS: &str = "numpy-matmul";
/// Reading all items once, in memory like the catalogue's: a yardstick for a single query, which waits for memory.
const READ: &str = "read";
/// How long a worker computes before the next one's turn, at least once.
const SECONDS: f64 = 0.2;

/// Time exact top-k against other engines, one process each, in turn.
#[derive(Parser)]
struct Args {
    /// Python with what benches/peers/top_k.txt lists; without it the engines in Rust alone run
    #[arg(long)]
    peers: Option<PathBuf>,
    /// How often each engine is timed; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write to benches/results/top-k.json and into benches/README.md: what is committed
    #[arg(long, requires = "peers")]
    record: bool,
    /// Be the worker of one engine (the driver starts it so)
    #[arg(long, hide = true)]
    worker: Option<String>,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::report(|| match &args.worker {
        Some(engine) => serve(engine),
        None => drive(&args),
    })
}

/// A question to a worker; answers are [`Reply`].
#[derive(Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
enum Ask {
    /// Read the vectors, search once, write the indices as i64.
    Load { cell: Cell, queries: PathBuf, items: PathBuf, hits: PathBuf },
    /// Search for about so many seconds.
    Time { seconds: f64 },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Reply {
    /// Versions, or why this engine does not do this.
    note: Option<String>,
    skip: Option<String>,
    /// Microseconds of a search.
    us: f64,
}

// The worker.

fn serve(engine: &str) -> Result<()> {
    let answer = |reply: &Reply| anyhow::Ok(writeln!(stdout().lock(), "{}", serde_json::to_string(reply)?)?);
    answer(&Reply::default())?;
    let mut search: Option<Call> = None;
    for line in stdin().lines() {
        match serde_json::from_str(&line?)? {
            Ask::Load { cell, queries, items, hits } => {
                drop(search.take()); // The items of the last cell.
                let (call, indices) = load(engine, cell, &fs::read(queries)?, &fs::read(items)?)?;
                fs::write(hits, bytemuck::cast_slice(&indices))?;
                search = Some(call);
                answer(&Reply::default())?;
            }
            Ask::Time { seconds } => {
                let us = 1e6 * time(search.as_mut().context("nothing is loaded")?, seconds);
                answer(&Reply { us, ..Reply::default() })?;
            }
        }
    }
    Ok(())
}

/// Seconds of a call.
fn time(call: &mut dyn FnMut(), seconds: f64) -> f64 {
    call();
    let (start, mut calls) = (Instant::now(), 0);
    while calls == 0 || start.elapsed().as_secs_f64() < seconds {
        call();
        calls += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// A search.
type Call = Box<dyn FnMut()>;

/// A search, and the indices that it finds.
fn load(engine: &str, cell: Cell, queries: &[u8], items: &[u8]) -> Result<(Call, Vec<i64>)> {
    let device = Device::flex();
    let tensor = |bytes: &[u8], rows: usize| {
        let elements: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
        Tensor::<2>::from_data(TensorData::new(elements, [rows, cell.columns]), &device)
    };
    let (queries, items) = (tensor(queries, cell.queries), tensor(items, cell.items));
    Ok(match engine {
        OURS => {
            let catalogue = Catalogue::new(items, Similarity::Dot);
            let indices = catalogue.top_k(queries.clone(), cell.k).indices.into_data().iter().collect();
            (Box::new(move || _ = black_box(catalogue.top_k(queries.clone(), cell.k))), indices)
        }
        "burn" => {
            let search = move || queries.clone().matmul(items.clone().transpose()).topk_with_indices(cell.k, 1);
            let indices = search().1.into_data().iter().collect();
            (Box::new(move || _ = black_box(search())), indices)
        }
        MATMUL => {
            let dot = DotConfig::new(1).with_batch_dims(0).init();
            (Box::new(move || _ = black_box::<Tensor<2>>(dot.forward(queries.clone(), items.clone()))), Vec::new())
        }
        READ => {
            let items = burn_dot::in_huge_pages(items).into_data();
            let sum = |words: &[u64]| words.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x));
            let read =
                move || bytemuck::cast_slice(items.as_bytes()).par_chunks(1 << 14).map(sum).reduce(|| 0, u64::wrapping_add);
            (Box::new(move || _ = black_box(read())), Vec::new())
        }
        other => bail!("no engine {other}"),
    })
}

// The driver.

struct Worker {
    engine: &'static str,
    process: Process,
    versions: Option<String>,
}

impl Worker {
    fn start(engine: &'static str, python: Option<&Path>, folder: &Path) -> Result<Self> {
        let mut command = match python {
            Some(python) => Command::new(python),
            None => Command::new(env::current_exe()?),
        };
        match python {
            Some(_) => command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/top_k.py"), engine]),
            None => command.args(["--worker", engine]),
        };
        NOT_INHERITED.iter().for_each(|variable| _ = command.env_remove(variable));
        let mut start = || -> Result<Self> {
            let mut process = Process::start(&mut command, folder.join(format!("{engine}.txt")))?;
            let versions = process.reply::<Reply>()?.note;
            Ok(Worker { engine, process, versions })
        };
        start().with_context(|| format!("the worker of {engine}"))
    }

    fn ask(&mut self, ask: &Ask) -> Result<Reply> {
        self.process.ask(ask).with_context(|| format!("the worker of {}", self.engine))
    }
}

/// What a run found.
#[derive(Serialize, Deserialize)]
struct Run {
    machine: Vec<String>,
    cells: Vec<Measured>,
}

#[derive(Serialize, Deserialize)]
struct Measured {
    cell: Cell,
    engines: Vec<Engine>,
}

#[derive(Serialize, Deserialize)]
struct Engine {
    name: String,
    /// Microseconds, round by round; none where it was wrong or skipped, for this reason.
    us: Vec<f64>,
    reason: Option<String>,
}

impl Engine {
    fn median(&self) -> Option<f64> {
        let mut us = self.us.clone();
        us.sort_by(f64::total_cmp);
        us.get(us.len() / 2).copied()
    }

    fn is_yardstick(&self) -> bool {
        [MATMUL, OPENBLAS, READ].contains(&self.name.as_str())
    }
}

fn drive(args: &Args) -> Result<()> {
    let folder = env::temp_dir().join(format!("burn-retrieval-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let run = measure(args, &folder);
    fs::remove_dir_all(&folder).ok();
    let run = run?;
    let text = table(&run);
    print!("{text}");
    if args.record {
        write_region("benches/README.md", "top-k", &text)?;
        let results = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/top-k.json"));
        common::save_whole(results, |file| Ok(fs::write(file, serde_json::to_string_pretty(&run)? + "\n")?))?;
    }
    Ok(())
}

fn measure(args: &Args, folder: &Path) -> Result<Run> {
    let threads = thread::available_parallelism()?.get();
    let (cpu, date, commit, load) = (shared::cpu(), said("date", &["-u", "+%F"]), shared::commit(), load_average());
    let mut machine = vec![
        format!("{cpu}, {threads} cores; {date}; commit {commit}; load average {load} before"),
        said("rustc", &["--version"]),
    ];
    let mut workers = Vec::new();
    for engine in RUST {
        workers.push(Worker::start(engine, None, folder)?);
    }
    for engine in if args.peers.is_some() { &PYTHON[..] } else { &[] } {
        workers.push(Worker::start(engine, args.peers.as_deref(), folder)?);
    }
    machine[1] += &workers.iter().filter_map(|worker| Some(format!("; {}", worker.versions.as_ref()?))).collect::<String>();
    let cells = CELLS.iter().map(|&cell| measure_cell(cell, &mut workers, folder, args.rounds)).collect::<Result<_>>()?;
    machine[0] += &format!(", {} after", load_average());
    Ok(Run { machine, cells })
}

fn measure_cell(cell: Cell, workers: &mut [Worker], folder: &Path, rounds: u32) -> Result<Measured> {
    eprintln!("{}", cell.title());
    let mut rng = StdRng::seed_from_u64(1);
    let mut draw = |rows: usize| (0..rows * cell.columns).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<_>>();
    let (queries, items) = (draw(cell.queries), draw(cell.items));
    let files = ["queries", "items", "hits"].map(|name| folder.join(name));
    fs::write(&files[0], bytemuck::cast_slice(&queries))?;
    fs::write(&files[1], bytemuck::cast_slice(&items))?;
    let least = least_scores(cell, &queries, &items);
    let mut engines = Vec::new();
    for worker in workers.iter_mut() {
        let [queries_file, items_file, hits] = files.clone();
        let reply = worker.ask(&Ask::Load { cell, queries: queries_file, items: items_file, hits })?;
        let mut engine = Engine { name: worker.engine.into(), us: Vec::new(), reason: reply.skip };
        if engine.reason.is_none() && !engine.is_yardstick() {
            let indices: Vec<i64> = bytemuck::pod_collect_to_vec(&fs::read(&files[2])?);
            engine.reason = check(cell, &queries, &items, &least, &indices).err().map(|error| format!("wrong: {error}"));
        }
        engines.push(engine);
    }
    for round in 0..rounds as usize {
        for turn in 0..workers.len() {
            let turn = (turn + round) % workers.len(); // None is always behind the same one.
            if engines[turn].reason.is_none() {
                engines[turn].us.push(workers[turn].ask(&Ask::Time { seconds: SECONDS })?.us.round());
            }
        }
    }
    Ok(Measured { cell, engines })
}

fn score(query: &[f32], item: &[f32]) -> f64 {
    query.iter().zip(item).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// The k-th best score of each query, in f64.
fn least_scores(cell: Cell, queries: &[f32], items: &[f32]) -> Vec<f64> {
    let of_query = |query: &[f32]| {
        let mut scores: Vec<f64> = items.chunks_exact(cell.columns).map(|item| score(query, item)).collect();
        *scores.select_nth_unstable_by(cell.k - 1, |a, b| b.total_cmp(a)).1
    };
    queries.par_chunks_exact(cell.columns).map(of_query).collect()
}

/// Whether these are k different items for each query, none of which scores less than the k-th best, but for rounding.
fn check(cell: Cell, queries: &[f32], items: &[f32], least: &[f64], indices: &[i64]) -> Result<()> {
    ensure!(indices.len() == cell.queries * cell.k, "{} indices", indices.len());
    for ((query, found), least) in queries.chunks_exact(cell.columns).zip(indices.chunks_exact(cell.k)).zip(least) {
        let mut different = found.to_vec();
        different.sort_unstable();
        different.dedup();
        ensure!(different.len() == cell.k, "an item is there twice");
        for &index in found {
            let item = usize::try_from(index).ok().and_then(|index| items.chunks_exact(cell.columns).nth(index));
            let score = score(query, item.with_context(|| format!("index {index}"))?);
            ensure!(score >= least - 1e-4, "item {index} scores {score}, the last of the best {least}");
        }
    }
    Ok(())
}

/// Ratios to our time: above 1 the catalogue is faster.
fn table(run: &Run) -> String {
    let mut text = run.machine.iter().map(|line| format!("- {line}\n")).collect::<String>();
    let names: Vec<&String> = run.cells[0].engines.iter().map(|engine| &engine.name).filter(|name| *name != OURS).collect();
    text += "\n| search | catalogue, ms | fastest other | **its ratio** |";
    names.iter().for_each(|name| text += &format!(" {name} |"));
    text += "\n|---|---:|---|---:|";
    text += &"---:|".repeat(names.len());
    text += "\n";
    for Measured { cell, engines } in &run.cells {
        let of = |name: &str| engines.iter().find(|engine| engine.name == name);
        let Some(ours) = of(OURS).and_then(Engine::median) else { continue };
        let others = engines.iter().filter(|engine| engine.name != OURS && !engine.is_yardstick());
        let fastest = others.filter_map(|engine| Some((engine.median()?, &engine.name))).min_by(|a, b| a.0.total_cmp(&b.0));
        let (least, name) = fastest.map_or((f64::NAN, "–"), |(us, name)| (us, name.as_str()));
        text += &format!("| {} | {:.2} | {name} | **{:.2}** |", cell.title(), ours / 1e3, least / ours);
        for name in &names {
            let engine = of(name);
            text += &match engine.and_then(Engine::median) {
                Some(us) => format!(" {:.2} |", us / ours),
                None => format!(" {} |", engine.and_then(|engine| engine.reason.as_deref()).unwrap_or("–")),
            };
        }
        text += "\n";
    }
    text
}
