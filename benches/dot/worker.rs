//! A worker process holds one engine. The driver speaks to it in lines of JSON: load, check, time, unload.

use std::{
    fs,
    hint::black_box,
    io::{BufRead, BufReader, Write, stdin, stdout},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cells::Case;

#[derive(Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Ask {
    /// Read the inputs, run both passes once, write output and gradients.
    Load {
        case: Box<Case>,
        inputs: [PathBuf; 2],
        results: [PathBuf; 3],
    },
    /// Run for about so many seconds, three calls at least.
    Time {
        what: What,
        seconds: f64,
    },
    Unload,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Forward,
    Backward,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// Why this engine does not do this.
    pub skip: Option<String>,
    /// Which way of computing it the engine chose, or versions of libraries in its first line.
    pub note: Option<String>,
    /// How many of out, grad lhs, grad rhs were written.
    pub results: usize,
    /// Microseconds per call.
    pub us: f64,
}

/// One engine with one case loaded.
pub struct Loaded {
    pub forward: Box<dyn FnMut()>,
    /// Forward and backward; `None` where the engine has no gradients.
    pub backward: Option<Box<dyn FnMut()>>,
    /// Output and gradients as raw bytes.
    pub results: Vec<Vec<u8>>,
    pub note: Option<String>,
}

/// A way of computing a pass, by name. Of several the fastest counts: a bound must not depend on a guess.
pub type Way = (&'static str, Box<dyn FnMut()>);

/// The fastest way of each pass.
pub fn fastest_of(forward: Vec<Way>, backward: Vec<Way>, results: impl FnOnce() -> Vec<Vec<u8>>) -> Loaded {
    let ((way, mut forward), (way_back, mut backward)) = (fastest(forward), fastest(backward));
    forward();
    backward();
    let note = Some(format!("forward: {way}; both: {way_back}"));
    Loaded { forward, backward: Some(backward), results: results(), note }
}

fn fastest(ways: Vec<Way>) -> Way {
    let mut timed: Vec<(f64, Way)> = ways.into_iter().map(|way| (f64::INFINITY, way)).collect();
    for _ in 0..5 {
        timed.iter_mut().for_each(|(best, way)| *best = best.min(time(&mut way.1, 0.005)));
    }
    timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a way").1
}

/// The numbers of raw bytes.
pub fn numbers<T: Copy>(bytes: &[u8]) -> Vec<T> {
    let all = bytes.chunks_exact(size_of::<T>());
    // SAFETY: called for float types only, of which every bit pattern is a value.
    all.map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }).collect()
}

/// The raw bytes of numbers.
pub fn bytes<T: Copy>(numbers: &[T]) -> Vec<u8> {
    // SAFETY: called for float types only, which have no padding.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) }.to_vec()
}

/// Answers the driver until it hangs up.
pub fn serve(load: impl Fn(&Case, [Vec<u8>; 2]) -> Result<Loaded>) -> Result<()> {
    let mut loaded: Option<Loaded> = None;
    answer(&Reply::default())?;
    for line in stdin().lines() {
        let reply = match serde_json::from_str(&line?).context("the driver's request")? {
            Ask::Load { case, inputs, results } => {
                let inputs = [fs::read(&inputs[0])?, fs::read(&inputs[1])?];
                // Engines refuse by an error or by a panic; both are a reason to skip.
                match catch_unwind(AssertUnwindSafe(|| load(&case, inputs))) {
                    Ok(Ok(engine)) => {
                        for (path, bytes) in results.iter().zip(&engine.results) {
                            fs::write(path, bytes)?;
                        }
                        let (results, note) = (engine.results.len(), engine.note.clone());
                        loaded = Some(engine);
                        Reply { results, note, ..Reply::default() }
                    }
                    Ok(Err(reason)) => Reply { skip: Some(format!("{reason:#}")), ..Reply::default() },
                    Err(panic) => {
                        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                        let reason =
                            said.unwrap_or_default().lines().find(|line| !line.is_empty()).unwrap_or("no reason given");
                        Reply { skip: Some(format!("panicked: {reason}")), ..Reply::default() }
                    }
                }
            }
            Ask::Time { what, seconds } => {
                let engine = loaded.as_mut().context("nothing is loaded")?;
                let call = if what == What::Forward {
                    &mut engine.forward
                } else {
                    engine.backward.as_mut().context("no backward")?
                };
                Reply { us: 1e6 * time(call, seconds), ..Reply::default() }
            }
            Ask::Unload => {
                loaded = None;
                Reply::default()
            }
        };
        answer(&reply)?;
    }
    Ok(())
}

fn answer(reply: &Reply) -> Result<()> {
    Ok(writeln!(stdout().lock(), "{}", serde_json::to_string(reply)?)?)
}

/// Seconds per call. A first call brings threads and caches back and is not counted, a second says how many fit.
pub fn time(call: &mut dyn FnMut(), seconds: f64) -> f64 {
    call();
    let start = Instant::now();
    call();
    let calls = (seconds / start.elapsed().as_secs_f64()).clamp(3.0, 1e5) as u32;
    let start = Instant::now();
    (0..calls).for_each(|_| black_box(&mut *call)());
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// The driver's end of a worker.
pub struct Worker {
    /// The engine, with `+allocator` where one is preloaded.
    pub name: String,
    pub versions: Option<String>,
    child: Child,
    ask: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    complaints: PathBuf,
}

impl Worker {
    /// Starts a process; what it says on stderr goes to a file, to be quoted if it dies.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let complaints = folder.join(format!("{name}.txt"));
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&complaints)?);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?} for {name}", command.get_program()))?;
        let replies = BufReader::new(child.stdout.take().context("no stdout")?);
        let ask = child.stdin.take();
        let mut worker = Worker { name: name.into(), versions: None, child, ask, replies, complaints };
        worker.versions = worker.reply()?.note;
        Ok(worker)
    }

    pub fn ask(&mut self, ask: &Ask) -> Result<Reply> {
        let line = serde_json::to_string(ask)? + "\n";
        let sent = self.ask.as_mut().context("hung up")?.write_all(line.as_bytes());
        // A broken pipe means that it died; `reply` says why.
        sent.ok();
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.replies.read_line(&mut line)?;
        if line.is_empty() {
            let said = fs::read_to_string(&self.complaints).unwrap_or_default();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            bail!("the worker of {} died: {last}", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("the worker of {} answered {line:?}", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ask = None; // End of its input, at which it leaves.
        self.child.wait().ok();
    }
}
