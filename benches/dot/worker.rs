//! The worker's side: a process that holds one engine and answers the driver in lines of JSON: load, time, unload.

use std::{
    any::Any,
    fs,
    hint::black_box,
    io::{Write, stdin, stdout},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result};
use bytemuck::Pod;
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
    /// Call for about so many seconds.
    Time {
        pass: Pass,
        seconds: f64,
    },
    Unload,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    Forward,
    /// Forward and backward.
    Backward,
}

impl Pass {
    pub const ALL: [Pass; 2] = [Pass::Forward, Pass::Backward];

    pub fn name(self) -> &'static str {
        if self == Pass::Forward { "forward" } else { "forward+backward" }
    }
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

/// A way of computing a pass, by name. Of several the fastest counts: a yardstick must not depend on a guess.
pub type Way = (&'static str, Box<dyn FnMut()>);

/// The fastest way of each pass.
pub fn fastest_of(forward: Vec<Way>, backward: Vec<Way>, results: impl FnOnce() -> Vec<Vec<u8>>) -> Loaded {
    let ((way, mut forward), (way_back, mut backward)) = (fastest(forward), fastest(backward));
    forward();
    backward();
    let note = Some(format!("forward: {way}; both: {way_back}"));
    Loaded { forward, backward: Some(backward), results: results(), note }
}

/// The fastest of several ways; of slow ones, by fewer tries.
pub fn fastest(ways: Vec<Way>) -> Way {
    let mut timed: Vec<(f64, Way)> = ways.into_iter().map(|way| (f64::INFINITY, way)).collect();
    let start = Instant::now();
    for round in 0..5 {
        if round > 0 && start.elapsed().as_secs_f64() > 1.0 {
            break;
        }
        timed.iter_mut().for_each(|(best, way)| *best = best.min(time(&mut way.1, 0.005)));
    }
    timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a way").1
}

/// The elements of raw bytes.
pub fn elements<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The raw bytes of elements.
pub fn bytes<T: Pod>(elements: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(elements).to_vec()
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
                    Err(panic) => Reply { skip: Some(format!("panicked: {}", said(&*panic))), ..Reply::default() },
                }
            }
            Ask::Time { pass, seconds } => {
                let engine = loaded.as_mut().context("nothing is loaded")?;
                let call = if pass == Pass::Forward {
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

/// The first line of a panic's message.
fn said(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    said.unwrap_or_default().lines().find(|line| !line.is_empty()).unwrap_or("no reason given")
}

fn answer(reply: &Reply) -> Result<()> {
    Ok(writeln!(stdout().lock(), "{}", serde_json::to_string(reply)?)?)
}

/// Seconds per call. A first call brings threads and caches back and is not counted, a second says how many fit; where it alone takes
/// that long, it is the one that counts.
pub fn time(call: &mut dyn FnMut(), seconds: f64) -> f64 {
    call();
    let start = Instant::now();
    call();
    let one = start.elapsed().as_secs_f64();
    if one >= seconds {
        return one;
    }
    let calls = (seconds / one).clamp(3.0, 1e5) as u32;
    let start = Instant::now();
    (0..calls).for_each(|_| black_box(&mut *call)());
    start.elapsed().as_secs_f64() / f64::from(calls)
}
