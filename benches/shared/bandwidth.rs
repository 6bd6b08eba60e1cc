//! How fast memory is: three loops over large arrays by all threads, as in the STREAM benchmark (McCalpin, 1995).

use std::{hint::black_box, sync::Barrier, thread, time::Instant};

use serde::{Deserialize, Serialize};

/// Bytes per second, best of several, in arrays of so many bytes together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bandwidth {
    pub working_set: usize,
    /// `Σ a`
    pub read: f64,
    /// `a = b`
    pub copy: f64,
    /// `a = b + 3 c`
    pub triad: f64,
}

/// How often each loop is timed, and for how many bytes.
const TIMES: usize = 7;
const BYTES: usize = 1 << 28;

impl Bandwidth {
    pub fn measure(working_set: usize, threads: usize) -> Self {
        let each = working_set.div_ceil(threads * size_of::<u64>());
        let read = best(threads, working_set, || vec![1; each], |a: &mut Vec<u64>| sum(a));
        let copy = best(
            threads,
            working_set,
            || (vec![0; each / 2], vec![1; each / 2]),
            |(a, b): &mut (Vec<u64>, Vec<u64>)| copy(a, b),
        );
        let triad =
            best(threads, working_set, || [0, 1, 2].map(|x| vec![x; each / 3]), |[a, b, c]: &mut [Vec<u64>; 3]| triad(a, b, c));
        Bandwidth { working_set, read, copy, triad }
    }

    pub fn better(self, other: Self) -> Self {
        let Bandwidth { working_set, .. } = self;
        let (read, copy, triad) = (self.read.max(other.read), self.copy.max(other.copy), self.triad.max(other.triad));
        Bandwidth { working_set, read, copy, triad }
    }
}

/// Of integers: compilers do not reorder a sum of floats, and then it waits for the adder, not for memory.
pub fn sum(a: &[u64]) -> u64 {
    a.iter().fold(0, |sum, x| sum.wrapping_add(*x))
}

pub fn copy(a: &mut [u64], b: &[u64]) -> u64 {
    a.copy_from_slice(b);
    a.len() as u64
}

pub fn triad(a: &mut [u64], b: &[u64], c: &[u64]) -> u64 {
    a.iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = b.wrapping_add(c.wrapping_mul(3)));
    a.len() as u64
}

/// Each thread repeats the loop over arrays of its own, so that starting threads does not count.
fn best<A>(threads: usize, bytes: usize, arrays: impl Fn() -> A + Sync, run: impl Fn(&mut A) -> u64 + Sync) -> f64 {
    let (repeats, barrier) = ((BYTES / bytes).max(1), Barrier::new(threads));
    let worker = || {
        let mut arrays = arrays();
        black_box(run(&mut arrays));
        let timed = (0..TIMES).map(|_| {
            barrier.wait();
            let start = Instant::now();
            for _ in 0..repeats {
                black_box(run(black_box(&mut arrays)));
            }
            barrier.wait();
            start.elapsed().as_secs_f64()
        });
        timed.fold(f64::INFINITY, f64::min)
    };
    let seconds = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a loop over integers")).fold(0.0, f64::max)
    });
    (bytes * repeats) as f64 / seconds
}
