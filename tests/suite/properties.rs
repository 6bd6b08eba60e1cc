//! Laws that hold for any inputs, tried on many. The seed is fixed and printed; a failure shows the smallest inputs found.

use burn::prelude::*;
use burn_dot::DotConfig;
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

use crate::{
    device::{best_float, device},
    oracle::{Array, indices},
    run::{apply, array, tensor, tolerance},
};

const SEED: [u8; 32] = *b"burn-dot: the laws of a product.";

fn check<S: Strategy>(strategy: S, law: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    println!("seed {:?}", String::from_utf8_lossy(&SEED));
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    runner.run(&strategy, law).unwrap_or_else(|error| panic!("{error}"));
}

/// Extents batch, m, k, n, and an endless supply of numbers.
fn problems() -> impl Strategy<Value = ([usize; 4], Vec<f64>)> {
    let extents = [1..5usize, 1..6, 1..9, 1..6];
    extents.prop_flat_map(|extents| (Just(extents), proptest::collection::vec(-2.0..2.0f64, 4 * 5 * 8 * 2)))
}

fn take(numbers: &[f64], from: usize, shape: [usize; 3]) -> Tensor<3> {
    let count = shape.iter().product::<usize>();
    let data = numbers.iter().cycle().skip(from).take(count).copied().collect();
    tensor::<3>(&Array::new(&shape, data), best_float(), &device())
}

fn close(a: Tensor<3>, b: Tensor<3>) -> Result<(), TestCaseError> {
    let (a, b) = (array(&a), array(&b));
    prop_assert_eq!(&a.shape, &b.shape);
    for (a, b) in a.data.iter().zip(&b.data) {
        prop_assert!((a - b).abs() <= 4.0 * tolerance(best_float()) * (8.0 + b.abs()), "{} is not {}", a, b);
    }
    Ok(())
}

fn dot(normalize: bool, lhs: Tensor<3>, rhs: Tensor<3>) -> Tensor<3> {
    apply(&DotConfig::new(2).with_normalize(normalize).init(), lhs, rhs)
}

#[test]
fn the_product_is_linear_in_each_input() {
    check(problems(), |([b, m, k, n], numbers)| {
        let (x1, x2, y) = (take(&numbers, 0, [b, m, k]), take(&numbers, 31, [b, m, k]), take(&numbers, 77, [b, n, k]));
        close(
            dot(false, x1.clone() * 3.0 + x2.clone(), y.clone()),
            dot(false, x1.clone(), y.clone()) * 3.0 + dot(false, x2.clone(), y.clone()),
        )?;
        close(dot(false, y.clone(), x1.clone() - x2.clone()), dot(false, y.clone(), x1) - dot(false, y, x2))
    });
}

#[test]
fn swapping_the_inputs_transposes_the_output() {
    check(problems(), |([b, m, k, n], numbers)| {
        let (x, y) = (take(&numbers, 0, [b, m, k]), take(&numbers, 31, [b, n, k]));
        for normalize in [false, true] {
            close(dot(normalize, x.clone(), y.clone()), dot(normalize, y.clone(), x.clone()).swap_dims(1, 2))?;
        }
        Ok(())
    });
}

#[test]
fn batches_do_not_mix() {
    check(problems(), |([b, m, k, n], numbers)| {
        let (x, y) = (take(&numbers, 0, [b, m, k]), take(&numbers, 31, [b, n, k]));
        for normalize in [false, true] {
            close(dot(normalize, x.clone().flip([0]), y.clone().flip([0])), dot(normalize, x.clone(), y.clone()).flip([0]))?;
        }
        Ok(())
    });
}

#[test]
fn the_cosine_does_not_know_the_length_of_its_inputs() {
    let exponents = -12..12i32;
    check((problems(), exponents), |(([b, m, k, n], numbers), exponent)| {
        let (x, y) = (take(&numbers, 0, [b, m, k]), take(&numbers, 31, [b, n, k]));
        // A power of two scales exactly. Keep every norm above the floor.
        let x = x.clone().sign() * 0.01 + x;
        let config = DotConfig::new(2).with_normalize(true).with_epsilon(1e-30);
        let scaled: Tensor<3> = apply(&config.init(), x.clone() * 2f64.powi(exponent), y.clone());
        close(scaled, apply(&config.init(), x, y))
    });
}

#[test]
fn a_cosine_lies_between_minus_one_and_one() {
    check(problems(), |([b, m, k, n], numbers)| {
        let (x, y) = (take(&numbers, 0, [b, m, k]), take(&numbers, 31, [b, n, k]));
        for out in [dot(true, x.clone(), y), dot(true, x.clone(), x.clone())] {
            prop_assert!(array(&out).data.iter().all(|out| (-1.0..=1.0).contains(out)));
        }
        Ok(())
    });
}

#[test]
fn a_vector_has_cosine_one_with_itself_and_minus_one_with_its_opposite() {
    check(problems(), |([b, m, k, _], numbers)| {
        let x = take(&numbers, 0, [b, m, k]);
        // No vector of zeros.
        let x = x.clone().sign() + x + 4.0;
        for sign in [1.0, -1.0] {
            let out = array(&dot(true, x.clone(), x.clone() * sign));
            for (index, out) in indices(&out.shape).iter().zip(out.data) {
                let expected = if index[1] == index[2] { sign } else { continue };
                prop_assert!((out - expected).abs() <= tolerance(best_float()), "{} is not {}", out, expected);
            }
        }
        Ok(())
    });
}
