//! Work shared by the threads of a pool.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use burn_core::tensor::DType;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::super::threads::{for_each, for_each_range, map, part, part_of};
use super::case::Case;

/// Work that is worth all threads.
const LARGE: usize = usize::MAX;

/// A pool of its own; a panic that nobody caught sets the flag, and does not end the process.
fn pool(threads: usize) -> (ThreadPool, Arc<AtomicBool>) {
    let uncaught = Arc::new(AtomicBool::new(false));
    let seen = uncaught.clone();
    let pool = ThreadPoolBuilder::new().num_threads(threads).panic_handler(move |_| seen.store(true, SeqCst));
    (pool.build().unwrap(), uncaught)
}

/// Waits until a condition holds, and fails the test if it does not come true.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not happen");
}

#[test]
fn every_task_is_done_once_in_pools_of_any_size_and_in_pools_within_pools() {
    let counted = |tasks: usize, name: &str| {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        for_each(tasks, LARGE, |task| {
            counts[task].fetch_add(1, SeqCst);
        });
        assert!(counts.iter().all(|count| count.load(SeqCst) == 1), "{name}, {tasks} tasks: {counts:?}");
    };
    for threads in [1, 2, 3, 8] {
        let (outer, uncaught) = pool(threads);
        let (inner, _) = pool(2);
        for tasks in [0, 1, 2, 3, 7, 32, 33, 1000] {
            outer.install(|| {
                counted(tasks, &format!("{threads} threads"));
                for_each(5, LARGE, |_| {
                    counted(tasks, "work within work");
                    inner.install(|| counted(tasks, "another pool's work within work"));
                });
            });
            counted(tasks, "the global pool, from a thread that is not its own");
        }
        assert!(!uncaught.load(SeqCst));
    }
}

#[test]
fn ranges_make_the_whole_even_where_their_products_would_overflow() {
    for threads in [1, 2, 3, 8] {
        for count in [0, 1, 5, 31, 32, 33, 1000] {
            let sum = AtomicUsize::new(0);
            pool(threads).0.install(|| {
                for_each_range(count, LARGE, |range| {
                    sum.fetch_add(range.map(|index| index + 1).sum(), SeqCst);
                })
            });
            assert_eq!(sum.into_inner(), count * (count + 1) / 2, "{threads} threads, {count} indices");
        }
    }
    for count in [usize::MAX, usize::MAX / 2, isize::MAX as usize - 1] {
        let parts: Vec<_> = (0..32).map(|index| part(count, 32, index)).collect();
        assert_eq!((parts[0].start, parts[31].end), (0, count));
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
    }
}

#[test]
fn parts_of_units_make_the_whole_and_begin_at_multiples() {
    for (count, parts, unit) in [(100_000, 8, 16), (72, 2, 16), (17, 2, 16), (16, 3, 16), (5, 4, 1), (1 << 20, 7, 8)] {
        let ranges: Vec<_> = (0..parts).map(|index| part_of(count, parts, index, unit)).collect();
        assert_eq!((ranges[0].start, ranges[parts - 1].end), (0, count));
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(ranges.iter().all(|range| range.start.is_multiple_of(unit) || range.start == count), "{ranges:?}");
    }
}

#[test]
fn results_come_in_the_order_of_their_tasks_and_a_panic_in_place_of_all() {
    for threads in [1, 2, 3, 8] {
        let (pool, _) = pool(threads);
        for tasks in [0, 1, 2, 7, 33, 1000] {
            let given = pool.install(|| map(tasks, LARGE, |task| format!("{task}")));
            assert_eq!(given, (0..tasks).map(|task| format!("{task}")).collect::<Vec<_>>(), "{threads} threads");
            let last = AssertUnwindSafe(|| map(tasks, LARGE, |task| assert_ne!(task + 1, tasks)));
            assert_eq!(pool.install(|| catch_unwind(last)).is_err(), tasks > 0, "{threads} threads, {tasks} tasks");
        }
    }
}

#[test]
fn a_panic_of_a_helper_reaches_the_caller() {
    let (pool, uncaught) = pool(2);
    pool.install(|| {
        let caller = thread::current().id();
        let panicked = AtomicBool::new(false);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for_each(8, LARGE, |_| {
                if thread::current().id() != caller {
                    panicked.store(true, SeqCst);
                    panic_any(String::from("the helper's"));
                }
                wait_until("a task of a helper", || panicked.load(SeqCst));
            });
        }));
        let panic = outcome.expect_err("the output would be taken for complete");
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("the helper's"));
    });
    drop(pool);
    assert!(!uncaught.load(SeqCst), "it is the caller's alone");
}

#[test]
fn a_panic_of_the_caller_waits_for_the_helpers() {
    let (pool, _) = pool(2);
    pool.install(|| {
        let caller = thread::current().id();
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for_each(8, LARGE, |_| {
                if thread::current().id() == caller {
                    wait_until("a task of a helper", || begun.load(SeqCst));
                    panic_any(1);
                }
                begun.store(true, SeqCst);
                thread::sleep(Duration::from_millis(50));
                ended.store(true, SeqCst);
            });
        }));
        assert!(outcome.is_err() && ended.load(SeqCst));
    });
}

/// Burn holds the lock of a graph during a backward pass, and the pool's threads may be waiting for it.
#[test]
fn a_product_does_not_wait_for_threads_that_are_busy() {
    let (pool, _) = pool(3);
    let released = Arc::new(AtomicBool::new(false));
    let busy = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let (released, busy) = (released.clone(), busy.clone());
        pool.spawn(move || {
            busy.fetch_add(1, SeqCst);
            while !released.load(SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        });
    }
    wait_until("two threads at work", || busy.load(SeqCst) == 2);
    let (done, finished) = mpsc::channel();
    pool.spawn(move || {
        let (batch, m, n, k) = (1100, 1, 1, 128);
        Case { batch, m, n, k, k_last: [true, true], dtype: DType::F32, epsilon: None }.check();
        done.send(()).unwrap();
    });
    let in_time = finished.recv_timeout(Duration::from_secs(100));
    released.store(true, SeqCst);
    in_time.expect("the product, while the other threads of the pool are busy");
}
