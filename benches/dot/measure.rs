//! Measures one case: every engine loads it, is checked, and is then timed in rounds.

use std::{fs, path::Path, path::PathBuf, thread, time::Duration, time::Instant};

use anyhow::Result;

use crate::{
    answer::Answer,
    cells::{self, Case},
    process::{GEMM, MEMORY, Worker},
    results::{Entry, Measured},
    worker::{Ask, Pass},
};

/// How long a worker computes before the next one's turn.
const SECONDS: f64 = 0.015;
/// Between two turns, for the threads of the last engine to fall asleep.
const PAUSE: Duration = Duration::from_millis(4);
/// A case of slow engines ends early, after so many seconds, but not before so many rounds.
const CASE_SECONDS: f64 = 15.0;
const FEWEST_ROUNDS: u32 = 5;

/// Loads a case into every worker, checks what each computed, and times those that are right.
pub fn measure(case: Case, workers: &mut [Worker], folder: &Path, rounds: u32) -> Result<Entry> {
    let files = Files::write(&case, folder)?;
    let mut measured = load(&case, workers, &files)?;
    let start = Instant::now();
    for round in 0..rounds {
        if round >= FEWEST_ROUNDS && start.elapsed().as_secs_f64() > CASE_SECONDS {
            break;
        }
        for pass in Pass::ALL {
            for turn in 0..workers.len() {
                // Each round begins with another engine: none is always behind the same one.
                let turn = (turn + round as usize) % workers.len();
                time(pass, &mut workers[turn], &mut measured[turn]);
            }
        }
    }
    for worker in workers {
        worker.ask(&Ask::Unload).ok();
    }
    Ok(Entry { case, measured })
}

/// The files by which driver and workers exchange arrays.
struct Files {
    inputs: [PathBuf; 2],
    results: [PathBuf; 3],
}

impl Files {
    fn write(case: &Case, folder: &Path) -> Result<Self> {
        let inputs = ["lhs", "rhs"].map(|name| folder.join(name));
        for (path, bytes) in inputs.iter().zip(cells::inputs(case)) {
            fs::write(path, bytes)?;
        }
        Ok(Files { inputs, results: ["out", "grad_lhs", "grad_rhs"].map(|name| folder.join(name)) })
    }
}

fn load(case: &Case, workers: &mut [Worker], files: &Files) -> Result<Vec<Measured>> {
    // The gemm crate does not normalise; beside normalised cells it is the product that they cannot do without.
    let plain = Case { normalize: false, ..case.clone() };
    let answer = Answer::new(case, &cells::inputs(case));
    let plain_answer = (case.normalize && workers.iter().any(|worker| worker.engine == GEMM))
        .then(|| Answer::new(&plain, &cells::inputs(&plain)));
    let each = workers.iter_mut().map(|worker| match &plain_answer {
        Some(plain_answer) if worker.engine == GEMM => load_one(&plain, plain_answer, worker, files),
        _ => load_one(case, &answer, worker, files),
    });
    each.collect()
}

fn load_one(case: &Case, answer: &Answer, worker: &mut Worker, files: &Files) -> Result<Measured> {
    let ask = Ask::Load { case: Box::new(case.clone()), inputs: files.inputs.clone(), results: files.results.clone() };
    let mut measured = Measured::new(&worker.engine, &worker.allocator);
    match worker.start().and_then(|()| worker.ask(&ask)) {
        // It gives no answers.
        Ok(reply) if worker.engine == MEMORY => {
            measured.passes = if reply.skip.is_none() { 2 } else { 0 };
            (measured.skip, measured.note) = (reply.skip, reply.note);
        }
        Ok(reply) => {
            let given = files.results[..reply.results].iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
            (measured.skip, measured.note, measured.passes) = (reply.skip, reply.note, reply.results.min(2));
            measured.wrong = answer.check(case, &given).err();
        }
        Err(reason) => measured.skip = Some(format!("{reason:#}")),
    }
    Ok(measured)
}

fn time(pass: Pass, worker: &mut Worker, measured: &mut Measured) {
    if measured.can(pass) {
        match worker.ask(&Ask::Time { pass, seconds: SECONDS }) {
            // To the nanosecond.
            Ok(reply) => measured.times_mut(pass).push((reply.us * 1e3).round() / 1e3),
            // Half of its rounds would be compared with all of the others'.
            Err(reason) => {
                *measured = Measured::new(&worker.engine, &worker.allocator);
                measured.skip = Some(format!("{reason:#}"));
            }
        }
        thread::sleep(PAUSE);
    }
}
