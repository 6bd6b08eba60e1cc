//! Work over threads: those of rayon's pool, where the feature is on.

use core::ops::Range;

/// A product with fewer multiplications stays on the caller's thread. From 2^15 on, 1024 rows of 64 took half as long again: waking a
/// thread costs more than it does.
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

/// How many threads work of this size is worth.
pub(super) fn count(multiplications: usize) -> usize {
    #[cfg(feature = "rayon")]
    if multiplications >= PARALLEL_FROM {
        return rayon::current_num_threads();
    }
    let _ = multiplications;
    1
}

/// How many tasks work of this size is to be cut into.
pub(super) fn tasks(multiplications: usize) -> usize {
    match count(multiplications) {
        #[cfg(feature = "rayon")]
        threads @ 2.. => TASKS_PER_THREAD * threads,
        _ => 1,
    }
}

/// Calls `f` for each task of work of this size.
pub(super) fn for_each(tasks: usize, multiplications: usize, f: impl Fn(usize) + Send + Sync) {
    #[cfg(feature = "rayon")]
    if tasks > 1 && count(multiplications) > 1 {
        return shared::for_each(tasks, count(multiplications), &f);
    }
    let _ = multiplications;
    (0..tasks).for_each(f);
}

/// Calls `f` with ranges that together make `0..count`, where each index costs so many multiplications.
pub(super) fn for_each_range(count: usize, cost: usize, f: impl Fn(Range<usize>) + Send + Sync) {
    let work = count.saturating_mul(cost);
    let tasks = tasks(work).min(count);
    for_each(tasks, work, |task| f(task * count / tasks..(task + 1) * count / tasks));
}

/// Tasks that the caller's thread does, and threads of the pool help with if they come in time.
///
/// The caller never waits for a helper that has not begun, nor takes up other work meanwhile, as a parallel iterator or a scope of
/// rayon's would: Burn holds the lock of a graph during its backward pass, and the other work might want the same lock.
#[cfg(feature = "rayon")]
mod shared {
    use alloc::sync::Arc;
    use core::sync::atomic::{
        AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    };

    type Task = dyn Fn(usize) + Sync;

    struct Shared {
        /// The first task that nobody has.
        next: AtomicUsize,
        done: AtomicUsize,
        tasks: usize,
        /// How many are taken at once: neighbours, which read the same memory.
        several: usize,
        /// To be called only for a task that is not yet done.
        f: *const Task,
    }

    // SAFETY: `f` is `Sync`, and lives as long as it is called: see `for_each`.
    unsafe impl Send for Shared {}
    // SAFETY: as above.
    unsafe impl Sync for Shared {}

    /// Counts tasks as done, and so ends somebody's wait, even if one of them panics.
    struct Done<'a>(&'a Shared, usize);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.done.fetch_add(self.1, Release);
        }
    }

    impl Shared {
        fn work(&self) {
            loop {
                let first = self.next.fetch_add(self.several, Relaxed);
                if first >= self.tasks {
                    return;
                }
                let last = self.tasks.min(first + self.several);
                let _done = Done(self, last - first);
                // SAFETY: these tasks are not done yet, so the caller still waits, and `f` lives.
                let f = unsafe { &*self.f };
                (first..last).for_each(f);
            }
        }
    }

    /// Waits, when dropped, until nobody calls `f` any more.
    struct Wait<'a>(&'a Shared);

    impl Drop for Wait<'_> {
        fn drop(&mut self) {
            // After a panic there may be tasks that nobody has, and nobody shall have.
            let first = self.0.next.swap(self.0.tasks, Relaxed);
            let left = self.0.tasks.saturating_sub(first);
            while self.0.done.load(Acquire) + left < self.0.tasks {
                std::thread::yield_now();
            }
        }
    }

    pub fn for_each(tasks: usize, threads: usize, f: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is changed. `Wait` keeps this function, and with it the borrow of `f`, until all tasks are done or
        // will never begin; who comes later finds no task, and does not touch `f`.
        let f = unsafe { core::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Task>(f) };
        let several = tasks.div_ceil(super::TASKS_PER_THREAD * threads);
        let shared = Arc::new(Shared { next: AtomicUsize::new(0), done: AtomicUsize::new(0), tasks, several, f });
        let wait = Wait(&shared);
        for _ in 1..threads.min(tasks) {
            let shared = shared.clone();
            rayon::spawn(move || shared.work());
        }
        shared.work();
        drop(wait);
    }
}
