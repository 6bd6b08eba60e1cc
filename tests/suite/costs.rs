//! What a product costs on GPUs: launches, and memory. Each test has a process to itself.
//!
//! Elsewhere than on CubeCL's devices there is nothing to count, and these tests pass at once.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::*;
use burn::tensor::DType;
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};
use burn_dot::DotConfig;

use crate::{
    alone::alone,
    device::device,
    run::{has_gpu_kernels, tensor, wave},
};

/// Kernels by name, and how often they were launched.
#[derive(Default)]
struct Launches(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Launches {
    fn launched(&self, kernel: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
    }
}

fn launches(run: impl FnOnce()) -> BTreeMap<&'static str, usize> {
    let launches = Arc::new(Launches::default());
    let watching = LaunchObservation::new(launches.clone());
    run();
    drop(watching);
    let counts = launches.0.lock().unwrap_or_else(PoisonError::into_inner);
    counts.clone()
}

/// Launches forward, and backward from a given gradient of the output.
fn count<const D: usize, const O: usize>(config: &DotConfig, [lhs, rhs]: [&[usize]; 2]) -> [BTreeMap<&'static str, usize>; 2] {
    let device = device().autodiff();
    let leaf = |shape: &[usize], phase| tensor::<D>(&wave(shape, phase), DType::F32, &device).require_grad();
    let (x, y) = (leaf(lhs, 0.1), leaf(rhs, 0.4));
    let dot = config.init();
    let mut counts = [BTreeMap::new(), BTreeMap::new()];
    // Burn tunes its matmul in the first round.
    for _ in 0..2 {
        let mut out = None;
        device.sync().expect("a device that works");
        counts[0] = launches(|| {
            let given: Tensor<O> = dot.forward(x.clone(), y.clone());
            device.sync().expect("a device that works");
            out = Some(given);
        });
        let out = out.expect("an output");
        counts[1] = launches(|| {
            let grads = out.backward();
            device.sync().expect("a device that works");
            assert!(x.grad(&grads).is_some() && y.grad(&grads).is_some());
        });
    }
    counts
}

/// The promises. The observer sees the launches of all threads, so a process does nothing else meanwhile.
fn assert_launches() {
    // `backward` begins with a gradient of ones, which Burn launches a kernel for, or copies from the host.
    let without_ones = |mut counts: BTreeMap<&'static str, usize>| {
        counts.retain(|kernel, _| !kernel.contains("full_kernel"));
        counts
    };
    let assert_at_most = |name: &str, most: [usize; 2], [forward, backward]: [BTreeMap<&'static str, usize>; 2]| {
        let backward = without_ones(backward);
        println!("{name}: forward {forward:?}, backward {backward:?}");
        let given = [&forward, &backward].map(|counts| counts.values().sum::<usize>());
        assert!(
            given[0] <= most[0] && given[1] <= most[1],
            "{name}: {given:?} launches, not {most:?}: {forward:?}, {backward:?}"
        );
        assert!(given[0] > 0 && given[1] > 0, "{name}: nothing was counted");
    };
    let cosine = DotConfig::new(1).with_normalize(true);
    assert_at_most("rows", [1, 1], count::<2, 2>(&cosine, [&[32, 64], &[32, 64]]));
    assert_at_most("long rows", [1, 1], count::<2, 2>(&cosine, [&[4, 4096], &[4, 4096]]));
    assert_at_most("plain rows", [1, 1], count::<2, 2>(&DotConfig::new(1), [&[4, 4096], &[4, 4096]]));
    let one_with_many = DotConfig::new((2, 2)).with_normalize(true);
    assert_at_most("a vector with many", [1, 2], count::<3, 3>(&one_with_many, [&[1, 1, 64], &[1, 3000, 64]]));
    let attention = DotConfig::new(3).with_batch_dims(2).with_normalize(true);
    assert_at_most("attention", [3, 4], count::<4, 4>(&attention, [&[2, 3, 16, 32], &[2, 3, 24, 32]]));
    let matrices = DotConfig::new((2, 1)).with_normalize(true);
    // One side is read by single elements, the other by vectors.
    assert_at_most("matrices", [3, 6], count::<3, 3>(&matrices, [&[2, 16, 32], &[2, 32, 24]]));
}

/// That a test passed in a process of its own, and wrote this.
fn assert_passed(output: &Output, written: &str) {
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
    assert!(output.status.success() && text.contains("1 passed") && text.contains(written), "{text}");
}

#[test]
fn launches_are_as_few_as_promised() {
    if !has_gpu_kernels() {
        return;
    }
    match alone("costs::launches_are_as_few_as_promised") {
        None => assert_launches(),
        Some(output) => assert_passed(&output, "matrices: forward"),
    }
}

/// A line of what Linux says of this process's memory, in MiB.
#[cfg(target_os = "linux")]
fn memory(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux' file");
    let value = status.lines().find_map(|of| of.strip_prefix(line)).expect("a line of it");
    value.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().expect("a number of KiB") / 1024
}

/// Mesa's llvmpipe has its tensors in the memory of the process; a GPU's own is not seen here.
#[test]
#[cfg(target_os = "linux")]
fn rows_take_the_memory_of_their_results_and_little_else() {
    const MIB: usize = 64; // of an input
    if !has_gpu_kernels() {
        return;
    }
    let run = || alone("costs::rows_take_the_memory_of_their_results_and_little_else");
    if let Some(mut output) = run() {
        // Once in a while a driver takes some more for itself. What the layer takes, it takes in each process.
        for _ in 0..2 {
            output = if output.status.success() { output } else { run().expect("not in that process") };
        }
        return assert_passed(&output, "MiB for two gradients");
    }
    let device = device().autodiff();
    let step = |rows: usize| {
        let leaf = || Tensor::<2>::ones([rows, 256], (&device, DType::F32)).require_grad();
        let (x, y) = (leaf(), leaf());
        device.sync().expect("a device that works");
        // The peak from here on.
        std::fs::write("/proc/self/clear_refs", "5").expect("Linux' file");
        let before = memory("VmRSS");
        let out: Tensor<2> = DotConfig::new(1).with_normalize(true).init().forward(x.clone(), y.clone());
        let grads = out.backward();
        let _gradients = [x.grad(&grads), y.grad(&grads)].map(|gradient| gradient.expect("a gradient"));
        device.sync().expect("a device that works");
        memory("VmHWM").saturating_sub(before)
    };
    step(16); // compiles the kernels
    let taken = step(MIB << 10);
    println!("{taken} MiB for two gradients of {MIB}");
    assert!(taken <= 2 * MIB + 8, "{taken} MiB, where two gradients have {MIB} each");
}
