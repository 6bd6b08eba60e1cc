//! Work over threads: rayon's, where the feature is on.

use core::ops::Range;
#[cfg(feature = "rayon")]
use core::sync::atomic::{AtomicUsize, Ordering};

/// A product with fewer multiplications stays on the caller's thread.
#[cfg(feature = "rayon")]
const PARALLEL_FROM: usize = 1 << 17;

/// Tasks for each thread: enough that one that is late is helped.
#[cfg(feature = "rayon")]
const TASKS_PER_THREAD: usize = 4;

/// A pointer, or several, that tasks share. What they do with it is theirs to prove safe.
#[derive(Clone, Copy)]
pub(super) struct Ptr<P>(pub P);

// SAFETY: tasks dereference it only under the promises of the kernels: they write to places of their own.
unsafe impl<P> Send for Ptr<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Ptr<P> {}

impl<P: Copy> Ptr<P> {
    /// A method, so that closures capture the whole.
    #[inline(always)]
    pub fn get(&self) -> P {
        self.0
    }
}

/// How many threads there are.
pub(super) fn count() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// How many tasks work of this size is to be cut into.
pub(super) fn tasks(multiplications: usize) -> usize {
    #[cfg(feature = "rayon")]
    if multiplications >= PARALLEL_FROM {
        return if count() == 1 { 1 } else { TASKS_PER_THREAD * count() };
    }
    let _ = multiplications;
    1
}

/// Calls `f` for each task, on this thread and on helpers. Each takes the next tasks that nobody has, neighbours together: they read
/// the same memory.
///
/// A parallel iterator would put the caller to sleep and wake two threads of the pool.
pub(super) fn for_each(tasks: usize, f: impl Fn(usize) + Send + Sync) {
    #[cfg(feature = "rayon")]
    if tasks > 1 && count() > 1 {
        let (next, several) = (AtomicUsize::new(0), tasks.div_ceil(TASKS_PER_THREAD * count()));
        let work = || {
            loop {
                let first = next.fetch_add(several, Ordering::Relaxed);
                if first >= tasks {
                    break;
                }
                (first..tasks.min(first + several)).for_each(&f);
            }
        };
        return rayon::in_place_scope(|scope| {
            for _ in 1..count().min(tasks) {
                scope.spawn(|_| work());
            }
            work();
        });
    }
    (0..tasks).for_each(f);
}

/// Calls `f` with ranges that together make `0..count`, where each index costs so many multiplications.
pub(super) fn for_each_range(count: usize, cost: usize, f: impl Fn(Range<usize>) + Send + Sync) {
    let tasks = tasks(count.saturating_mul(cost)).min(count);
    for_each(tasks, |task| f(task * count / tasks..(task + 1) * count / tasks));
}
