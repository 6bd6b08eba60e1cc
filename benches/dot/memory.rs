//! A yardstick for what waits for memory: loops over integers, by all threads, that move as many bytes as a pass must.

use std::{hint::black_box, rc::Rc, sync::Mutex};

use anyhow::{Result, ensure};

use crate::cells::Case;
use crate::shared::bandwidth::{copy, sum, triad};
use crate::worker::{Loaded, Pass, Way, fastest};

pub fn load(case: &Case, _inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    ensure!(case.is_memory_bound(), "for what waits for memory only");
    let [(way, forward), (way_back, backward)] = Pass::ALL.map(|pass| fastest(ways(case, pass)));
    let note = Some(format!("forward: {way}; both: {way_back}"));
    Ok(Loaded { forward, backward: Some(backward), results: Vec::new(), note })
}

/// The three loops over the working set of a pass, then a sum over what a backward pass must read once more. Which of them is the fastest
/// depends on the machine.
fn ways(case: &Case, pass: Pass) -> Vec<Way> {
    let words = |bytes: usize| bytes.div_ceil(rayon::current_num_threads() * size_of::<u64>());
    let (len, again) = (words(case.working_set(pass)), words(case.bytes_moved(pass) - case.working_set(pass)));
    let arrays: Rc<Vec<_>> = Rc::new((0..rayon::current_num_threads()).map(|_| Mutex::new(vec![1u64; len])).collect());
    let way = |name: &'static str, run: fn(&mut [u64]) -> u64| {
        let arrays = arrays.clone();
        let call = move || {
            let arrays = &arrays[..];
            // Each thread has an array of its own: a parallel iterator may well leave two to one of them.
            rayon::broadcast(|thread| {
                let mut array = arrays[thread.index()].lock().expect("a loop over integers");
                black_box(run(&mut array).wrapping_add(sum(&array[..again])));
            });
        };
        (name, Box::new(call) as Box<dyn FnMut()>)
    };
    vec![
        way("sum", |array| sum(array)),
        way("copy", |array| {
            let (to, from) = array.split_at_mut(array.len() / 2);
            copy(to, &from[..to.len()])
        }),
        way("triad", |array| {
            let (to, from) = array.split_at_mut(array.len() / 3);
            let (b, c) = from.split_at(to.len());
            triad(to, b, &c[..to.len()])
        }),
    ]
}
