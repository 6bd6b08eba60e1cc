//! Epsilon, scale, f16 and bf16, range, NaN, infinities, nothing at all.

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::DotConfig;

use crate::{
    device::{best_float, device, float_dtypes, is_ieee},
    oracle::{self, Array, indices},
    run::{Layout, apply, array, assert_close, assert_exact, has_gpu_kernels, product, rounded, run, tensor, tolerance, wave},
};

fn cosine() -> DotConfig {
    DotConfig::new(1).with_normalize(true)
}

/// One row of numbers.
fn row(data: &[f64]) -> Array {
    Array::new(&[1, data.len()], data.to_vec())
}

/// Forward along axis 1 in a dtype, as f64.
fn forward(config: &DotConfig, dtype: DType, lhs: &Array, rhs: &Array) -> Vec<f64> {
    let device = device();
    let out: Tensor<2> = apply(&config.init(), tensor::<2>(lhs, dtype, &device), tensor::<2>(rhs, dtype, &device));
    assert_eq!(out.dtype(), config.output_dtype.unwrap_or(dtype));
    array(&out).data
}

fn ones(shape: &[usize]) -> Array {
    Array::from_fn(shape, |_| 1.0)
}

#[test]
fn zero_vector_has_zero_output_and_finite_gradient() {
    for dtype in float_dtypes() {
        let (lhs, rhs) = (row(&[0.0, 0.0]), row(&[3.0, 4.0]));
        let given = run(&cosine(), dtype, Layout::Contiguous, &lhs, &rhs, &ones);
        assert_eq!(given.out.data, [0.0], "{dtype:?}");
        // g / floor, or the largest number of the dtype where that is smaller.
        let largest = dtype.finfo().unwrap().max;
        let expected = row(&[(0.6e6f64).min(largest), (0.8e6f64).min(largest)]);
        assert_close(&format!("{dtype:?}"), &given.grad_lhs, &expected, &expected, tolerance(dtype));
        assert_eq!(given.grad_rhs.data, [0.0, 0.0], "{dtype:?}");

        let both = run(&cosine(), dtype, Layout::Contiguous, &lhs, &lhs, &ones);
        assert_eq!(
            (both.out.data, both.grad_lhs.data, both.grad_rhs.data),
            (vec![0.0], vec![0.0; 2], vec![0.0; 2]),
            "{dtype:?}"
        );
    }
}

#[test]
fn gradient_below_the_floor_is_the_gradient_over_the_floor() {
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() >= 4) {
        for scale in [1e-7, 1e-9, 1e-15] {
            let lhs = wave(&[3, 4, 5], 0.3).map(|x| x * scale);
            let config = DotConfig::new(2).with_normalize(true);
            assert_exact("below the floor", &config, dtype, Layout::Contiguous, &lhs, &wave(&[3, 6, 5], 0.5));
        }
    }
}

#[test]
fn gradient_survives_at_the_edge_of_the_floor() {
    // ‖x‖ = floor exactly: the gradient is that of the norm, not zero and not half.
    for dtype in float_dtypes() {
        for (epsilon, x) in [(0.5, [0.5, 0.0]), (1.25, [0.75, 1.0]), (2.0, [0.0, -2.0])] {
            let config = cosine().with_epsilon(epsilon);
            let given = run(&config, dtype, Layout::Contiguous, &row(&x), &row(&[0.0, 4.0]), &ones);
            let u = x.map(|x| x / epsilon);
            let expected = row(&[(0.0 - u[0] * u[1]) / epsilon, (1.0 - u[1] * u[1]) / epsilon]);
            assert_close(&format!("{dtype:?}, {x:?}"), &given.grad_lhs, &expected, &row(&[1.0, 1.0]), tolerance(dtype));
        }
    }
}

#[test]
fn each_floor_is_a_real_number_not_rounded_to_the_dtype() {
    // tf.keras, Keras 3, torch. 1e-7² and 1e-8 are zero in f16.
    for epsilon in [1e-6, 1e-7, 1e-8] {
        for dtype in float_dtypes() {
            let tiny = match dtype {
                DType::F16 if epsilon < 1e-7 => continue, // No f16 lies between 0 and 1e-8.
                DType::F16 => 2f64.powi(-24),
                _ => rounded(&row(&[epsilon / 4.0]), dtype).data[0],
            };
            if dtype == DType::F16 && !is_ieee() {
                continue; // 2⁻²⁴ is subnormal in f16.
            }
            let out = forward(&cosine().with_epsilon(epsilon), dtype, &row(&[tiny, 0.0]), &row(&[1.0, 0.0]));
            let expected = (tiny / epsilon).min(1.0);
            assert!((out[0] - expected).abs() <= tolerance(dtype), "{dtype:?}, floor {epsilon}: {} is not {expected}", out[0]);
        }
    }
}

#[test]
fn norms_neither_overflow_nor_underflow() {
    let close = |dtype: DType, config: &DotConfig, x: &[f64]| {
        let (out, expected) = (forward(config, dtype, &row(x), &row(x))[0], 1.0);
        assert!((out - expected).abs() <= tolerance(dtype) && out <= 1.0, "{dtype:?}, {} entries of {}: {out}", x.len(), x[0]);
    };
    for dtype in float_dtypes() {
        let (large, small) = match dtype {
            DType::F64 => (1e300, 1e-300),
            DType::F32 | DType::BF16 => (1e38, 1e-25),
            _ => (256.0, 1e-4),
        };
        close(dtype, &cosine(), &[3.0, 4.0].map(|x| x / 4.0 * large));
        close(dtype, &cosine(), &[large]);
        close(dtype, &cosine(), &vec![6.0; 2048]);
        close(dtype, &cosine().with_epsilon(small / 2.0), &[small]);
        close(dtype, &cosine().with_epsilon(small / 2.0), &[small, -small, small]);
    }
    let f32 = |x: &[f64]| forward(&cosine(), DType::F32, &row(x), &row(x))[0];
    assert!((f32(&[3e20, 4e20]) - 1.0).abs() < 1e-6);
    // Below the default floor. GPUs may take so small a number for zero.
    let tiny = f32(&[1e-15]);
    assert!((tiny / 1e-18 - 1.0).abs() < 1e-5 || !is_ieee() && tiny == 0.0, "{tiny}");
}

#[test]
fn the_cosine_of_a_tiny_vector_with_a_huge_one_keeps_its_digits() {
    // By the floor the tiny one is divided, and the huge one by its norm: neither may push their product out of range first.
    let (tiny, huge, epsilon) = (1.2345678 * 2f64.powi(-116), 2f64.powi(41), 30.0);
    let out = forward(&cosine().with_epsilon(epsilon), DType::F32, &row(&[tiny; 7]), &row(&[huge; 7]))[0];
    let expected = tiny * 7f64.sqrt() / epsilon;
    assert!((out / expected - 1.0).abs() < 1e-6, "{out:e} is not {expected:e}");
}

#[test]
fn gradients_of_very_long_and_very_short_vectors_are_exact() {
    for (dtype, scales) in [(DType::F64, [1e150, 1e-150]), (DType::F32, [1e15, 1e-15])] {
        if !float_dtypes().contains(&dtype) {
            continue;
        }
        for scale in scales {
            let config = DotConfig::new((2, 1)).with_normalize(true).with_epsilon(scale * 1e-6);
            let (lhs, rhs) = (wave(&[2, 3, 5], 0.3).map(|x| x * scale), wave(&[2, 5, 4], 0.9));
            assert_exact(&format!("scale {scale:e}"), &config, dtype, Layout::Contiguous, &lhs, &rhs);
        }
    }
}

#[test]
fn half_precision_is_accumulated_in_f32_forward_and_backward() {
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() == 2) {
        // A sum of ones sticks at 2048 in f16 and at 256 in bf16.
        let long = ones(&[1, 4096]);
        assert_eq!(forward(&DotConfig::new(1), dtype, &long, &long), [4096.0], "{dtype:?}, a row");

        let (lhs, rhs) = (ones(&[1, 3, 4096]), ones(&[1, 2, 4096]));
        let given = run(&DotConfig::new(2), dtype, Layout::Contiguous, &lhs, &rhs, &ones);
        assert_eq!(given.out.data, [4096.0; 6], "{dtype:?}, a matrix");

        let (lhs, rhs) = (ones(&[1, 2, 4096]), ones(&[1, 2, 1]));
        let given = run(&DotConfig::new(1), dtype, Layout::Contiguous, &lhs, &rhs, &ones);
        assert_eq!(given.grad_rhs.data, [4096.0; 2], "{dtype:?}, the gradient");
    }
}

#[test]
fn half_precision_is_rounded_once() {
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() == 2) {
        for config in [DotConfig::new(2), DotConfig::new(2).with_normalize(true)] {
            let (lhs, rhs) = (wave(&[2, 3, 129], 0.2), wave(&[2, 4, 129], 0.8));
            assert_exact("rounded once", &config, dtype, Layout::Contiguous, &lhs, &rhs);
        }
    }
}

#[test]
fn normalized_outputs_stay_within_one() {
    for dtype in float_dtypes() {
        let x = wave(&[4000, 3], 0.0);
        for (sign, rhs) in [(1.0, x.clone()), (-1.0, x.map(|x| -3.0 * x))] {
            let out = forward(&cosine(), dtype, &x, &rhs);
            assert!(out.iter().all(|out| out.abs() <= 1.0), "{dtype:?}");
            assert!(out.iter().all(|out| (out - sign).abs() <= tolerance(dtype)), "{dtype:?}");
        }
    }
}

#[test]
fn the_range_guard_does_not_touch_the_gradient() {
    // pytorch#29513: a clamp's mask stops the gradient. Two vectors at an angle of about √ε have a cosine that rounds to either
    // side of 1, and a gradient of about √ε/‖x‖, far above rounding: a masked one would be zero.
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() >= 4) {
        let angle = 0.7 * dtype.finfo().unwrap().epsilon.sqrt();
        let x = rounded(&wave(&[300, 7], 0.0), dtype);
        let bend = wave(&[300, 7], 1.1);
        let y = x.data.iter().zip(&bend.data).map(|(x, bend)| x + angle * bend).collect();
        let y = rounded(&Array::new(&[300, 7], y), dtype);
        assert_exact("nearly parallel", &cosine(), dtype, Layout::Contiguous, &x, &y);
    }
}

#[test]
fn nan_reaches_only_the_outputs_it_belongs_to() {
    for dtype in float_dtypes() {
        for config in [DotConfig::new(2), DotConfig::new(2).with_normalize(true)] {
            let mut lhs = wave(&[2, 3, 4], 0.1);
            lhs.data[4 + 2] = f64::NAN; // batch 0, row 1
            let device = device();
            let rhs = tensor::<3>(&wave(&[2, 5, 4], 0.6), dtype, &device);
            let out: Tensor<3> = apply(&config.init(), tensor::<3>(&lhs, dtype, &device), rhs);
            for (index, value) in indices(&[2, 3, 5]).iter().zip(array(&out).data) {
                assert_eq!(value.is_nan(), index[0] == 0 && index[1] == 1, "{dtype:?}, {index:?}: {value}");
            }
        }
    }
}

#[test]
fn an_infinite_entry_gives_nan_when_normalized_and_infinity_when_not() {
    for dtype in float_dtypes() {
        for infinity in [f64::INFINITY, f64::NEG_INFINITY] {
            let (lhs, rhs) = (row(&[infinity, 1.0]), row(&[1.0, 2.0]));
            assert!(forward(&cosine(), dtype, &lhs, &rhs)[0].is_nan(), "{dtype:?}");
            assert_eq!(forward(&DotConfig::new(1), dtype, &lhs, &rhs)[0], infinity, "{dtype:?}");
        }
    }
}

#[test]
fn contracting_nothing_gives_zeros_and_zero_gradients() {
    for dtype in float_dtypes() {
        for normalize in [false, true] {
            for (lhs, rhs, axes) in [
                (&[2, 3, 0][..], &[2, 0, 4][..], (2, 1)),
                (&[2, 0], &[2, 0], (1, 1)),
                (&[2, 0], &[2, 3, 0], (1, 2)),
                // No batch, no rows, no columns.
                (&[0, 3, 5], &[0, 5, 4], (2, 1)),
                (&[2, 0, 5], &[2, 5, 4], (2, 1)),
                (&[2, 3, 5], &[2, 5, 0], (2, 1)),
                (&[0, 4], &[0, 4], (1, 1)),
            ] {
                let config = DotConfig::new(axes).with_normalize(normalize);
                let name = format!("{dtype:?}, {lhs:?} · {rhs:?}");
                let given = run(&config, dtype, Layout::Contiguous, &wave(lhs, 0.1), &wave(rhs, 0.2), &ones);
                let shape = oracle::output_shape(&product(&config, lhs.len(), rhs.len()), lhs, rhs);
                assert_eq!(given.out, Array::from_fn(&shape, |_| 0.0), "{name}");
                assert!(given.out.data.iter().all(|zero| zero.is_sign_positive()), "{name}");
                assert_eq!(given.grad_lhs, Array::from_fn(lhs, |_| 0.0), "{name}");
                assert_eq!(given.grad_rhs, Array::from_fn(rhs, |_| 0.0), "{name}");
            }
        }
    }
    let device = device();
    let nothing = Tensor::<2, Int>::zeros([2, 0], &device);
    let out: Tensor<2, Int> = apply(&DotConfig::new(1).init(), nothing.clone(), nothing);
    assert_eq!(array(&out), Array::new(&[2, 1], vec![0.0, 0.0]));
}

#[test]
fn inputs_expanded_with_stride_zero_give_what_copies_give() {
    for dtype in float_dtypes() {
        for normalize in [false, true] {
            let device = device().autodiff();
            let config = DotConfig::new(2).with_normalize(normalize);
            let (small, rhs) = (rounded(&wave(&[1, 1, 5], 0.3), dtype), rounded(&wave(&[2, 3, 5], 0.8), dtype));
            let leaf = tensor::<3>(&small, dtype, &device).require_grad();
            let expanded = leaf.clone().expand::<3, _>([2, 4, 5]);
            let out: Tensor<3> = apply(&config.init(), expanded, tensor::<3>(&rhs, dtype, &device));

            let copied = Array::from_fn(&[2, 4, 5], |index| small.data[index[2]]);
            let expected = oracle::answer(&product(&config, 3, 3), &copied, &rhs, ones);
            assert_close("out", &array(&out), &expected.out, &expected.out_scale, tolerance(dtype));

            let grad = array(&leaf.grad(&out.sum().backward()).unwrap());
            let summed = |x: &Array| Array::from_fn(&[1, 1, 5], |index| (0..8).map(|i| x.data[i * 5 + index[2]]).sum());
            let (grad_lhs, scale) = (summed(&expected.grad_lhs), summed(&expected.grad_lhs_scale));
            // Eight gradients are added in the dtype itself, after the layer.
            assert_close("gradient", &grad, &grad_lhs, &scale, 8.0 * tolerance(dtype));
        }
    }
}

#[test]
fn long_rows_lose_no_digits() {
    assert_long_rows(200_000, 1.0);
}

/// Rows of so many elements, each as large as `scale`.
pub fn assert_long_rows(k: usize, scale: f64) {
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() >= 4) {
        for normalize in [false, true] {
            let [lhs, rhs] = [0.1, 0.3].map(|phase| wave(&[1, k], phase).map(|x| x * scale));
            assert_long(&DotConfig::new(1).with_normalize(normalize), dtype, &rounded(&lhs, dtype), &rounded(&rhs, dtype));
        }
    }
}

/// As `assert_exact`, forward only: the oracle's loops are quadratic.
fn assert_long(config: &DotConfig, dtype: DType, lhs: &Array, rhs: &Array) {
    // In blocks, so that the f64 sum keeps the digits it is to judge.
    let terms = |x: &Array, y: &Array| x.data.iter().zip(&y.data).map(|(x, y)| x * y).collect::<Vec<f64>>();
    let dot = |x: &Array, y: &Array| terms(x, y).chunks(500).map(|block| block.iter().sum::<f64>()).sum::<f64>();
    let norms = if config.normalize { (dot(lhs, lhs) * dot(rhs, rhs)).sqrt() } else { 1.0 };
    let scale = lhs.data.iter().zip(&rhs.data).map(|(x, y)| (x * y).abs()).sum::<f64>() / norms;
    let (out, expected) = (forward(config, dtype, lhs, rhs)[0], dot(lhs, rhs) / norms);
    // Burn's sums on a GPU add thousands of terms one by one.
    let allowed = tolerance(dtype) * scale * if is_ieee() || has_gpu_kernels() { 1.0 } else { 64.0 };
    assert!((out - expected).abs() <= allowed, "{dtype:?}, {config:?}: {out} is not {expected}");
}

#[test]
fn the_same_answer_every_time() {
    let dtype = best_float();
    let (lhs, rhs) = (wave(&[4, 33, 65], 0.1), wave(&[4, 65, 31], 0.2));
    let config = DotConfig::new((2, 1)).with_normalize(true);
    let once = run(&config, dtype, Layout::Contiguous, &lhs, &rhs, &ones);
    let again = run(&config, dtype, Layout::Contiguous, &lhs, &rhs, &ones);
    assert_eq!((once.out, once.grad_lhs, once.grad_rhs), (again.out, again.grad_lhs, again.grad_rhs));
}
