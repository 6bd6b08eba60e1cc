//! Answers computed by real tf_keras, Keras 3 and PyTorch in f64: forward and gradients. See `fixtures/generate.py`.

use burn::tensor::DType;
use burn_dot::{Axes, DotConfig};
use serde::Deserialize;

use crate::{
    device::{best_float, max_rank},
    oracle::{self, Array},
    run::{Layout, assert_close, product, run},
};

#[derive(Deserialize)]
struct Peers {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    engine: String,
    kind: String,
    axes: Axes,
    normalize: bool,
    batch_dims: Option<usize>,
    epsilon: Option<f64>,
    lhs_shape: Vec<usize>,
    rhs_shape: Vec<usize>,
    out_shape: Vec<usize>,
    lhs: Vec<f64>,
    rhs: Vec<f64>,
    cotangent: Vec<f64>,
    out: Vec<f64>,
    grad_lhs: Vec<f64>,
    grad_rhs: Vec<f64>,
}

/// Checks every case of an engine, of which there are so many.
fn check(engine: &str, floor: f64, cases: usize) {
    let peers: Peers = serde_json::from_str(include_str!("../fixtures/peers.json")).unwrap();
    // Where the device has no f64 its own rounding decides; the answers are the same.
    let dtype = best_float();
    let (out_tolerance, grad_tolerance) = if dtype == DType::F64 { (1e-12, 1e-10) } else { (4e-6, 4e-6) };
    let (mut checked, mut skipped) = (0, 0);
    for case in peers.cases.into_iter().filter(|case| case.engine == engine) {
        // Entries of 1e30 with gradients of 1e-30 are for f64.
        if case.out_shape.len() > max_rank() || dtype != DType::F64 && case.kind == "scaled" {
            skipped += 1;
            continue;
        }
        let name = format!("{engine}, {}, {:?} · {:?}, axes {}", case.kind, case.lhs_shape, case.rhs_shape, case.axes);
        let config = DotConfig::new(case.axes)
            .with_normalize(case.normalize)
            .with_epsilon(case.epsilon.unwrap_or(floor))
            .with_batch_dims(case.batch_dims.unwrap_or(1));
        let lhs = Array::new(&case.lhs_shape, case.lhs);
        let rhs = Array::new(&case.rhs_shape, case.rhs);
        let cotangent = Array::new(&case.out_shape, case.cotangent);
        let given = run(&config, dtype, Layout::Contiguous, &lhs, &rhs, &|_| cotangent.clone());
        // The oracle only says how large the terms of each number are: its rounding scale.
        let scale = oracle::answer(&product(&config, lhs.shape.len(), rhs.shape.len()), &lhs, &rhs, |_| cotangent.clone());
        let expected = |shape: &[usize], data: Vec<f64>| Array::new(shape, data);
        let out = expected(&case.out_shape, case.out);
        assert_close(&format!("{name}: out"), &given.out, &out, &scale.out_scale, out_tolerance);
        let (grad_lhs, grad_rhs) = (expected(&lhs.shape, case.grad_lhs), expected(&rhs.shape, case.grad_rhs));
        assert_close(&format!("{name}: grad_lhs"), &given.grad_lhs, &grad_lhs, &scale.grad_lhs_scale, grad_tolerance);
        assert_close(&format!("{name}: grad_rhs"), &given.grad_rhs, &grad_rhs, &scale.grad_rhs_scale, grad_tolerance);
        checked += 1;
    }
    println!("{checked} cases of {engine} checked, {skipped} are beyond the device");
    assert_eq!(checked + skipped, cases, "cases of {engine}");
    assert!(skipped == 0 || dtype != DType::F64 || max_rank() < usize::MAX, "{skipped} cases of {engine} were left out");
}

#[test]
fn tf_keras_gives_the_same_outputs_and_gradients() {
    check("tf_keras", 1e-6, 96);
}

#[test]
fn keras_3_gives_the_same_outputs_and_gradients_with_its_floor() {
    check("keras", 1e-7, 96);
}

#[test]
fn pytorch_gives_the_same_outputs_and_gradients_with_its_floor() {
    check("torch", 1e-8, 16);
}

#[cfg(feature = "flex")]
#[test]
fn burns_own_cosine_fails_where_the_readme_says_so() {
    use burn::{linalg::cosine_similarity, prelude::*};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::run::{apply, array, tensor};

    let device = Device::flex().autodiff();
    let row = |data: &[f64], dtype: DType| {
        Tensor::<2>::from_data(TensorData::new(data.to_vec(), [1, data.len()]), (&device, dtype)).require_grad()
    };
    for dtype in [DType::F32, DType::F16] {
        let (x, y) = (row(&[0.0, 0.0], dtype), row(&[3.0, 4.0], dtype));
        let out = cosine_similarity(x.clone(), y, 1, None);
        let grad = array(&x.grad(&out.backward()).unwrap());
        assert_eq!(array(&out).data, [0.0]);
        assert!(grad.data[0].is_nan(), "zero vector, {dtype:?}");
    }
    for (data, dtype) in [(vec![3e20, 4e20], DType::F32), (vec![300.0, 400.0], DType::F16), (vec![6.0; 2048], DType::F16)] {
        let x = row(&data, dtype);
        assert_eq!(array(&cosine_similarity(x.clone(), x, 1, None)).data, [0.0], "{dtype:?}");
    }
    // Normal numbers, by Box and Muller.
    let mut rng = StdRng::seed_from_u64(1);
    let mut uniform = || 1.0 - rng.random_range(0.0f64..1.0);
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (core::f64::consts::TAU * uniform()).cos();
    let x = tensor::<2>(&Array::new(&[100_000, 7], (0..700_000).map(|_| normal()).collect()), DType::F32, &device);
    let above_one = |out: Tensor<2>| array(&out).data.into_iter().filter(|out| *out > 1.0).count();
    let theirs = above_one(cosine_similarity(x.clone(), x.clone(), 1, None));
    let ours = above_one(apply(&DotConfig::new(1).with_normalize(true).init(), x.clone(), x));
    assert!((20_000..24_000).contains(&theirs) && ours == 0, "above 1 of 100,000 rows: Burn's {theirs}, ours {ours}");
}
