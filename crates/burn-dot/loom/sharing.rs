//! What `src/cpu/threads/sharing.rs` promises, whichever thread comes first and however late a helper is.

extern crate alloc;

#[path = "../src/cpu/threads/sharing.rs"]
mod sharing;

mod sync {
    pub use loom::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        thread::yield_now,
    };
}

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use loom::cell::UnsafeCell;

/// How often each task was done. loom's cells fail the test if one is read by a thread that need not see what another wrote.
struct Counts(Vec<UnsafeCell<usize>>);

// SAFETY: loom runs one thread at a time, and itself finds accesses that no order makes safe.
unsafe impl Sync for Counts {}

impl Counts {
    fn new(tasks: usize) -> Self {
        Counts((0..tasks).map(|_| UnsafeCell::new(0)).collect())
    }

    fn count(&self, task: usize) {
        // SAFETY: see `Counts`.
        self.0[task].with_mut(|count| unsafe { *count += 1 });
    }

    fn read(&self) -> Vec<usize> {
        // SAFETY: see `Counts`.
        self.0.iter().map(|count| count.with(|count| unsafe { *count })).collect()
    }
}

/// Runs a program in every order of its threads with up to three preemptions.
fn model(program: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(program);
}

/// Shares tasks with two helpers; those of `panicking` panic once they are counted.
fn check(tasks: usize, at_once: usize, panicking: &'static [usize]) {
    model(move || {
        let counts = &Counts::new(tasks);
        let returned = AtomicBool::new(false);
        let f = |task: usize| {
            assert!(!returned.load(SeqCst), "task {task} was begun after the caller had gone on");
            counts.count(task);
            if panicking.contains(&task) {
                resume_unwind(Box::new(task));
            }
        };
        let helpers = Mutex::new(Vec::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            sharing::for_each(tasks, at_once, 2, &f, |helper| {
                helpers.lock().unwrap().push(loom::thread::spawn(move || helper.run()));
            });
        }));
        returned.store(true, SeqCst);
        let done = counts.read();
        match outcome {
            Ok(()) => {
                assert!(panicking.is_empty(), "a panic was lost");
                assert!(done.iter().all(|&times| times == 1), "tasks done {done:?} times");
            }
            Err(panic) => {
                let task = panic.downcast_ref::<usize>().expect("nothing but the panic of a task");
                assert!(panicking.contains(task) && done[*task] == 1);
                assert!(done.iter().all(|&times| times <= 1), "tasks done {done:?} times");
            }
        }
        for helper in helpers.into_inner().unwrap() {
            helper.join().unwrap();
        }
    });
}

#[test]
fn every_task_is_done_once_and_seen_by_the_caller() {
    check(3, 1, &[]);
}

#[test]
fn so_is_every_task_of_those_taken_at_once() {
    check(5, 2, &[]);
}

#[test]
fn a_panic_reaches_the_caller_who_waits_for_the_others() {
    check(3, 1, &[1]);
}

#[test]
fn of_two_panics_one_reaches_the_caller() {
    check(3, 1, &[0, 1]);
}

/// The first helper may be at work already.
#[test]
fn where_no_helper_can_be_had_the_caller_waits_for_those_that_are_and_panics() {
    model(|| {
        let (helper, done) = (Mutex::new(None), Counts::new(3));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            sharing::for_each(3, 1, 2, &|task| done.count(task), |first| {
                let is_second = helper.lock().unwrap().is_some();
                if is_second {
                    resume_unwind(Box::new("no thread"));
                }
                *helper.lock().unwrap() = Some(loom::thread::spawn(move || first.run()));
            });
        }));
        let panic = outcome.expect_err("the output would be taken for complete");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"no thread"));
        assert!(done.read().iter().all(|&times| times <= 1));
        helper.into_inner().unwrap().expect("the first helper").join().unwrap();
    });
}
