//! Work sharing: the caller's thread does tasks, and helpers take some of them over if they come in time.
//!
//! The caller never waits for a helper that has not begun, nor takes up other work meanwhile, as a parallel iterator or a scope of
//! rayon's would: Burn holds the lock of a graph during its backward pass, and the other work might want the same lock.
//!
//! The primitives come from the parent module, so that `loom/` checks this very file, whichever thread comes first.

use alloc::boxed::Box;
use core::any::Any;
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::PoisonError,
};

use super::sync::{
    Arc, AtomicUsize, Mutex,
    Ordering::{Acquire, Relaxed, Release},
    yield_now,
};

type TaskFn = dyn Fn(usize) + Sync;
type Panic = Box<dyn Any + Send>;

/// A borrow of the caller's closure whose lifetime is not written down: [`for_each`] keeps it.
struct TaskPtr(*const TaskFn);

// SAFETY: it stands for a `&TaskFn`, which is `Send` because `TaskFn` is `Sync`.
unsafe impl Send for TaskPtr {}
// SAFETY: as above; `&TaskFn` is `Sync` for the same reason.
unsafe impl Sync for TaskPtr {}

struct Shared {
    /// The first task that nobody has taken.
    next: AtomicUsize,
    /// How many tasks are over, or will not be begun.
    done: AtomicUsize,
    tasks: usize,
    /// How many are taken at once: neighbours, which read the same memory.
    at_once: usize,
    /// Valid only until the last task is done.
    f: TaskPtr,
    /// The first panic of a task.
    panic: Mutex<Option<Panic>>,
}

/// What a thread runs to take over tasks. It may begin at any time, also after [`for_each`] has returned: it finds no task then.
pub struct Helper(Arc<Shared>);

impl Helper {
    pub fn run(self) {
        self.0.work();
    }
}

/// Calls `f` once for each of `0..tasks`, on the caller's thread and on those that run what `spawn` is given.
///
/// # Panics
///
/// With the panic of a task, whichever thread it ran on. Tasks that nobody had taken by then are not done.
pub fn for_each(tasks: usize, at_once: usize, helpers: usize, f: &(dyn Fn(usize) + Sync), spawn: impl Fn(Helper)) {
    // SAFETY: only the lifetime changes. `f` is called for tasks that are not done, and this function, which borrows it, does not return
    // or unwind before all of them are: nothing between here and the loop below panics, but what is caught.
    let f = TaskPtr(unsafe { core::mem::transmute::<*const (dyn Fn(usize) + Sync), *const TaskFn>(f) });
    let (next, done, panic) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
    let shared = Arc::new(Shared { next, done, tasks, at_once, f, panic });
    let spawned = catch_unwind(AssertUnwindSafe(|| (0..helpers).for_each(|_| spawn(Helper(shared.clone())))));
    if let Err(panic) = spawned {
        shared.stop(panic);
    }
    shared.work();
    while shared.done.load(Acquire) < tasks {
        yield_now();
    }
    let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

impl Shared {
    /// Takes tasks and does them until none is left.
    fn work(&self) {
        loop {
            let first = self.next.fetch_add(self.at_once, Relaxed);
            if first >= self.tasks {
                return;
            }
            let last = self.tasks.min(first + self.at_once);
            // SAFETY: these tasks are not done, so `for_each` has not returned, and the closure is still borrowed.
            let f = unsafe { &*self.f.0 };
            // What a panic leaves behind is not looked at: it goes on in the caller.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (first..last).for_each(f))) {
                self.stop(panic);
            }
            // Release: whoever sees these tasks done sees what they wrote.
            self.done.fetch_add(last - first, Release);
        }
    }

    /// Keeps a panic for the caller, and counts as done what nobody has taken: nobody will.
    fn stop(&self, panic: Panic) {
        let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            None => *first = Some(panic),
            // To drop it could panic once more.
            Some(_) => core::mem::forget(panic),
        }
        drop(first);
        let next = self.next.swap(self.tasks, Relaxed);
        self.done.fetch_add(self.tasks.saturating_sub(next), Release);
    }
}
