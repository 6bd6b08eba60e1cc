//! Work over threads: those of rayon's pool, where the feature is on.

use alloc::vec::Vec;
use core::ops::Range;

#[cfg(feature = "rayon")]
mod sharing;

/// What `sharing` is built from; in `loom/` these are loom's.
#[cfg(feature = "rayon")]
mod sync {
    pub use alloc::sync::Arc;
    pub use core::sync::atomic::{AtomicUsize, Ordering};
    pub use std::{sync::Mutex, thread::yield_now};
}

/// A product with fewer multiplications stays on the caller's thread. From 2^15 on, 1024 rows of 64 took half as long again: waking a
/// thread costs more than it does.
#[cfg(feature = "rayon")]
const PARALLEL_FROM: usize = 1 << 17;

/// Tasks for each thread: enough that one that is late is helped.
pub(super) const TASKS_PER_THREAD: usize = 4;

/// A raw pointer that tasks share: `*const T` to elements that are only read, or `*mut T`.
#[derive(Clone, Copy)]
pub(super) struct SharedPtr<P>(P);

// SAFETY: whoever reads through it has a `&T` on another thread, which `T: Sync` allows. Dereferencing it needs a safety argument
// of its own.
unsafe impl<T: Sync> Send for SharedPtr<*const T> {}
// SAFETY: as above; a reference to the pointer gives no more than a copy of it.
unsafe impl<T: Sync> Sync for SharedPtr<*const T> {}
// SAFETY: whoever writes through it moves a `T` to another thread, which `T: Send` allows; whoever reads, as above. Dereferencing
// it needs a safety argument of its own.
unsafe impl<T: Send + Sync> Send for SharedPtr<*mut T> {}
// SAFETY: as above; a reference to the pointer gives no more than a copy of it.
unsafe impl<T: Send + Sync> Sync for SharedPtr<*mut T> {}

impl<P: Copy> SharedPtr<P> {
    pub fn new(at: P) -> Self {
        SharedPtr(at)
    }

    /// A method, so that closures capture the wrapper, not the pointer in it.
    #[inline(always)]
    pub fn get(&self) -> P {
        self.0
    }
}

/// How many threads this much work is worth.
pub(super) fn count(multiplications: usize) -> usize {
    #[cfg(feature = "rayon")]
    if multiplications >= PARALLEL_FROM {
        return rayon::current_num_threads();
    }
    let _ = multiplications;
    1
}

/// How many tasks this much work is to be cut into.
pub(super) fn tasks(multiplications: usize) -> usize {
    match count(multiplications) {
        #[cfg(feature = "rayon")]
        threads @ 2.. => TASKS_PER_THREAD * threads,
        _ => 1,
    }
}

/// Calls `f` once for each of `0..tasks`, which together are work of this size.
///
/// # Panics
///
/// If `f` panics, on whichever thread.
pub(crate) fn for_each(tasks: usize, multiplications: usize, f: impl Fn(usize) + Send + Sync) {
    #[cfg(test)]
    let f = |task| {
        f(task);
        super::streaming::assert_fenced();
    };
    #[cfg(feature = "rayon")]
    if let (2.., threads @ 2..) = (tasks, count(multiplications)) {
        let at_once = tasks.div_ceil(TASKS_PER_THREAD * threads);
        let helpers = threads.min(tasks) - 1;
        return sharing::for_each(tasks, at_once, helpers, &f, |helper| rayon::spawn(|| helper.run()));
    }
    let _ = multiplications;
    (0..tasks).for_each(f);
}

/// What `f` gives for each of `0..tasks`, which together are work of this size.
///
/// # Panics
///
/// If `f` panics, on whichever thread; what it gave for other tasks is leaked.
pub(super) fn map<T: Send + Sync>(tasks: usize, multiplications: usize, f: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    let mut results = Vec::<T>::with_capacity(tasks);
    let slots = SharedPtr::new(results.as_mut_ptr());
    for_each(tasks, multiplications, |task| {
        let result = f(task);
        // SAFETY: there is a slot for each task, and each is called once.
        unsafe { slots.get().add(task).write(result) };
    });
    // SAFETY: every task has written to its slot: `for_each` would have panicked otherwise.
    unsafe { results.set_len(tasks) };
    results
}

/// Calls `f` with ranges that together make `0..count`, where each index costs so many multiplications.
///
/// # Panics
///
/// If `f` panics, on whichever thread.
pub(super) fn for_each_range(count: usize, cost: usize, f: impl Fn(Range<usize>) + Send + Sync) {
    let work = count.saturating_mul(cost);
    let tasks = tasks(work).min(count);
    for_each(tasks, work, |task| f(part(count, tasks, task)));
}

/// One of so many parts of `0..count`, which differ by one index at most. No product here is larger than `count`.
pub(super) fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (len, longer) = (count / parts, count % parts);
    let start = index * len + index.min(longer);
    start..start + len + usize::from(index < longer)
}

/// [`part`], of whole units but for the last. Empty, where there are more parts than units.
pub(super) fn part_of(count: usize, parts: usize, index: usize, unit: usize) -> Range<usize> {
    let units = part(count.div_ceil(unit), parts, index);
    (units.start * unit).min(count)..(units.end * unit).min(count)
}
