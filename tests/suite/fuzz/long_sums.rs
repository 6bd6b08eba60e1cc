//! Sums of up to four million terms, forward and in gradients, on one thread and on several.

use burn::tensor::{DType, FloatDType};
use burn_dot::DotConfig;

use super::{THREADS, case::Case, judge::Exact, pool, run};
use crate::{
    device::{backend, float_dtypes},
    run::{has_gpu_kernels, has_kernels},
};

/// What is wrong with a case on so many threads. They are those of the kernels: elsewhere one is enough.
fn faults(name: &str, case: &Case, threads: &[usize]) -> Vec<String> {
    let exact = Exact::of(case);
    let threads = if has_kernels() { threads } else { &THREADS[..1] };
    let on = |&threads: &usize| {
        let fault = pool(threads).install(|| run(case, &exact)).err()?;
        Some(format!("{name}, {threads} threads: {fault}"))
    };
    threads.iter().filter_map(on).collect()
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} wrong\n{}", faults.len(), faults.join("\n"));
}

/// Sums whose terms are all 0.01: their rounding errors have one sign.
#[test]
fn long_sums_of_equal_terms_lose_no_digits() {
    let cosine = |config: DotConfig| config.with_normalize(true);
    let f32_scores = |config: DotConfig| config.with_output_dtype(FloatDType::F32);
    let (first, all_pairs) = (DotConfig::new(1), DotConfig::new(1).with_batch_dims(0));
    let matrices = DotConfig::new((2, 1));
    let cases: &[(DType, DotConfig, &[usize], &[usize])] = &[
        (DType::F32, first.clone(), &[1, 4096, 8], &[1, 4096, 8]),
        (DType::F32, first.clone(), &[1, 131_072, 2], &[1, 131_072, 2]),
        (DType::F32, first.clone(), &[1, 1_048_576, 2], &[1, 1_048_576, 2]),
        (DType::F32, first.clone(), &[1, 4_194_304, 2], &[1, 4_194_304, 1]),
        (DType::F32, cosine(first.clone()), &[1, 1_048_576, 4], &[1, 1_048_576, 4]),
        (DType::F32, matrices, &[1, 8, 65_536], &[1, 65_536, 8]),
        // The gradient of weights.
        (DType::F32, all_pairs.clone(), &[1_000_000, 4], &[3, 4]),
        (DType::F32, cosine(all_pairs.clone()), &[1_000_000, 4], &[3, 4]),
        (DType::F64, first.clone(), &[1, 4096, 8], &[1, 4096, 8]),
        (DType::F64, first.clone(), &[1, 1_048_576, 2], &[1, 1_048_576, 2]),
        (DType::F64, cosine(first.clone()), &[1, 1_048_576, 2], &[1, 1_048_576, 2]),
        (DType::F16, f32_scores(first.clone()), &[1, 131_072, 4], &[1, 131_072, 4]),
        (DType::F16, f32_scores(all_pairs), &[131_072, 4], &[3, 4]),
        (DType::BF16, first.clone(), &[1, 131_072, 4], &[1, 131_072, 4]),
        // One vector on one side, and on both.
        (DType::F32, first.clone(), &[1, 1_048_576], &[1, 1_048_576, 3]),
        (DType::F32, cosine(first.clone()), &[1, 4_194_304], &[1, 4_194_304]),
        (DType::F64, first.clone(), &[1, 4_194_304], &[1, 4_194_304]),
        (DType::F16, f32_scores(cosine(first.clone())), &[1, 4_194_304], &[1, 4_194_304]),
        (DType::BF16, first, &[1, 4_194_304], &[1, 4_194_304]),
        (DType::F32, DotConfig::new((1, 0)).with_batch_dims(0), &[1_000_000, 4], &[4]),
    ];
    let held = float_dtypes();
    // Composed, as on GPUs all but cosines of rows are, a sum is made of thousands of operations: the longest would take minutes, and most of
    // them where operations are slow.
    let longest = |config: &DotConfig, lhs: &[usize]| match () {
        () if has_kernels() || has_gpu_kernels() && config.normalize && lhs.len() == 2 => 1 << 22,
        () if backend() == "flex" => 1 << 20,
        () => 1 << 17,
    };
    let is_short_enough = |config: &DotConfig, lhs: &[usize]| lhs.iter().all(|&size| size <= longest(config, lhs));
    let cases = cases.iter().filter(|case| held.contains(&case.0) && is_short_enough(&case.1, case.2));
    assert_none(
        cases
            .flat_map(|(dtype, config, lhs, rhs)| {
                faults(
                    &format!("{dtype:?} {lhs:?} · {rhs:?}, {config:?}"),
                    &Case::constant(config.clone(), *dtype, [lhs, rhs], 0.1),
                    &THREADS,
                )
            })
            .collect(),
    );
}

fn random(dtype: DType) {
    if !float_dtypes().contains(&dtype) {
        return;
    }
    let seed = 12;
    println!("seed {seed}");
    let fault = |index: u64| {
        let case = Case::long(dtype, seed, index);
        let (lhs, rhs) = (&case.lhs.shape, &case.rhs.shape);
        // On one thread, and on one of the other pools.
        let threads = [1, THREADS[1 + index as usize % 3]];
        faults(&format!("case {index}, {dtype:?} {lhs:?} · {rhs:?}, {:?}", case.config), &case, &threads)
    };
    assert_none((0..if has_kernels() { 20 } else { 7 }).flat_map(fault).collect());
}

#[test]
fn long_sums_of_random_f64_lose_no_digits() {
    random(DType::F64);
}

#[test]
fn long_sums_of_random_f32_lose_no_digits() {
    random(DType::F32);
}

#[test]
fn long_sums_of_random_f16_lose_no_digits() {
    random(DType::F16);
}

#[test]
fn long_sums_of_random_bf16_lose_no_digits() {
    random(DType::BF16);
}
